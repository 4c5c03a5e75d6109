"""The loop that keeps workers busy, shared by all backends."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from fmnist_search.errors import UserError
from fmnist_search.execution.inbox import ChannelInbox, Inbox
from fmnist_search.execution.job import Job
from fmnist_search.execution.roster import Roster
from fmnist_search.execution.worker import Worker
from fmnist_search.recipe.execution import Execution

MAX_FAILED_STARTS = 3
"""How often in a row a worker of one number may end before it is ready."""
MAX_UNRECEIVED = 3
"""How many workers may end before they receive a job that was sent to them, until the job counts as the cause."""

Result = TypeVar("Result")
StartWorker = Callable[[int, Execution], Worker]
"""Starts the worker of a number without waiting until it is ready."""


class Pool(ABC):
    """Workers that run jobs, one each at a time; a subclass says which workers there are.

    A worker that ends is replaced and its job is handed back by `Job.on_worker_lost`; a job that it has not received,
    because it ended while it was idle, is sent to another worker instead. A worker with a `silence_limit` that sends
    nothing for that many seconds is ended first. Silence counts only while the pool waits for messages, and each wait
    counts at most `check_interval` seconds: a pool that was busy or suspended itself ends no worker for that.

    An event costs the same with any number of workers, except once in each `check_interval`.
    """

    def __init__(
        self,
        execution: Execution,
        inbox: Inbox,
        *,
        check_interval: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._execution = execution
        self._inbox = inbox
        self._check_interval = check_interval
        self._clock = clock
        self._waited = self._checked_at = 0.0
        self._last_wait = clock()
        self._idle = (0.0, 0.0)
        """When the last wait began during which workers had no job, and when it ended."""
        self._unreceived: deque[Job] = deque()
        self._times_unreceived: Counter[Job] = Counter()
        self._is_stopped = False
        self._workers = Roster()
        self._start_workers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for worker in self._workers:
            self._remove(worker)
            worker.join()
        self._inbox.close()

    @property
    def execution(self) -> Execution:
        """How jobs are run."""
        return self._execution

    @property
    def size(self) -> int:
        """How many jobs run at a time."""
        return len(self._workers)

    def configure(self, execution: Execution) -> None:
        """Run all following jobs in this way. Must not be called while `run` runs."""
        self._execution = execution

    @property
    def images_device(self) -> str:
        """The device on which the images of jobs have to be; a worker moves them on if it has to."""
        return "cpu"

    def run_on_worker(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return what a function returns on a machine that runs jobs: this one."""
        return function(*arguments)

    def wait_until_ready(self) -> None:
        """Wait until all workers have imported their libraries, so that they disturb no measurement.

        Raises:
            UserError: if workers cannot be started.
        """
        while self._workers.starting_count:
            self._receive()

    def run(self, next_job: Callable[[], Job | None]) -> None:
        """Run jobs until `next_job` returns None and all jobs have ended.

        `next_job` is called when a worker is free, and after a None again after every event of a running job.

        Raises:
            UserError: if workers cannot be started.
        """
        if self._is_stopped:
            raise RuntimeError("this backend was stopped and runs no more jobs")
        self._unreceived.clear()
        self._times_unreceived.clear()
        for worker in self._workers:
            worker.mark_free()
        while True:
            self._submit_jobs(next_job)
            if self._has_ended(next_job):
                return
            has_idle, started = self._workers.free_count > 0, time.monotonic()
            self._receive()
            if has_idle:
                self._idle = started, time.monotonic()

    def stop(self) -> None:
        """End the workers without waiting for their jobs; none of the jobs' methods is called any more."""
        self._is_stopped = True
        for worker in self._workers:
            worker.stop()

    # ------------------------------------------------------------------------------------ what a subclass may change

    @abstractmethod
    def _fill_places(self) -> None:
        """Start the workers that are missing, without waiting until they are ready.

        Raises:
            UserError: if workers cannot be started.
        """

    def _check(self) -> bool:
        """Do what is due after each check interval; return whether it was an event after which jobs are looked for."""
        silent = [worker for worker in self._workers if worker.is_unresponsive(self._waited)]
        for worker in silent:
            self._end_unresponsive(worker)
        return bool(silent)

    def _has_ended(self, next_job: Callable[[], Job | None]) -> bool:
        """Return whether there is nothing to do or to wait for, now that no more jobs can be submitted."""
        return self._workers.free_count > 0 and self._workers.busy_count == 0

    def _count_start(self, worker: Worker, reason: str) -> None:  # noqa: B027
        """Take note of a worker that has ended, perhaps before it was ready.

        Raises:
            UserError: if workers cannot be started.
        """

    # ------------------------------------------------------------------------------------------------ the workers

    def _start_workers(self) -> None:
        try:
            self._fill_places()
        except BaseException:
            self.__exit__()
            raise

    def _end_workers(self) -> None:
        """End all workers, which have no jobs."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            self._remove(worker)
            worker.join()

    def _add(self, worker: Worker) -> None:
        worker.heard_at = self._waited
        self._workers.add(worker)
        self._inbox.add(worker)

    def _remove(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._inbox.remove(worker)

    def _submit_jobs(self, next_job: Callable[[], Job | None]) -> None:
        """Give each free worker a job while there are jobs."""
        while worker := self._workers.first_free():
            job = self._unreceived.popleft() if self._unreceived else next_job()
            if job is None:
                return
            idle_from, idle_until = self._idle
            if worker.free_since <= idle_from:
                worker.free_since = idle_until  # the time without a job is no part of the job's seconds
            try:
                worker.submit(job, self._execution)
            except TimeoutError:
                self._end_unresponsive(worker)
            except OSError:
                self._replace(worker)
            else:
                self._workers.update(worker)

    def _receive(self) -> None:
        """Wait for messages and handle them, until one was more than a heartbeat or a worker was replaced."""
        is_done = False
        while not is_done:
            ready = self._wait_for_messages()
            for worker in ready:
                if worker in self._workers:
                    is_done |= self._receive_from(worker)
            if self._check_interval and (not ready or self._waited - self._checked_at >= self._check_interval):
                self._checked_at = self._waited
                is_done |= self._check()

    def _wait_for_messages(self) -> Sequence[Worker]:
        """Wait until a message arrives or the check interval is over; return the workers that have sent one."""
        ready = self._inbox.wait(self._check_interval)
        now = self._clock()
        self._waited += min(now - self._last_wait, self._check_interval or 0.0)
        self._last_wait = now
        for worker in ready:
            worker.heard_at = self._waited
        return ready

    def _receive_from(self, worker: Worker) -> bool:
        """Handle the worker's next messages; return False for a heartbeat. What a job raises is not caught."""
        try:
            messages = worker.receive()
        except TimeoutError:
            self._end_unresponsive(worker)
            return True
        except (EOFError, OSError):
            self._replace(worker)
            return True
        is_done = False
        try:
            for message in messages:
                is_done |= worker.handle(message)
            return is_done
        finally:
            self._workers.update(worker)

    def _end_unresponsive(self, worker: Worker) -> None:
        worker.stop()
        self._replace(worker, f"did not respond for {worker.silence_limit:g} seconds and was ended")

    def _replace(self, worker: Worker, reason: str | None = None) -> None:
        """Start another worker in place of one that has ended, for this reason if given, and hand back its job."""
        self._remove(worker)
        how = worker.join()
        reason = reason or how
        self._count_start(worker, reason)
        self._fill_places()
        if worker.job:
            self._hand_back(worker, worker.job, f"its worker {worker.kind} {reason}")

    def _hand_back(self, worker: Worker, job: Job, reason: str) -> None:
        self._times_unreceived[job] += not worker.has_started
        if not worker.has_started and self._times_unreceived[job] < MAX_UNRECEIVED:
            self._unreceived.append(job)
        else:
            job.on_worker_lost(reason, worker.loss_cause)


class WorkerPool(Pool):
    """A fixed number of workers that are reached through sockets; one that ends is replaced by one of its number."""

    def __init__(
        self,
        execution: Execution,
        size: int,
        start_worker: StartWorker,
        *,
        check_interval: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self._places = range(size)
        self._start_worker = start_worker
        self._failed_starts: Counter[int] = Counter()
        super().__init__(execution, ChannelInbox(), check_interval=check_interval, clock=clock)

    def _fill_places(self) -> None:
        for number in self._places:
            if number not in self._workers.numbers:
                self._add(self._start_worker(number, self._execution))

    def _count_start(self, worker: Worker, reason: str) -> None:
        failed = self._failed_starts[worker.number] = 0 if worker.is_ready else self._failed_starts[worker.number] + 1
        if failed >= MAX_FAILED_STARTS:
            raise UserError(
                f"workers: a worker {worker.kind} could not start {failed} times in a row (it {reason}); "
                "see its messages above, or use --workers 1"
            )
