"""Several trainings at once: worker processes on a CPU, threads on a GPU, and whoever keeps them busy.

A process that dies takes nothing with it but its training: it is replaced, and whoever sent the training hears why.
Threads share the device's context, so that their kernels run side by side, and its images.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Protocol

import torch

from fmnist_search.data.loading import Images
from fmnist_search.errors import UserError
from fmnist_search.execution.worker_main import READY, STOP, Channel, worker_loop
from fmnist_search.recipe.recipe import Data, Execution, Recipe
from fmnist_search.results.study import Decision, EpochReport, TrialResult

WORKER_MEMORY_BYTES = 1_200 * 2**20
"""Bytes that a worker process may need: torch, the images, and the standard network at large batches."""
MAX_STREAMS = 6
MIN_STEP_SECONDS = 200e-6
"""What a captured step of a small network takes on an H200-class card, however few bytes it moves."""
MAX_FAILED_STARTS = 3
"""Replacements in a row that may die while they load their libraries."""
JOIN_TIMEOUT = 5.0
"""Seconds that a worker gets to leave by itself."""
THREAD_NAME = "training"
"""What a worker's thread is called."""


class Job(Protocol):
    """One training, as the study sees it."""

    recipe: Recipe
    images: Images
    worker: int
    """The number of the worker that runs it."""

    def on_epoch(self, report: EpochReport) -> Decision:
        """Take in an epoch, and say whether the training goes on."""

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Take in the result; `seconds` passed since its worker became free for it."""

    def on_worker_lost(self, reason: str) -> None:
        """The worker has died over it."""


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


def is_training() -> bool:
    """Whether a thread of this process trains, be it for nobody any more: it would end with its epoch."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())


class Worker:
    """One worker, seen from the study: the near end of its line."""

    def __init__(self, channel: Channel):
        self.channel = channel
        self.job: Job | None = None
        self.has_started = False
        self._free_since = 0.0
        self._sent_execution: Execution | None = None

    @property
    def is_free(self) -> bool:
        """Whether it waits for a job."""
        return self.has_started and self.job is None

    def mark_free(self) -> None:
        """Its next job is on the way from now on."""
        self._free_since = time.monotonic()

    def submit(self, job: Job, execution: Execution) -> None:
        """Send it a training, and how it is run."""
        self.job = job
        if execution != self._sent_execution:
            self.channel.send(execution)
            self._sent_execution = execution
        self.channel.send(job.recipe)

    def handle_message(self) -> bool:
        """Take its next message to whom it concerns; False where none will come. What a job raises is not caught."""
        try:
            message = self.channel.receive()
        except (EOFError, OSError):
            return False
        if message == READY:
            self.has_started = True
            self.mark_free()
            return True
        assert self.job is not None
        if isinstance(message, EpochReport):
            decision = self.job.on_epoch(message)
            with contextlib.suppress(OSError):  # it has died: the next time there is nothing to hear
                self.channel.send(decision)
            return True
        job, self.job = self.job, None
        seconds = time.monotonic() - self._free_since
        self.mark_free()
        job.on_result(message, seconds)
        return True

    def request_stop(self) -> None:
        """Ask it to leave."""
        with contextlib.suppress(OSError):
            self.channel.send(STOP)

    def kill(self) -> None:
        """Make it leave."""

    def join(self) -> str:
        """Wait until it has left; how it did."""
        self.channel.close()
        return "ended"


class ThreadWorker(Worker):
    """A thread of this process."""

    def __init__(self, images: dict[Data, Images]):
        near, far = multiprocessing.Pipe()
        super().__init__(Channel(near))
        self._thread = threading.Thread(target=worker_loop, args=(Channel(far), images), name=THREAD_NAME, daemon=True)
        self._thread.start()

    def join(self) -> str:
        """Wait until it has left; in the middle of a training only at the end of the process, which it would abort.

        CPython ends what is left of its daemon threads as they come back from a library, and C++ does not survive that.
        """
        self.channel.close()
        if self.job is None:
            self._thread.join(JOIN_TIMEOUT)
        else:
            atexit.register(self._thread.join)
        return "ended"


class ProcessWorker(Worker):
    """A process of its own, which Ctrl-C in a terminal does not reach."""

    def __init__(self, threads: int):
        near, far = multiprocessing.Pipe()
        super().__init__(Channel(near))
        self._sent_data: set[Data] = set()
        module = f"{__package__}.worker_main"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(far.fileno())],
            pass_fds=[far.fileno()],
            process_group=0,
            env=_worker_environment(threads),
            stdin=subprocess.DEVNULL,
        )
        far.close()

    def submit(self, job: Job, execution: Execution) -> None:
        """Send it a training, and how it is run; the images before it if it does not have them."""
        self.job = job
        if job.recipe.data not in self._sent_data:
            self.channel.send((job.recipe.data, job.images))
            self._sent_data.add(job.recipe.data)
        super().submit(job, execution)

    def request_stop(self) -> None:
        """Send it away: it holds nothing that is worth a goodbye."""
        self.kill()

    def kill(self) -> None:
        """End it."""
        self._process.kill()

    def join(self) -> str:
        """Wait until it has left; how it did."""
        self.channel.close()
        try:
            code = self._process.wait(JOIN_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was killed ({name}{', perhaps for want of memory' if -code == signal.SIGKILL else ''})"


def _worker_environment(threads: int) -> dict[str, str]:
    """This process's, with its import path and the number of threads, which libraries read as they are loaded."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(max(threads, 1))}


# ----------------------------------------------------------------------------------- how many


def worker_count(requested: int | str, execution: Execution, step_bytes: Sequence[int] = ()) -> tuple[int, str]:
    """How many workers run at a time, and a line that says why where it is not what was asked for.

    "auto" takes what fits: on a CPU as many as there are cores for their threads and memory for their processes; on a
    GPU, one for the plain loop, and for captured graphs so many that steps of `step_bytes` keep the card busy.
    """
    if torch.device(execution.device).type != "cpu":
        return _device_worker_count(requested, execution, step_bytes)
    import joblib
    import psutil  # neither is there on a bare machine on which the engine is measured

    cores, threads = joblib.cpu_count(), max(execution.threads, 1)
    memory = psutil.virtual_memory().available
    fits = max(1, min(cores // threads, memory // WORKER_MEMORY_BYTES))
    if requested == "auto":
        return fits, ""
    if int(requested) > fits:
        has = f"{cores} cores and {memory / 2**30:.1f} GiB of free memory"
        each = f"{threads} thread{'s' * (threads > 1)} and {WORKER_MEMORY_BYTES / 2**30:.1f} GiB each"
        return fits, f"execution.workers: {requested} with {each} is more than {has}; {fits} at a time"
    return int(requested), ""


def _device_worker_count(requested: int | str, execution: Execution, step_bytes: Sequence[int]) -> tuple[int, str]:
    if requested != "auto":
        return int(requested), ""
    if execution.engine != "graph" or not step_bytes:
        return 1, ""
    properties = torch.cuda.get_device_properties(torch.device(execution.device))
    bandwidth = properties.memory_clock_rate * 1e3 * 2 * properties.memory_bus_width / 8
    typical = sorted(step_bytes)[len(step_bytes) // 2]
    count = min(MAX_STREAMS, 1 + round(MIN_STEP_SECONDS * bandwidth / max(typical, 1)))
    return (
        count,
        f"{count} trials at a time: a typical step moves {typical / 1e6:.0f} MB at {bandwidth / 1e12:.1f} TB/s",
    )
