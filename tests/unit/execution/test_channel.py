"""Messages arrive as they were sent, and a peer that neither reads nor writes blocks nobody for ever."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from fmnist_search.execution.channel import Channel, channel_pair, socket_pair
from fmnist_search.execution.messages import (
    Configure,
    Decide,
    EpochReported,
    Finished,
    Heartbeat,
    Ready,
    Stop,
    ToPool,
    ToWorker,
    Train,
)
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState

REPORT = EpochReport(1, 0.5, 0.8, 0.6, 0.7, 1e-3, 0.1)
TO_WORKER: list[ToWorker] = [
    Configure(Execution(threads=3)),
    Train(Recipe(), Data()),
    Train(Recipe(), Data(), {"epochs": [], "seconds": 1.0}),
    Decide(Decision.PRUNE),
    Stop(),
]
TO_POOL: list[ToPool] = [
    Ready(),
    Heartbeat(),
    EpochReported(REPORT),
    Finished(TrialResult(TrialState.COMPLETED, (REPORT,), 1.0)),
]
LARGE = b"x" * 2_000_000
"""More than a socket buffers."""


def test_messages_arrive_in_order_and_equal_in_both_directions() -> None:
    pool, worker = channel_pair()
    for to_worker in TO_WORKER:
        pool.send(to_worker)
    for to_pool in TO_POOL:
        worker.send(to_pool)
    assert [worker.receive() for _ in TO_WORKER] == TO_WORKER
    assert [pool.receive() for _ in TO_POOL] == TO_POOL


def test_tensors_arrive_after_the_sender_has_closed() -> None:
    near, far = make_channels()
    near.send({"weights": torch.arange(4.0)})
    near.close()
    assert torch.equal(far.receive()["weights"], torch.arange(4.0))
    with pytest.raises(EOFError):
        far.receive()


def test_messages_of_several_threads_do_not_mix() -> None:
    near, far = make_channels()

    def send_five() -> None:
        for _ in range(5):
            near.send(LARGE)

    threads = [threading.Thread(target=send_five) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert all(far.receive() == LARGE for _ in range(20))
    for thread in threads:
        thread.join()


def test_a_peer_that_does_not_read_is_a_timeout() -> None:
    near, _far = make_channels(timeout=0.1)
    with pytest.raises(TimeoutError):
        near.send(LARGE)


def test_a_peer_that_stops_in_the_middle_of_a_message_is_a_timeout() -> None:
    first, second = socket_pair()
    channel: Channel[Any, Any] = Channel(first, timeout=0.1)
    second.sendall(b"\0\0\0\0\0\0\0\x10half")
    with pytest.raises(TimeoutError):
        channel.receive()


def test_sending_to_a_closed_peer_is_an_os_error() -> None:
    near, far = make_channels()
    far.close()
    with pytest.raises(OSError, match="Broken pipe"):
        near.send("message")


def make_channels(timeout: float | None = None) -> tuple[Channel[Any, Any], Channel[Any, Any]]:
    first, second = socket_pair()
    return Channel(first, timeout), Channel(second, timeout)
