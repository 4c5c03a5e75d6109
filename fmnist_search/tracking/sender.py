"""The sender: a thread that delivers the events of an outbox to MLflow while trials train.

A worker that logs something never waits for MLflow, and only the sender waits for a store that is down.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from enum import Enum, auto

from fmnist_search.text import first_line
from fmnist_search.tracking.events import EndRun, Event, EventKind, RunProgress
from fmnist_search.tracking.outbox import EventRejected, Outbox, StoreUnavailable

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.25, 10.0
"""Bounds of the time between two attempts to reach a store, which is half of how long it has been down."""
OUTAGE_NOTICE_SECONDS = 3.0
"""A store that is down for a shorter time is not reported."""
LOCK_POLL_SECONDS = 0.1
"""Seconds between two checks whether another sender has delivered everything."""
CLOSE_WAIT_SECONDS = 10.0
"""A sender that is closed waits so long for another one that is delivering its events."""

WriteEvent = Callable[[Event], None]
"""Writes an event to the store. Raises StoreUnavailable if the event is to be sent again later, and EventRejected if
the store will never take it."""


class _Step(Enum):
    """What came of the attempt to deliver an event."""

    DELIVERED = auto()
    NOTHING_PENDING = auto()
    SENT_BY_ANOTHER = auto()
    STORE_DOWN = auto()


class NullSender:
    """A sender that discards everything, for studies that are not tracked."""

    problem = ""

    def send(self, *events: Event, progress: RunProgress | None = None) -> None:
        """Do nothing."""

    def progress(self, run_key: str) -> RunProgress | None:
        """Return None."""
        return None

    def forget_progress(self, run_key: str) -> None:
        """Do nothing."""

    def run_id(self, run_key: str) -> str | None:
        """Return None."""
        return None

    def remember_run(self, run_key: str, run_id: str) -> None:
        """Do nothing."""

    def tracking_seconds(self, run_key: str) -> float:
        """Return 0."""
        return 0.0

    def run_when_idle(self, task: Callable[[], None]) -> None:
        """Do nothing."""

    def flush(self, timeout: float, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Return True without waiting."""
        return True


class Sender:
    """A thread that delivers the events of an outbox, and runs tasks when no event is pending.

    Several senders may share an outbox. One of them at a time has its lock, and delivers the events of all until none
    is pending. The others run their tasks in the meantime.
    """

    def __init__(
        self,
        outbox: Outbox,
        write_event: WriteEvent,
        print_message: Callable[[str], None],
        outage_notice_seconds: float = OUTAGE_NOTICE_SECONDS,
    ):
        self.outbox = outbox
        self._outage_notice_seconds = outage_notice_seconds
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._write_event = write_event
        self._print_message = print_message
        self._idle_tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._busy = False
        self._last_number = outbox.last_number
        self._wakeup = threading.Event()
        self._closing = False
        self._down_since: float | None = None
        self._down_reason = ""
        self._retry_at = 0.0
        self._is_blocked = False
        self._outage_reported = False
        self._reported_reasons: set[str] = set()
        self._thread = threading.Thread(target=self._run_loop, name="sender", daemon=True)
        self._thread.start()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *events: Event, progress: RunProgress | None = None) -> None:
        """Take events, all or none, and deliver them after all that were sent before."""
        self._last_number = self.outbox.put(*events, progress=progress)
        self._wakeup.set()

    def progress(self, run_key: str) -> RunProgress | None:
        """Return the progress of the run with this key; None if none is stored."""
        return self.outbox.progress(run_key)

    def forget_progress(self, run_key: str) -> None:
        """Remove the progress of a run that has ended."""
        self.outbox.forget_progress(run_key)

    def run_id(self, run_key: str) -> str | None:
        """Return the id of the run with this key; None before MLflow has created it."""
        return self.outbox.run_id(run_key)

    def remember_run(self, run_key: str, run_id: str) -> None:
        """Store the id of the run with this key."""
        self.outbox.remember_run(run_key, run_id)

    def tracking_seconds(self, run_key: str) -> float:
        """Return the seconds that the delivery of the events of a run has taken so far."""
        return self._seconds.get(run_key, 0.0)

    def run_when_idle(self, task: Callable[[], None]) -> None:
        """Run the task in this thread of the sender when it has no event to deliver, or while the store is down."""
        self._idle_tasks.put(task)
        self._wakeup.set()

    def flush(self, timeout: float, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Wait until all events have been delivered, those that an earlier process left included.

        Return False if the store is down and has taken nothing for `timeout` seconds, or `should_stop` returns True;
        or if another sender, which has the lock, has delivered nothing for so long. Then `problem` names the cause.
        Rejected events are not waited for.
        """
        last_count, since = -1, time.monotonic()
        while not self._is_drained():
            now, pending = time.monotonic(), self.outbox.pending_count(self._last_number)
            if pending != last_count:
                last_count, since = pending, now
            if not self._thread.is_alive() or (self._down_since is not None and should_stop()):
                return False
            if now - since > timeout and self.problem:
                return False
            time.sleep(0.01)
        return True

    @property
    def problem(self) -> str:
        """Why events are not delivered; empty unless a call of the store has failed or another sender has the lock."""
        if not self._thread.is_alive():
            return "the thread that sends to MLflow has ended"
        if self._down_since is not None:
            return f"MLflow cannot be reached ({self._down_reason})"
        if self._is_blocked:
            return f"another process holds {self.outbox.lock_path} and sends nothing"
        return ""

    def close(self) -> None:
        """End the thread once all events have been delivered, or as soon as the store cannot be reached."""
        self._closing = True
        self._wakeup.set()
        self._thread.join()
        self.outbox.close()

    def _is_drained(self) -> bool:
        return not self.outbox.pending_count(self._last_number) and self._idle_tasks.empty() and not self._busy

    def _run_loop(self) -> None:
        close_by: float | None = None
        while True:
            closing = self._closing  # read before the outbox: events that were sent before `close` are delivered
            step = self._deliver_next()
            if step is _Step.DELIVERED:
                continue
            if step is _Step.STORE_DOWN and closing:
                return
            if not self._idle_tasks.empty():
                self._run_idle_task()
                continue
            if closing:
                close_by = close_by or time.monotonic() + CLOSE_WAIT_SECONDS
                if step is _Step.NOTHING_PENDING or time.monotonic() > close_by:
                    return
            self._wait_after(step)

    def _deliver_next(self) -> _Step:
        """Try to deliver one event. The lock is kept for the next one if it was delivered, and released otherwise."""
        if time.monotonic() < self._retry_at and not self._closing:
            return _Step.STORE_DOWN
        if not self.outbox.has_pending:
            self.outbox.unlock()
            self._is_blocked = False
            self._on_available()
            return _Step.NOTHING_PENDING
        if not self.outbox.try_lock():
            self._is_blocked = True
            return _Step.SENT_BY_ANOTHER
        self._is_blocked = False
        event = self.outbox.next_event()
        if event is None or self._try_deliver(event):
            return _Step.DELIVERED
        self.outbox.unlock()
        return _Step.STORE_DOWN

    def _wait_after(self, step: _Step) -> None:
        if step is _Step.NOTHING_PENDING:
            self._wakeup.wait()
            self._wakeup.clear()
        else:
            time.sleep(LOCK_POLL_SECONDS if step is _Step.SENT_BY_ANOTHER else 0.02)

    def _try_deliver(self, event: Event) -> bool:
        started = time.perf_counter()
        try:
            self._write_event(self._with_tracking_seconds(event))
        except StoreUnavailable as error:
            self._on_unavailable(str(error))
            return False
        except EventRejected as error:
            self._reject(event, str(error))
        except Exception as error:  # an event that cannot be written must not stop the events after it
            self._reject(event, f"unexpected {type(error).__name__}: {first_line(error)}")
        else:
            self.outbox.mark_delivered(event)
        self._seconds[event.run_key] += time.perf_counter() - started
        self._on_available()
        return True

    def _with_tracking_seconds(self, event: Event) -> Event:
        """Return the event; the last one of a run gets, once, how long all its earlier events took."""
        if event.kind != EventKind.END_RUN or EndRun.from_body(event.body).tracking_seconds is not None:
            return event
        end = dataclasses.replace(EndRun.from_body(event.body), tracking_seconds=self._seconds[event.run_key])
        return self.outbox.update_body(event, end.to_body())

    def _reject(self, event: Event, reason: str) -> None:
        self.outbox.reject(event, reason)
        if reason not in self._reported_reasons:
            self._reported_reasons.add(reason)
            self._print_message(
                f"MLflow refuses events of the run {event.run_key}: {reason}; they are kept for `fmnist-search sync`"
            )

    def _on_unavailable(self, reason: str) -> None:
        now = time.monotonic()
        self._down_since, self._down_reason = self._down_since or now, reason
        self._retry_at = now + min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, (now - self._down_since) / 2))
        if not self._outage_reported and now - self._down_since > self._outage_notice_seconds:
            self._outage_reported = True
            self._print_message(
                f"MLflow cannot be reached ({reason}); training goes on, and the events are kept in {self.outbox.path}"
            )

    def _on_available(self) -> None:
        if self._outage_reported and self._down_since:
            seconds = time.monotonic() - self._down_since
            self._print_message(f"MLflow is back after {seconds:.0f} s; the events that it missed are sent now")
        self._down_since, self._outage_reported, self._retry_at = None, False, 0.0

    def _run_idle_task(self) -> None:
        self._busy = True
        try:
            self._idle_tasks.get()()
        except Exception as error:  # a figure that cannot be drawn must not stop a search
            self._print_message(f"a figure was not drawn: {type(error).__name__}: {first_line(error)}")
        finally:
            self._busy = False
