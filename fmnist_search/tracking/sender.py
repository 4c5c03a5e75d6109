"""The one sender of a machine's events: a thread that brings them from the outbox to MLflow while trials train.

Nothing that is written to MLflow keeps a worker waiting, and a store that is down keeps nobody waiting but the sender.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from fmnist_search.tracking.outbox import Event, Outbox, OutOfReach, Refused

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
"""Seconds between two attempts to reach a store: half of how long it has been away."""
QUIET_SECONDS = 3.0
"""A store that is gone for less is not worth a word."""
OTHERS_TURN = 0.1
"""Seconds after which to ask again whether another process still sends."""

END, SECONDS = "end", "seconds"
"""The last event of a run learns how long all before it took."""

Deliver = Callable[[Event], None]
"""Writes an event to the store. Raises OutOfReach when it is to be tried again, Refused when that would be in vain."""


class Nobody:
    """The sender of those who want no record: what they write goes nowhere."""

    def send(self, event: Event) -> None:
        """Do nothing."""

    def run_id(self, address: str) -> str | None:
        """None."""
        return None

    def opened(self, address: str, run_id: str) -> None:
        """Do nothing."""

    def seconds_of(self, address: str) -> float:
        """Not a moment."""
        return 0.0

    def when_idle(self, act: Callable[[], None]) -> None:
        """Do nothing."""

    def flush(self, patience: float, is_asked_to_stop: Callable[[], bool] = lambda: False) -> bool:
        """Nothing is waited for."""
        return True


class Sender:
    """A thread that delivers what is in an outbox, and does in its idle time what can wait."""

    def __init__(self, outbox: Outbox, deliver: Deliver, say: Callable[[str], None]):
        self.outbox = outbox
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._deliver = deliver
        self._say = say
        self._errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._busy = False
        self._last = outbox.last
        self._news = threading.Event()
        self._closing = False
        self._down_since: float | None = None
        self._said_down = False
        self._reasons: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)
        self._thread.start()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, event: Event) -> None:
        """Keep an event, and deliver it after all that was sent before."""
        self._last = self.outbox.put(event)
        self._news.set()

    def run_id(self, address: str) -> str | None:
        """The run behind an address; None before it was made."""
        return self.outbox.run_id(address)

    def opened(self, address: str, run_id: str) -> None:
        """Remember which run an address has got."""
        self.outbox.opened(address, run_id)

    def seconds_of(self, address: str) -> float:
        """How long the events of a run have taken so far."""
        return self._seconds.get(address, 0.0)

    def when_idle(self, act: Callable[[], None]) -> None:
        """Have this done once nothing waits to be sent; a store that is down does not count."""
        self._errands.put(act)
        self._news.set()

    def flush(self, patience: float, is_asked_to_stop: Callable[[], bool] = lambda: False) -> bool:
        """Wait until what was sent has arrived, and what an earlier process left.

        False when the store has taken nothing for so many seconds, or is down and `is_asked_to_stop`. What it refuses
        is put aside, and not waited for.
        """
        left, since = -1, time.monotonic()
        while not self._is_through():
            now, waiting = time.monotonic(), self.outbox.waiting(self._last)
            if waiting != left:
                left, since = waiting, now
            if now - since > patience or (self._down_since is not None and is_asked_to_stop()):
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """End the thread once everything has been delivered, or as soon as the store is out of reach."""
        self._closing = True
        self._news.set()
        self._thread.join()
        self.outbox.close()

    def _is_through(self) -> bool:
        return not self.outbox.waiting(self._last) and self._errands.empty() and not self._busy

    def _work(self) -> None:
        while True:
            if not self.outbox.may_send():
                if self._closing:
                    return
                time.sleep(OTHERS_TURN)
                continue
            event = self.outbox.first()
            if event:
                if not self._delivered(event):
                    if self._closing:
                        return
                    self._pause()
            elif not self._errands.empty():
                self._do_an_errand()
            elif self._closing:
                return
            else:
                self._news.wait()
                self._news.clear()

    def _delivered(self, event: Event) -> bool:
        started = time.perf_counter()
        if event.kind == END and SECONDS not in event.body:
            event = self.outbox.amended(event, **{SECONDS: self._seconds[event.run]})
        try:
            self._deliver(event)
        except OutOfReach as error:
            self._has_gone(str(error))
            return False
        except Refused as error:
            self._put_aside(event, str(error))
        except Exception as error:  # an event that nobody can write must not stop all that come after it
            self._put_aside(event, f"unexpected {type(error).__name__}: {error}")
        else:
            self.outbox.done(event)
        self._seconds[event.run] += time.perf_counter() - started
        self._has_answered()
        return True

    def _put_aside(self, event: Event, reason: str) -> None:
        self.outbox.refuse(event, reason)
        if reason not in self._reasons:
            self._reasons.add(reason)
            self._say(f"MLflow refuses what belongs to {event.run}: {reason}; it is kept for `fmnist-search sync`")

    def _has_gone(self, reason: str) -> None:
        now = time.monotonic()
        self._down_since = self._down_since or now
        if not self._said_down and now - self._down_since > QUIET_SECONDS:
            self._said_down = True
            self._say(f"MLflow is out of reach ({reason}); training goes on, the record is kept in {self.outbox.path}")

    def _has_answered(self) -> None:
        if self._said_down and self._down_since:
            self._say(f"MLflow is back after {time.monotonic() - self._down_since:.0f} s; it gets what it has missed")
        self._down_since, self._said_down = None, False

    def _pause(self) -> None:
        assert self._down_since is not None
        length = min(LONGEST_PAUSE, max(FIRST_PAUSE, (time.monotonic() - self._down_since) / 2))
        until = time.monotonic() + length
        while time.monotonic() < until and not self._closing:
            if self._errands.empty():
                time.sleep(0.02)
            else:
                self._do_an_errand()

    def _do_an_errand(self) -> None:
        self._busy = True
        try:
            self._errands.get()()
        except Exception as error:  # a picture that cannot be drawn is no reason to stop a search
            self._say(f"not drawn: {type(error).__name__}: {error}")
        finally:
            self._busy = False
