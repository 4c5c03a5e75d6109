"""The sender delivers in order, waits for a store that is down, puts aside what is refused, and loses nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmnist_search.tracking.events import Event
from fmnist_search.tracking.outbox import EventRejected, Outbox, StoreUnavailable
from fmnist_search.tracking.sender import Sender


class FakeStore:
    """Takes events in a list; down or unwilling where a test wants it to be."""

    def __init__(self) -> None:
        self.delivered_runs: list[str] = []
        self.attempts = 0
        self.is_down = False
        self.rejected_runs: set[str] = set()
        self.unblock = threading.Event()
        self.unblock.set()

    def __call__(self, event: Event) -> None:
        self.attempts += 1
        self.unblock.wait(10)
        if self.is_down:
            raise StoreUnavailable("nobody answers")
        if event.run_key in self.rejected_runs:
            raise EventRejected(f"{event.run_key} is deleted")
        if event.kind == "bug":
            raise KeyError("artist")
        self.delivered_runs.append(event.run_key)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def said() -> list[str]:
    return []


OpenSender = Callable[[], Sender]


@pytest.fixture
def opened(tmp_path: Path, store: FakeStore, said: list[str]) -> Iterator[OpenSender]:
    """Opens senders on one outbox."""
    senders: list[Sender] = []

    def open_sender() -> Sender:
        senders.append(Sender(Outbox(tmp_path / "outbox.db", "store"), store, said.append))
        return senders[-1]

    yield open_sender
    assert not [thread for thread in threading.enumerate() if thread.name == "sender"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_what_is_sent_arrives_in_order_and_what_can_come_later_when_nothing_else_is_left(
    opened: OpenSender, store: FakeStore
) -> None:
    store.unblock.clear()
    with opened() as sender:
        sender.send(Event("first", "batch"))
        wait_until(lambda: store.attempts == 1)
        sender.send(Event("picture", "drawing", deferred=True))
        sender.send(Event("second", "batch"))
        store.unblock.set()
        assert sender.flush(10)
        assert store.delivered_runs == ["first", "second", "picture"]


def test_nobody_who_sends_waits(opened: OpenSender, store: FakeStore) -> None:
    store.unblock.clear()
    with opened() as sender:
        started = time.monotonic()
        for number in range(20):
            sender.send(Event(str(number), "batch"))
        assert time.monotonic() - started < 2
        assert not store.delivered_runs
        store.unblock.set()
    assert store.delivered_runs == [str(number) for number in range(20)]


def test_a_store_that_comes_back_gets_everything_once(opened: OpenSender, store: FakeStore, said: list[str]) -> None:
    store.is_down = True
    with opened() as sender:
        for number in range(5):
            sender.send(Event(str(number), "batch"))
        wait_until(lambda: bool(said))
        assert "cannot be reached (nobody answers)" in said[0]
        assert "outbox.db" in said[0]
        store.is_down = False
        assert sender.flush(10)
    assert store.delivered_runs == ["0", "1", "2", "3", "4"]
    assert "is back after" in said[1]
    assert len(said) == 2


def test_a_store_that_is_gone_for_a_moment_is_not_worth_a_word(
    opened: OpenSender, store: FakeStore, said: list[str]
) -> None:
    store.is_down = True
    with opened() as sender:
        sender.send(Event("run", "batch"))
        wait_until(lambda: store.attempts > 1)
        store.is_down = False
        assert sender.flush(10)
    assert said == []


def test_flushing_gives_up_when_its_patience_is_over_and_the_next_sender_delivers(
    opened: OpenSender, store: FakeStore
) -> None:
    store.is_down = True
    with opened() as sender:
        sender.send(Event("run", "batch"))
        started = time.monotonic()
        assert not sender.flush(0.5)
        assert 0.5 <= time.monotonic() - started < 5
    assert store.delivered_runs == []
    store.is_down = False
    with opened() as sender:
        assert sender.flush(10)
    assert store.delivered_runs == ["run"]


def test_who_is_asked_to_stop_does_not_wait_for_a_store_that_is_down(opened: OpenSender, store: FakeStore) -> None:
    store.is_down = True
    with opened() as sender:
        sender.send(Event("run", "batch"))
        started = time.monotonic()
        assert not sender.flush(60, lambda: True)
        assert time.monotonic() - started < 5


def test_who_is_asked_to_stop_waits_for_a_store_that_is_merely_slow(opened: OpenSender, store: FakeStore) -> None:
    store.unblock.clear()
    threading.Timer(0.6, store.unblock.set).start()
    with opened() as sender:
        sender.send(Event("run", "batch"))
        assert sender.flush(60, lambda: True)
    assert store.delivered_runs == ["run"]


def test_what_is_refused_is_said_once_and_stops_nothing_else(
    opened: OpenSender, store: FakeStore, said: list[str]
) -> None:
    store.rejected_runs = {"bad"}
    with opened() as sender:
        for run in ("bad", "good", "bad", "bad", "good"):
            sender.send(Event(run, "batch"))
        assert sender.flush(10)
        assert store.delivered_runs == ["good", "good"]
        assert sum(sender.outbox.rejected_counts().values()) == 3
    (line,) = said
    assert "bad is deleted" in line
    assert "fmnist-search sync" in line


def test_an_event_that_cannot_be_written_is_put_aside_with_its_error(
    opened: OpenSender, store: FakeStore, said: list[str]
) -> None:
    with opened() as sender:
        sender.send(Event("broken", "bug"))
        sender.send(Event("good", "batch"))
        assert sender.flush(10)
        assert list(sender.outbox.rejected_counts()) == ["unexpected KeyError: 'artist'"]
    assert store.delivered_runs == ["good"]


def test_errands_are_done_in_idle_time_and_one_that_fails_is_said(
    opened: OpenSender, store: FakeStore, said: list[str]
) -> None:
    done: list[str] = []
    store.unblock.clear()
    with opened() as sender:
        sender.send(Event("first", "batch"))
        wait_until(lambda: store.attempts == 1)
        sender.run_when_idle(lambda: done.append(f"drawn after {len(store.delivered_runs)}"))
        sender.run_when_idle(lambda: done.append(str(1 // 0)))
        sender.send(Event("second", "batch"))
        store.unblock.set()
        assert sender.flush(10)
    assert done == ["drawn after 2"]
    assert said == ["a figure was not drawn: ZeroDivisionError: integer division or modulo by zero"]


def test_errands_are_done_while_the_store_is_down(opened: OpenSender, store: FakeStore) -> None:
    store.is_down = True
    done = threading.Event()
    with opened() as sender:
        sender.send(Event("run", "batch"))
        sender.run_when_idle(done.set)
        assert done.wait(10)


def test_two_senders_of_one_outbox_deliver_everything_once(opened: OpenSender, store: FakeStore) -> None:
    with opened() as first, opened() as second:
        for number in range(10):
            (first if number % 2 else second).send(Event(str(number), "batch"))
        assert first.flush(10)
        assert second.flush(10)
    assert store.delivered_runs == [str(number) for number in range(10)]


def test_the_seconds_of_a_run_are_counted(opened: OpenSender, store: FakeStore) -> None:
    store.unblock.clear()
    with opened() as sender:
        sender.send(Event("slow", "batch"))
        wait_until(lambda: store.attempts == 1)
        time.sleep(0.2)
        store.unblock.set()
        assert sender.flush(10)
        assert sender.tracking_seconds("slow") >= 0.2
        assert sender.tracking_seconds("other") == 0
