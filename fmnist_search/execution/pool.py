"""The loop that keeps workers busy, shared by the backends whose workers are reached through a channel."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Self

from fmnist_search.errors import UserError
from fmnist_search.execution.job import Job
from fmnist_search.execution.worker import Worker
from fmnist_search.recipe.execution import Execution

MAX_FAILED_STARTS = 3
"""How often in a row a worker of one number may end before it is ready."""
MAX_UNRECEIVED = 3
"""How many workers may end before they receive a job that was sent to them, until the job counts as the cause."""

StartWorker = Callable[[int, Execution], Worker]
"""Starts the worker of a number without waiting until it is ready."""


class WorkerPool:
    """A fixed number of workers that run jobs, one each at a time.

    A worker that ends is replaced and its job is handed back by `Job.on_worker_lost`; a job that it has not received,
    because it ended while it was idle, is sent to another worker instead. A worker with a `silence_limit` that sends
    nothing for that many seconds is ended first. Silence counts only while the pool waits for messages, and each wait
    counts at most `check_interval` seconds: a pool that was busy or suspended itself ends no worker for that.
    """

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
        self._execution = execution
        self._start_worker = start_worker
        self._check_interval = check_interval
        self._clock = clock
        self._last_check = clock()
        self._failed_starts: Counter[int] = Counter()
        self._unreceived: deque[Job] = deque()
        self._times_unreceived: Counter[Job] = Counter()
        self._is_stopped = False
        self._workers: list[Worker] = []
        self._start_workers(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._join_workers()

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

    def wait_until_ready(self) -> None:
        """Wait until all workers have imported their libraries, so that they disturb no measurement.

        Raises:
            UserError: if workers cannot be started.
        """
        while not all(worker.is_ready for worker in self._workers):
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
            idle = self._submit_jobs(next_job)
            if idle and not any(worker.job for worker in self._workers):
                return
            self._receive()
            for worker in idle:
                worker.mark_free()  # the time without a job is no part of the next job's seconds

    def stop(self) -> None:
        """End the workers without waiting for their jobs; none of the jobs' methods is called any more."""
        self._is_stopped = True
        for worker in self._workers:
            worker.stop()

    def _start_workers(self, size: int) -> None:
        self._workers = []
        try:
            for number in range(size):
                self._workers.append(self._start_worker(number, self._execution))
        except BaseException:
            self.__exit__()
            raise

    def _join_workers(self) -> None:
        for worker in self._workers:
            worker.join()

    def _submit_jobs(self, next_job: Callable[[], Job | None]) -> list[Worker]:
        """Give each free worker a job while there are jobs; return the workers that got none."""
        free = [worker for worker in self._workers if worker.is_free]
        while free and (job := self._unreceived.popleft() if self._unreceived else next_job()) is not None:
            worker = free.pop(0)
            try:
                worker.submit(job, self._execution)
            except TimeoutError:
                self._end_unresponsive(worker)
            except OSError:
                self._replace(worker, worker.join())
        return free

    def _receive(self) -> None:
        """Wait for messages and handle them, until one was more than a heartbeat or a worker was replaced."""
        is_done = False
        while not is_done:
            readable = self._wait_for_messages()
            for worker in list(self._workers):
                if worker in readable:
                    is_done |= self._receive_from(worker)
                elif worker.is_unresponsive:
                    self._end_unresponsive(worker)
                    is_done = True

    def _wait_for_messages(self) -> list[Worker]:
        """Wait until a message arrives or the check interval is over; return the workers whose channel is readable."""
        ready = wait([worker.channel.fileno() for worker in self._workers], self._check_interval)
        now = self._clock()
        seconds = min(now - self._last_check, self._check_interval or 0.0)
        self._last_check = now
        readable = [worker for worker in self._workers if worker.channel.fileno() in ready]
        for worker in self._workers:
            worker.silent_seconds = 0.0 if worker in readable else worker.silent_seconds + seconds
        return readable

    def _receive_from(self, worker: Worker) -> bool:
        """Handle the worker's next message; return False for a heartbeat. What a job raises is not caught."""
        try:
            message = worker.channel.receive()
        except TimeoutError:
            self._end_unresponsive(worker)
            return True
        except (EOFError, OSError):
            self._replace(worker, worker.join())
            return True
        return worker.handle(message)

    def _end_unresponsive(self, worker: Worker) -> None:
        worker.stop()
        worker.join()
        self._replace(worker, f"did not respond for {worker.silence_limit:g} seconds and was ended")

    def _replace(self, worker: Worker, reason: str) -> None:
        """Start another worker in place of one that has ended for this reason, and hand back its job."""
        failed = self._failed_starts[worker.number] = 0 if worker.is_ready else self._failed_starts[worker.number] + 1
        if failed >= MAX_FAILED_STARTS:
            raise UserError(
                f"workers: a worker {worker.kind} could not start {failed} times in a row (it {reason}); "
                "see its messages above, or use --workers 1"
            )
        self._workers[worker.number] = self._start_worker(worker.number, self._execution)
        job = worker.job
        if job is None:
            return
        self._times_unreceived[job] += not worker.has_started
        if not worker.has_started and self._times_unreceived[job] < MAX_UNRECEIVED:
            self._unreceived.append(job)
        else:
            job.on_worker_lost(f"its worker {worker.kind} {reason}")
