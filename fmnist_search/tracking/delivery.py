"""The delivery of the events of an outbox to MLflow: which are sent next, and what becomes of those that fail."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import Enum, auto

from fmnist_search.text import first_line
from fmnist_search.tracking.events import EndRun, Event, EventKind
from fmnist_search.tracking.merging import merge_events
from fmnist_search.tracking.outbox import EventRejected, Outbox, StoreUnavailable
from fmnist_search.tracking.outbox_file import OutboxError
from fmnist_search.tracking.store_outage import StoreOutage

MAX_EVENT_SECONDS = 120.0
"""A sender that takes longer for one event loses the lease: its connection may hang."""

WriteEvent = Callable[[Event], None]
"""Writes an event to the store. Raises StoreUnavailable if the event is to be sent again later, and EventRejected if
the store will never take it."""


class Step(Enum):
    """What came of the attempt to deliver events."""

    DELIVERED = auto()
    NOTHING_PENDING = auto()
    SENT_BY_ANOTHER = auto()
    IN_PROGRESS = auto()
    STORE_DOWN = auto()
    OUTBOX_FAILED = auto()


class Delivery:
    """Delivers the events of an outbox, run by run, while it has the lease of the outbox."""

    def __init__(
        self, outbox: Outbox, write_event: WriteEvent, print_message: Callable[[str], None], notice_seconds: float
    ):
        self._outbox = outbox
        self._outage = StoreOutage(outbox.path, print_message, notice_seconds)
        self._write_event = write_event
        self._print_message = print_message
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._writing_since: float | None = None
        self._outbox_error = ""
        self._reported_reasons: set[str] = set()
        self.is_blocked = False
        """Whether another sender has the lease."""

    def seconds(self, run_key: str) -> float:
        """Return the seconds that the delivery of the events of a run has taken so far."""
        return self._seconds.get(run_key, 0.0)

    def all_seconds(self) -> dict[str, float]:
        """Return these seconds by run."""
        return dict(self._seconds)

    @property
    def problem(self) -> str:
        """Why events are not delivered; empty unless something has failed or another sender has the lease."""
        if self._outbox_error or self._outage.problem:
            return self._outbox_error or self._outage.problem
        if self.is_blocked and (holder := self._outbox.lease.holder):
            return f"{holder} sends the events of all processes of this folder to MLflow and has not sent all"
        return ""

    def try_step(self, *, at_once: bool) -> Step:
        """Try to deliver the next events of a run; `at_once`, even if it is too early to try a store that is down.

        A failure of the outbox is kept as the `problem` until it has passed.
        """
        try:
            step = self._deliver_next(at_once=at_once)
        except OutboxError as error:
            self._outbox_error = str(error)
            return Step.OUTBOX_FAILED
        self._outbox_error = ""
        return step

    def keep_lease(self) -> None:
        """Renew the lease if an event takes long; a process that is stopped renews nothing and loses it."""
        since = self._writing_since
        if since is not None and time.monotonic() - since < MAX_EVENT_SECONDS:
            with contextlib.suppress(OutboxError):
                self._outbox.lease.renew()

    def close(self) -> None:
        """Do nothing: a thread that has ended delivers nothing."""

    def _deliver_next(self, *, at_once: bool) -> Step:
        """Try to deliver events. The lease is kept for the next ones if it succeeded, and released otherwise."""
        if self._outage.is_waiting and not at_once:
            return Step.STORE_DOWN
        if not self._outbox.has_pending:
            self._outbox.lease.release()
            self.is_blocked = False
            self._outage.end()
            return Step.NOTHING_PENDING
        if not self._outbox.lease.acquire():
            self.is_blocked = True
            return Step.SENT_BY_ANOTHER
        self.is_blocked = False
        try:
            self._deliver(self._outbox.next_events())
        except StoreUnavailable as error:
            self._outage.begin(error)
            self._outbox.lease.release()
            return Step.STORE_DOWN
        return Step.DELIVERED

    def _deliver(self, events: Sequence[Event]) -> None:
        """Deliver events of a run, and remove those that the store has taken, also if it fails after some of them."""
        taken: list[Event] = []
        try:
            for merged, parts in merge_events(events):
                if merged.kind == EventKind.END_RUN:  # only now it is known how long the others took
                    end = self._with_tracking_seconds(parts[-1])
                    if end is None:
                        break
                    ((merged, parts),) = merge_events([*parts[:-1], end])
                reason = self._write(merged)
                if not reason:
                    taken += parts
                elif not self._deliver_one_by_one(parts, reason):
                    break
        finally:
            if taken:
                self._outbox.mark_delivered(*taken)

    def _deliver_one_by_one(self, events: Sequence[Event], reason: str) -> bool:
        """Deliver events that were rejected together; return whether the later ones of the run may be delivered.

        Those that are rejected alone as well are kept. If the store takes none after them, it takes no more of the run.
        """
        rejected: list[tuple[Event, str]] = []
        for event in events:
            own_reason = self._write(event) if len(events) > 1 else reason
            if own_reason:
                rejected.append((event, own_reason))
                continue
            self._reject(rejected, alone=True)
            self._outbox.mark_delivered(event)
            rejected = []
        self._reject(rejected[:1])
        return not rejected

    def _write(self, event: Event) -> str:
        """Write an event; return why the store will never take it, an empty text if it has taken it."""
        started = time.perf_counter()
        self._writing_since = time.monotonic()
        try:
            self._write_event(event)
        except (StoreUnavailable, OutboxError):
            raise
        except EventRejected as error:
            reason = str(error)
        except Exception as error:  # an event that cannot be written must not stop the events after it
            reason = f"unexpected {type(error).__name__}: {first_line(error)}"
        else:
            reason = ""
        finally:
            self._writing_since = None
        self._seconds[event.run_key] += time.perf_counter() - started
        self._outage.end()
        return reason

    def _with_tracking_seconds(self, event: Event) -> Event | None:
        """Return the last event of a run, which gets, once, how long its events took that have been written.

        Return None if another process, which took this one for dead, has delivered the event.
        """
        try:
            end = EndRun.from_body(event.body)
        except (KeyError, TypeError):  # it is rejected when it is written
            return event
        if end.tracking_seconds is not None:
            return event
        end = dataclasses.replace(end, tracking_seconds=self._seconds[event.run_key])
        return self._outbox.update_body(event, end.to_body())

    def _reject(self, rejected: Sequence[tuple[Event, str]], *, alone: bool = False) -> None:
        for event, reason in rejected:
            self._outbox.reject(event, reason, alone=alone)
            if reason not in self._reported_reasons:
                self._reported_reasons.add(reason)
                refused = f"MLflow refuses events of the run {event.run_key}: {reason}"
                self._print_message(f"{refused}; they are kept for `fmnist-search sync`")
