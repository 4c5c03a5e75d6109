"""The sender delivers in order, waits for a store that is down, keeps rejected events, and loses nothing."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fmnist_search.tracking.delivery import Delivery, Step
from fmnist_search.tracking.events import Batch, EndRun, Event, EventKind
from fmnist_search.tracking.outbox import EventRejected, Outbox, StoreUnavailable
from fmnist_search.tracking.sender import Sender


class FakeStore:
    """Stores events in a list; it can be down, and reject the events of some runs."""

    def __init__(self) -> None:
        self.delivered: list[Event] = []
        self.attempts = 0
        self.is_down = False
        self.rejected_runs: set[str] = set()
        self.unblock = threading.Event()
        self.unblock.set()

    def __call__(self, event: Event) -> None:
        self.attempts += 1
        self.unblock.wait(60)
        if self.is_down:
            raise StoreUnavailable("connection refused")
        if event.run_key in self.rejected_runs:
            raise EventRejected(f"{event.run_key} is deleted")
        if event.kind == "bug":
            raise KeyError("artist")
        self.delivered.append(event)

    @property
    def delivered_runs(self) -> list[str]:
        return [event.run_key for event in self.delivered]


@pytest.fixture
def fake_store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def messages() -> list[str]:
    return []


OpenSender = Callable[..., Sender]


@pytest.fixture
def open_sender(tmp_path: Path, fake_store: FakeStore, messages: list[str]) -> Iterator[OpenSender]:
    """Function that opens a sender on the same outbox as all others."""
    senders: list[Sender] = []

    def open_one(**settings: float) -> Sender:
        senders.append(Sender(Outbox(tmp_path / "outbox.db", "store"), fake_store, messages.append, **settings))
        return senders[-1]

    yield open_one
    assert not [thread for thread in threading.enumerate() if thread.name == "sender"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)


def test_events_arrive_in_order_and_deferred_ones_when_no_other_is_pending(
    open_sender: OpenSender, fake_store: FakeStore
) -> None:
    fake_store.unblock.clear()
    with open_sender() as sender:
        sender.send(Event("first", "batch"))
        wait_until(lambda: fake_store.attempts == 1)
        sender.send(Event("picture", "drawing", deferred=True))
        sender.send(Event("second", "batch"))
        fake_store.unblock.set()
        wait_until(lambda: fake_store.delivered_runs == ["first", "second", "picture"])


def test_a_flush_does_not_wait_for_events_that_come_later(open_sender: OpenSender, fake_store: FakeStore) -> None:
    fake_store.unblock.clear()
    with open_sender() as sender:
        sender.send(Event("first", "batch"))
        wait_until(lambda: fake_store.attempts == 1)
        with open_sender() as other:  # not before the sender delivers, for this one would if it came first
            sender.send(Event("picture", "drawing", deferred=True))
            flushed = threading.Thread(target=sender.flush, args=(10,))
            flushed.start()
            wait_until(lambda: sender.outbox.pending_count() == 2 and not is_deferring(sender.outbox))
            other.send(Event("of another search", "batch"))
            fake_store.unblock.set()
            flushed.join()
    assert fake_store.delivered_runs == ["first", "picture", "of another search"]


def is_deferring(outbox: Outbox) -> bool:
    with closing(sqlite3.connect(outbox.path)) as database:
        return bool(database.execute("SELECT COUNT(*) FROM events WHERE later").fetchone()[0])


def test_sending_does_not_wait_for_the_store(open_sender: OpenSender, fake_store: FakeStore) -> None:
    fake_store.unblock.clear()
    with open_sender() as sender:
        for number in range(20):
            sender.send(Event(str(number), "batch"))
        assert not fake_store.delivered_runs
        fake_store.unblock.set()
    assert fake_store.delivered_runs == [str(number) for number in range(20)]


class PausingOutbox(Outbox):
    """An outbox that answers only when it is told to, once it has found that nothing is pending."""

    def __init__(self, path: Path):
        super().__init__(path, "store")
        self.found_nothing, self.answer = threading.Event(), threading.Event()

    @property
    def has_pending(self) -> bool:
        found = super().has_pending
        if not found:
            self.found_nothing.set()
            self.answer.wait(60)
        return found


def test_events_that_are_sent_just_before_the_sender_is_closed_are_delivered(
    tmp_path: Path, fake_store: FakeStore, messages: list[str]
) -> None:
    outbox = PausingOutbox(tmp_path / "outbox.db")
    sender = Sender(outbox, fake_store, messages.append)
    assert outbox.found_nothing.wait(60)
    sender.send(Event("last", "batch"))
    threading.Timer(0.2, outbox.answer.set).start()  # when `close` waits for the thread
    sender.close()
    assert fake_store.delivered_runs == ["last"]


def test_a_store_that_was_down_gets_every_event_once(
    open_sender: OpenSender, fake_store: FakeStore, messages: list[str]
) -> None:
    fake_store.is_down = True
    with open_sender(outage_notice_seconds=0.2) as sender:
        for number in range(5):
            sender.send(Event(str(number), "batch"))
        wait_until(lambda: bool(messages))
        assert "cannot be reached (connection refused)" in messages[0]
        assert "outbox.db" in messages[0]
        fake_store.is_down = False
        assert sender.flush(10)
    assert fake_store.delivered_runs == ["0", "1", "2", "3", "4"]
    assert "takes events again after" in messages[1]
    assert len(messages) == 2


def test_a_short_outage_is_not_reported(open_sender: OpenSender, fake_store: FakeStore, messages: list[str]) -> None:
    fake_store.is_down = True
    with open_sender() as sender:
        sender.send(Event("run", "batch"))
        wait_until(lambda: fake_store.attempts > 1)
        fake_store.is_down = False
        assert sender.flush(10)
    assert messages == []


def test_flush_ends_after_its_timeout_and_the_next_sender_delivers(
    open_sender: OpenSender, fake_store: FakeStore
) -> None:
    fake_store.is_down = True
    with open_sender() as sender:
        sender.send(Event("run", "batch"))
        started = time.monotonic()
        assert not sender.flush(0.2)
        assert 0.2 <= time.monotonic() - started < 30
    assert fake_store.delivered_runs == []
    fake_store.is_down = False
    with open_sender() as sender:
        assert sender.flush(10)
    assert fake_store.delivered_runs == ["run"]


def test_flush_that_should_stop_does_not_wait_for_a_store_that_is_down(
    open_sender: OpenSender, fake_store: FakeStore
) -> None:
    fake_store.is_down = True
    with open_sender() as sender:
        sender.send(Event("run", "batch"))
        started = time.monotonic()
        assert not sender.flush(60, lambda: True)
        assert time.monotonic() - started < 30


def test_flush_that_should_stop_waits_for_a_store_that_is_slow(open_sender: OpenSender, fake_store: FakeStore) -> None:
    fake_store.unblock.clear()
    threading.Timer(0.2, fake_store.unblock.set).start()
    with open_sender() as sender:
        sender.send(Event("run", "batch"))
        assert sender.flush(60, lambda: True)
    assert fake_store.delivered_runs == ["run"]


def test_a_rejection_is_reported_once_and_stops_no_other_run(
    open_sender: OpenSender, fake_store: FakeStore, messages: list[str]
) -> None:
    fake_store.rejected_runs = {"bad"}
    with open_sender() as sender:
        for run in ("bad", "good", "bad", "bad", "good"):
            sender.send(Event(run, "batch"))
        assert sender.flush(10)
        assert set(fake_store.delivered_runs) == {"good"}
        assert not sender.outbox.pending_count()
        assert sum(sender.outbox.rejected_counts().values()) == 3
    (line,) = messages
    assert "bad is deleted" in line
    assert "fmnist-search sync" in line


def test_an_event_that_raises_an_unexpected_error_is_rejected_with_it(
    open_sender: OpenSender, fake_store: FakeStore, messages: list[str]
) -> None:
    with open_sender() as sender:
        sender.send(Event("broken", "bug"))
        sender.send(Event("good", "batch"))
        assert sender.flush(10)
        assert list(sender.outbox.rejected_counts()) == ["unexpected KeyError: 'artist'"]
    assert fake_store.delivered_runs == ["good"]


def test_tasks_run_in_idle_time_and_one_that_fails_is_reported(
    open_sender: OpenSender, fake_store: FakeStore, messages: list[str]
) -> None:
    done: list[str] = []
    fake_store.unblock.clear()
    with open_sender() as sender:
        sender.send(Event("first", "batch"))
        wait_until(lambda: fake_store.attempts == 1)
        sender.run_when_idle(lambda: done.append(f"drawn after {len(fake_store.delivered_runs)}"))
        sender.run_when_idle(lambda: done.append(str(1 // 0)))
        sender.send(Event("second", "batch"))
        fake_store.unblock.set()
        assert sender.flush(10)
    assert done == ["drawn after 2"]
    assert messages == ["a figure was not drawn: ZeroDivisionError: integer division or modulo by zero"]


def test_tasks_run_while_the_store_is_down(open_sender: OpenSender, fake_store: FakeStore) -> None:
    fake_store.is_down = True
    done = threading.Event()
    with open_sender() as sender:
        sender.send(Event("run", "batch"))
        sender.run_when_idle(done.set)
        assert done.wait(60)


def test_two_senders_of_one_outbox_deliver_every_event_once(open_sender: OpenSender, fake_store: FakeStore) -> None:
    with open_sender() as first, open_sender() as second:
        for number in range(10):
            (first if number % 2 else second).send(Event(str(number), "batch"))
        assert first.flush(10)
        assert second.flush(10)
    assert fake_store.delivered_runs == [str(number) for number in range(10)]


def test_an_idle_sender_keeps_no_other_from_delivering_and_from_its_tasks(
    open_sender: OpenSender, fake_store: FakeStore
) -> None:
    with open_sender() as first:
        first.send(Event("first", "batch"))
        assert first.flush(10)
        with open_sender() as second:
            second.send(Event("second", "batch"))
            second.run_when_idle(lambda: second.send(Event("drawn by the second", "batch")))
            assert second.flush(1)
    assert fake_store.delivered_runs == ["first", "second", "drawn by the second"]


def test_the_sender_that_delivers_takes_the_events_of_others_while_these_run_their_tasks(
    open_sender: OpenSender, fake_store: FakeStore, messages: list[str]
) -> None:
    fake_store.unblock.clear()
    done = threading.Event()
    with open_sender() as first:
        first.send(Event("first", "batch"))
        wait_until(lambda: fake_store.attempts == 1)
        with open_sender() as second:  # not before the first has the lock, which the second would take if it came first
            second.send(Event("second", "batch"))
            second.run_when_idle(done.set)
            assert done.wait(60)
            wait_until(lambda: bool(second.problem))
            assert second.problem.startswith(f"process {os.getpid()} on ")
            problem = second.problem
            assert "cannot be reached" not in problem
            assert not second.flush(60, lambda: True)
            threading.Timer(0.3, fake_store.unblock.set).start()
            assert second.flush(0.1)  # a sender that is slow is waited for, and the user is told which
            assert messages == [f"{problem}; this one waits for it"]
    assert fake_store.delivered_runs == ["first", "second"]


def test_a_slow_store_is_not_taken_for_one_that_is_down(open_sender: OpenSender, fake_store: FakeStore) -> None:
    fake_store.unblock.clear()
    threading.Timer(0.6, fake_store.unblock.set).start()
    with open_sender() as sender:
        sender.send(Event("run", "batch"))
        assert sender.flush(0.2)


def test_the_sender_of_another_store_is_not_waited_for(
    open_sender: OpenSender, fake_store: FakeStore, tmp_path: Path, messages: list[str]
) -> None:
    fake_store.unblock.clear()
    other_outbox = Outbox(tmp_path / "outbox.db", "other")
    with open_sender() as sender, Sender(other_outbox, FakeStore(), messages.append) as other:
        sender.send(Event("run", "batch"))
        wait_until(lambda: fake_store.attempts == 1)
        other.send(Event("elsewhere", "batch"))
        assert other.flush(10)
        fake_store.unblock.set()


def test_the_seconds_that_the_events_of_a_run_take_are_summed(open_sender: OpenSender, fake_store: FakeStore) -> None:
    fake_store.unblock.clear()
    with open_sender() as sender:
        sender.send(Event("slow", "batch"))
        wait_until(lambda: fake_store.attempts == 1)
        time.sleep(0.2)
        fake_store.unblock.set()
        assert sender.flush(10)
        assert sender.tracking_seconds("slow") >= 0.2
        assert sender.tracking_seconds("other") == 0


def test_the_end_of_a_run_names_the_seconds_of_events_that_were_sent_with_it(
    open_sender: OpenSender, fake_store: FakeStore
) -> None:
    batch = Batch(tags={"kind": "trial"})
    with open_sender() as sender:
        sender.send(Event("run", "create"), batch.event("run"), EndRun("FINISHED", 1, 9).event("run"))
        assert sender.flush(10)
    end = EndRun.from_body(fake_store.delivered[-1].body)
    assert end.batch == batch.to_body()
    assert end.tracking_seconds


def test_the_end_of_a_run_that_two_processes_deliver_is_written_with_the_same_seconds(
    tmp_path: Path, fake_store: FakeStore, messages: list[str]
) -> None:
    def write_and_lose_lease(event: Event) -> None:
        """Write an event as a process does that is frozen for so long that another delivers all events."""
        if event.kind == "create":
            frozen_outbox.lease.release()
            while other.try_step(at_once=True) is Step.DELIVERED:
                pass
        fake_store(event)

    frozen_outbox, other_outbox = (Outbox(tmp_path / "outbox.db", "store") for _ in range(2))
    with closing(frozen_outbox), closing(other_outbox):
        frozen = Delivery(frozen_outbox, write_and_lose_lease, messages.append, 1.0)
        other = Delivery(other_outbox, fake_store, messages.append, 1.0)
        frozen_outbox.put(Event("run", "create"), EndRun("FINISHED", 1, 9).event("run"))
        assert frozen.try_step(at_once=True) is Step.DELIVERED
        assert not frozen_outbox.has_pending
    ends = [EndRun.from_body(event.body) for event in fake_store.delivered if event.kind == EventKind.END_RUN]
    assert len({end.tracking_seconds for end in ends}) == 1
