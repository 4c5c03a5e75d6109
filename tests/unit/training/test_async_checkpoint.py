"""Checkpoints beside a training: when one is taken, what it holds, and in which order they are sent."""

from __future__ import annotations

import io
import threading

import pytest
import torch

from fmnist_search.training.async_checkpoint import AsyncCheckpointer
from fmnist_search.training.checkpoint import Checkpoint
from tests.support.jobs import TINY_RECIPE

LARGE = 50 * 2**20
"""Bytes of a state that takes a good part of a second to send."""


def make_checkpoint(epoch: int, size: int = 4) -> Checkpoint:
    weights = {"weight": torch.full((size // 4,), float(epoch))}
    return Checkpoint(TINY_RECIPE, {}, [], {"epoch": epoch, "network": weights})


class Receiver:
    """Receives checkpoints; the clock stands still unless a test sets it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.received: list[tuple[int, torch.Tensor]] = []
        self.may_receive = threading.Event()
        self.may_receive.set()
        self.threads_before = set(threading.enumerate())  # those of other tests, as of MLflow, may never end
        self.checkpointer = AsyncCheckpointer(self.receive, lambda: self.now)

    def receive(self, content: bytes) -> None:
        assert self.may_receive.wait(60)
        state = torch.load(io.BytesIO(content.partition(b"\n")[2]), weights_only=True)["state"]
        self.received.append((state["epoch"], state["network"]["weight"]))

    @property
    def epochs(self) -> list[int]:
        return [epoch for epoch, _ in self.received]

    def take(self, epoch: int, now: float, interval: float = 30.0, size: int = 4) -> None:
        self.now = now
        self.checkpointer.take(make_checkpoint(epoch, size), interval)

    def wait_until_sent(self) -> None:
        for thread in set(threading.enumerate()) - self.threads_before:
            thread.join()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


def test_an_expensive_checkpoint_is_taken_when_it_is_due(receiver: Receiver) -> None:
    with receiver.checkpointer.training():
        for epoch, now in enumerate([10.0, 29.9, 30.0, 35.0, 40.0, 61.0], start=1):
            receiver.take(epoch, now, size=LARGE)
            receiver.wait_until_sent()
    assert receiver.epochs == [3, 6]


def test_a_cheap_checkpoint_is_taken_earlier(receiver: Receiver) -> None:
    with receiver.checkpointer.training():
        receiver.take(1, 0.1)
        receiver.take(2, 20.0)
    assert receiver.epochs == [2]


def test_after_every_epoch_means_every_epoch(receiver: Receiver) -> None:
    with receiver.checkpointer.training():
        for epoch in range(1, 6):
            receiver.take(epoch, 0.0, interval=0.0, size=LARGE if epoch == 2 else 4)
    assert receiver.epochs == [1, 2, 3, 4, 5]


def test_the_training_may_go_on_while_the_copy_is_sent(receiver: Receiver) -> None:
    checkpoint = make_checkpoint(1, size=2**20)
    receiver.may_receive.clear()
    with receiver.checkpointer.training():
        receiver.now = 60.0
        receiver.checkpointer.take(checkpoint, 30.0)
        checkpoint.state["network"]["weight"].fill_(7.0)  # the next epoch trains
        receiver.take(2, 120.0)  # due, but the one before is still being sent
        receiver.may_receive.set()
    ((epoch, weight),) = receiver.received
    assert epoch == 1
    assert weight.unique().tolist() == [1.0]


def test_the_last_checkpoint_is_sent_after_the_others_and_before_the_call_returns(receiver: Receiver) -> None:
    with receiver.checkpointer.training():
        receiver.may_receive.clear()
        receiver.take(1, 60.0, size=LARGE)
        threading.Timer(0.1, receiver.may_receive.set).start()
        receiver.checkpointer.take_last(make_checkpoint(2))
        assert receiver.epochs == [1, 2]


def test_a_training_ends_after_its_checkpoints_were_sent_and_an_unreachable_pool_is_no_error() -> None:
    def send(_: bytes) -> None:
        sent.append(1)
        raise BrokenPipeError

    sent: list[int] = []
    checkpointer = AsyncCheckpointer(send)
    for count in (1, 2):
        with checkpointer.training():
            checkpointer.take(make_checkpoint(1), 0.0)
        assert len(sent) == count
