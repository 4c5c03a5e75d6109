"""The sender: a thread, or a process, that delivers the events of an outbox to MLflow while trials train.

A worker that logs something never waits for MLflow, and only the sender waits for a store that is down.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from fmnist_search.text import first_line
from fmnist_search.tracking.delivery import Delivery, Step, WriteEvent
from fmnist_search.tracking.delivery_process import DeliveryProcess
from fmnist_search.tracking.events import Event, RunProgress
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.sender_lease import RENEWAL_SECONDS
from fmnist_search.tracking.store_outage import OUTAGE_NOTICE_SECONDS

LOCK_POLL_SECONDS = 0.1
"""Seconds between two checks whether another sender has delivered everything."""
CLOSE_WAIT_SECONDS = 10.0
"""A sender that is closed waits so long for another one that is delivering its events."""
OUTBOX_RETRY_SECONDS = 1.0
MIN_FLUSH_POLL_SECONDS, MAX_FLUSH_POLL_SECONDS = 0.01, 0.1
"""Bounds of the time between two looks of a flush at the outbox, which grows with how long it waits."""

PAUSES = {
    Step.IN_PROGRESS: LOCK_POLL_SECONDS,
    Step.SENT_BY_ANOTHER: LOCK_POLL_SECONDS,
    Step.STORE_DOWN: 0.02,
    Step.OUTBOX_FAILED: OUTBOX_RETRY_SECONDS,
}
"""Seconds before the next attempt."""


class NullSender:
    """A sender that discards everything, for studies that are not tracked."""

    problem = ""

    def send(self, *events: Event, progress: RunProgress | None = None) -> None:
        """Do nothing."""

    def claim_run(self, run_key: str) -> str:
        """Return an empty name."""
        return ""

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

    With a `DeliveryProcess` in place of a function that writes, the process delivers, and the thread runs the tasks.
    Several senders may share an outbox. One of them at a time has its lease, and delivers the events of all until none
    is pending. The others run their tasks in the meantime.
    """

    def __init__(
        self,
        outbox: Outbox,
        deliver: WriteEvent | DeliveryProcess,
        print_message: Callable[[str], None],
        outage_notice_seconds: float = OUTAGE_NOTICE_SECONDS,
    ):
        self.outbox = outbox
        self._delivery = (
            deliver
            if isinstance(deliver, DeliveryProcess)
            else Delivery(outbox, deliver, print_message, outage_notice_seconds)
        )
        self._print_message = print_message
        self._idle_tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._busy = False
        self._last_number = outbox.last_number
        self._wakeup = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run_loop, name="sender", daemon=True)
        self._thread.start()
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(target=self._keep_lease, name="sender heartbeat", daemon=True)
        self._heartbeat.start()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *events: Event, progress: RunProgress | None = None) -> None:
        """Take events, all or none, and deliver them after all that were sent before."""
        self._last_number = self.outbox.put(*events, progress=progress)
        self._wakeup.set()

    def claim_run(self, run_key: str) -> str:
        """Let only the caller send events with the progress of a run from now on; return its name as a writer."""
        return self.outbox.claim_run(run_key)

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
        return self._delivery.seconds(run_key)

    def all_tracking_seconds(self) -> dict[str, float]:
        """Return these seconds by run."""
        return self._delivery.all_seconds()

    def wake(self) -> None:
        """Look for events that other processes have put into the outbox."""
        self._wakeup.set()

    def run_when_idle(self, task: Callable[[], None]) -> None:
        """Run the task in this thread of the sender when it has no event to deliver, or while the store is down."""
        self._idle_tasks.put(task)
        self._wakeup.set()

    def flush(self, timeout: float, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Wait until all events have been delivered, those that an earlier process left included.

        Return False if the store is down and has taken nothing for `timeout` seconds, or `should_stop` returns True
        while the store is down or another sender delivers. Then `problem` names the cause. Rejected events are not
        waited for.
        """
        self.outbox.stop_deferring(self._last_number)  # else they would wait for the events of other processes
        started = since = time.monotonic()
        last_count, is_reported = -1, False
        while True:
            has_task = self._has_task  # read before the outbox: a task may send events
            now, pending = time.monotonic(), self.outbox.pending_count(self._last_number)
            if not pending and not has_task:
                return True
            if pending != last_count:
                last_count, since = pending, now
            if not self._thread.is_alive() or (self.problem and should_stop()):
                return False
            if now - since > timeout and self.problem:
                if not self.is_blocked:
                    return False
                if not is_reported:  # it loses the lease if it hangs, so this ends
                    self._print_message(f"{self.problem}; this one waits for it")
                    is_reported = True
            time.sleep(min(MAX_FLUSH_POLL_SECONDS, max(MIN_FLUSH_POLL_SECONDS, (now - started) / 20)))

    @property
    def problem(self) -> str:
        """Why events are not delivered; empty unless something has failed or another sender has the lease."""
        if not self._thread.is_alive():
            return "the thread that sends to MLflow has ended"
        return self._delivery.problem

    @property
    def is_blocked(self) -> bool:
        """Whether another sender has the lease."""
        return self._delivery.is_blocked

    def close(self) -> None:
        """End the thread once all events have been delivered, or as soon as the store cannot be reached."""
        self._closing = True
        self._wakeup.set()
        self._thread.join()
        self._ended.set()
        self._heartbeat.join()
        self._delivery.close()
        self.outbox.close()

    @property
    def _has_task(self) -> bool:
        return self._busy or not self._idle_tasks.empty()

    def _run_loop(self) -> None:
        close_by: float | None = None
        while True:
            closing = self._closing  # read before the outbox: events that were sent before `close` are delivered
            step = self._delivery.try_step(at_once=closing)
            if step is Step.DELIVERED:
                continue
            if step in (Step.STORE_DOWN, Step.OUTBOX_FAILED) and closing:
                return
            if not self._idle_tasks.empty():
                self._run_idle_task()
                continue
            if closing:
                close_by = close_by or time.monotonic() + CLOSE_WAIT_SECONDS
                if step is Step.NOTHING_PENDING or time.monotonic() > close_by:
                    return
            self._wait_after(step)

    def _wait_after(self, step: Step) -> None:
        if step is Step.NOTHING_PENDING:
            self._wakeup.wait()
            self._wakeup.clear()
        else:
            time.sleep(PAUSES[step])

    def _keep_lease(self) -> None:
        while not self._ended.wait(RENEWAL_SECONDS):
            self._delivery.keep_lease()

    def _run_idle_task(self) -> None:
        self._busy = True
        try:
            self._idle_tasks.get()()
        except Exception as error:  # a figure that cannot be drawn must not stop a search
            self._print_message(f"a figure was not drawn: {type(error).__name__}: {first_line(error)}")
        finally:
            self._busy = False
