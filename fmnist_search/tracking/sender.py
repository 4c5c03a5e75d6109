"""The one sender of a machine's events: a thread that brings them from the outbox to MLflow while trials train.

Nothing that is written to MLflow keeps a worker waiting, and a store that is down keeps nobody waiting but the sender.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from fmnist_search.tracking.outbox import Event, EventRejected, Outbox, StoreUnavailable

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.25, 10.0
"""Seconds between two attempts to reach a store: half of how long it has been away."""
OUTAGE_NOTICE_SECONDS = 3.0
"""A store that is gone for less is not worth a word."""
LOCK_POLL_SECONDS = 0.1
"""Seconds after which to ask again whether another process still sends."""

END_KIND, SECONDS_KEY = "end", "seconds"
"""The last event of a run learns how long all before it took."""

WriteEvent = Callable[[Event], None]
"""Writes an event to the store. Raises StoreUnavailable when it is to be tried again, Refused when that would be "
"in vain."""


class NullSender:
    """The sender of those who want no record: what they write goes nowhere."""

    def send(self, event: Event) -> None:
        """Do nothing."""

    def run_id(self, run_key: str) -> str | None:
        """None."""
        return None

    def remember_run(self, run_key: str, run_id: str) -> None:
        """Do nothing."""

    def tracking_seconds(self, run_key: str) -> float:
        """Not a moment."""
        return 0.0

    def run_when_idle(self, task: Callable[[], None]) -> None:
        """Do nothing."""

    def flush(self, timeout: float, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Nothing is waited for."""
        return True


class Sender:
    """A thread that delivers what is in an outbox, and does in its idle time what can wait."""

    def __init__(self, outbox: Outbox, write_event: WriteEvent, print_message: Callable[[str], None]):
        self.outbox = outbox
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._write_event = write_event
        self._print_message = print_message
        self._idle_tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._busy = False
        self._last_number = outbox.last_number
        self._wakeup = threading.Event()
        self._closing = False
        self._down_since: float | None = None
        self._outage_reported = False
        self._reported_reasons: set[str] = set()
        self._thread = threading.Thread(target=self._run_loop, name="sender", daemon=True)
        self._thread.start()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, event: Event) -> None:
        """Keep an event, and deliver it after all that was sent before."""
        self._last_number = self.outbox.put(event)
        self._wakeup.set()

    def run_id(self, run_key: str) -> str | None:
        """The run behind an address; None before it was made."""
        return self.outbox.run_id(run_key)

    def remember_run(self, run_key: str, run_id: str) -> None:
        """Remember which run an address has got."""
        self.outbox.remember_run(run_key, run_id)

    def tracking_seconds(self, run_key: str) -> float:
        """How long the events of a run have taken so far."""
        return self._seconds.get(run_key, 0.0)

    def run_when_idle(self, task: Callable[[], None]) -> None:
        """Have this done once nothing waits to be sent; a store that is down does not count."""
        self._idle_tasks.put(task)
        self._wakeup.set()

    def flush(self, timeout: float, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Wait until what was sent has arrived, and what an earlier process left.

        False when the store has taken nothing for so many seconds, or is down and `should_stop`. What it refuses
        is put aside, and not waited for.
        """
        left, since = -1, time.monotonic()
        while not self._is_drained():
            now, waiting = time.monotonic(), self.outbox.pending_count(self._last_number)
            if waiting != left:
                left, since = waiting, now
            if now - since > timeout or (self._down_since is not None and should_stop()):
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """End the thread once everything has been delivered, or as soon as the store is out of reach."""
        self._closing = True
        self._wakeup.set()
        self._thread.join()
        self.outbox.close()

    def _is_drained(self) -> bool:
        return not self.outbox.pending_count(self._last_number) and self._idle_tasks.empty() and not self._busy

    def _run_loop(self) -> None:
        while True:
            if not self.outbox.try_lock():
                if self._closing:
                    return
                time.sleep(LOCK_POLL_SECONDS)
                continue
            event = self.outbox.next_event()
            if event:
                if not self._try_deliver(event):
                    if self._closing:
                        return
                    self._wait_before_retry()
            elif not self._idle_tasks.empty():
                self._run_idle_task()
            elif self._closing:
                return
            else:
                self._wakeup.wait()
                self._wakeup.clear()

    def _try_deliver(self, event: Event) -> bool:
        started = time.perf_counter()
        if event.kind == END_KIND and SECONDS_KEY not in event.body:
            event = self.outbox.update_body(event, **{SECONDS_KEY: self._seconds[event.run_key]})
        try:
            self._write_event(event)
        except StoreUnavailable as error:
            self._on_unavailable(str(error))
            return False
        except EventRejected as error:
            self._reject(event, str(error))
        except Exception as error:  # an event that nobody can write must not stop all that come after it
            self._reject(event, f"unexpected {type(error).__name__}: {error}")
        else:
            self.outbox.mark_delivered(event)
        self._seconds[event.run_key] += time.perf_counter() - started
        self._on_available()
        return True

    def _reject(self, event: Event, reason: str) -> None:
        self.outbox.reject(event, reason)
        if reason not in self._reported_reasons:
            self._reported_reasons.add(reason)
            self._print_message(
                f"MLflow refuses what belongs to {event.run_key}: {reason}; it is kept for `fmnist-search sync`"
            )

    def _on_unavailable(self, reason: str) -> None:
        now = time.monotonic()
        self._down_since = self._down_since or now
        if not self._outage_reported and now - self._down_since > OUTAGE_NOTICE_SECONDS:
            self._outage_reported = True
            self._print_message(
                f"MLflow is out of reach ({reason}); training goes on, the record is kept in {self.outbox.path}"
            )

    def _on_available(self) -> None:
        if self._outage_reported and self._down_since:
            self._print_message(
                f"MLflow is back after {time.monotonic() - self._down_since:.0f} s; it gets what it has missed"
            )
        self._down_since, self._outage_reported = None, False

    def _wait_before_retry(self) -> None:
        assert self._down_since is not None
        length = min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, (time.monotonic() - self._down_since) / 2))
        until = time.monotonic() + length
        while time.monotonic() < until and not self._closing:
            if self._idle_tasks.empty():
                time.sleep(0.02)
            else:
                self._run_idle_task()

    def _run_idle_task(self) -> None:
        self._busy = True
        try:
            self._idle_tasks.get()()
        except Exception as error:  # a picture that cannot be drawn is no reason to stop a search
            self._print_message(f"not drawn: {type(error).__name__}: {error}")
        finally:
            self._busy = False
