"""Several trainings at once: worker processes on a CPU, threads on a GPU, and whoever keeps them busy.

A process that dies takes nothing with it but its training: it is replaced, and whoever sent the training hears why.
Threads share the device's context, so that their kernels run side by side, and its images.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import wait

import torch

from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.execution.capacity import worker_count
from fmnist_search.execution.job import Job
from fmnist_search.execution.worker import ProcessWorker, ThreadWorker, Worker
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Data

MAX_FAILED_STARTS = 3
"""Replacements in a row that may die while they load their libraries."""


class WorkerPool:
    """Workers that run jobs, as many at a time as there are of them.

    One alone is a thread of this process: it starts at once, and dies with it. Processes take seconds to start, so
    `execution`, of which they need the device and the threads at once, may be refined until the first job.
    """

    def __init__(self, execution: Execution, size: int):
        self.execution = execution
        self._in_threads = size == 1 or torch.device(execution.device).type != "cpu"
        self._images: dict[Data, Images] = {}
        self._has_received = False
        self._failed_starts = 0
        self._workers = [self._spawn() for _ in range(size)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._shutdown()

    def _shutdown(self) -> None:
        for worker in self._workers:
            worker.request_stop()
        for worker in self._workers:
            worker.join()

    def configure(self, execution: Execution) -> None:
        """How jobs are run from now on, none having been begun; other threads than at first take other processes."""
        if execution.threads != self.execution.threads and not self._in_threads:
            self._shutdown()
            size, _ = worker_count(self.size, execution)
            self._in_threads = size == 1
            self.execution = execution
            self._workers = [self._spawn() for _ in range(size)]
        self.execution = execution

    def wait_until_ready(self) -> None:
        """Until all have loaded what they need, so that they disturb no measurement.

        Raises:
            UserError: worker processes cannot be started.
        """
        while not all(worker.has_started for worker in self._workers):
            self._receive()

    @property
    def size(self) -> int:
        """How many jobs run at a time."""
        return len(self._workers)

    def run(self, next_job: Callable[[], Job | None]) -> None:
        """Keep the workers busy until there is no next job and all have ended.

        `next_job` is asked whenever a worker is free; None means that there is none at the moment.

        Raises:
            UserError: worker processes cannot be started.
        """
        for worker in self._workers:
            worker.mark_free()
        while True:
            free = [worker for worker in self._workers if worker.is_free]
            for worker in free:
                job = next_job()
                if job is None:
                    break
                self._submit(worker, job)
            else:
                free = []
            if free and not any(worker.job for worker in self._workers):
                return
            self._receive()
            for worker in free:
                if worker.is_free:  # there was nothing for it, which is no job's fault
                    worker.mark_free()

    def stop(self) -> None:
        """End the worker processes in the middle of what they do; threads end with their epoch."""
        for worker in self._workers:
            worker.kill()

    def _spawn(self) -> Worker:
        if self._in_threads:
            return ThreadWorker(self._images)
        return ProcessWorker(self.execution.threads)

    def _submit(self, worker: Worker, job: Job) -> None:
        if self._in_threads:
            self._images[job.recipe.data] = job.images
        job.worker = self._workers.index(worker)
        try:
            worker.submit(job, self.execution)
        except OSError:
            self._replace(worker)

    def _receive(self) -> None:
        lines = {worker.channel.connection: worker for worker in self._workers}
        for connection in wait(list(lines)):
            worker = lines[connection]  # type: ignore[index]
            if worker.handle_message():
                self._has_received = True
            else:
                self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        reason = worker.join()
        self._failed_starts = 0 if worker.has_started else self._failed_starts + 1
        if self._failed_starts > (MAX_FAILED_STARTS if self._has_received else 0):
            raise UserError(
                f"workers: a worker process could not start ({reason}); see what it says above, or take --workers 1"
            )
        self._workers[self._workers.index(worker)] = self._spawn()
        if worker.job:
            worker.job.on_worker_lost(f"its worker process {reason}")
