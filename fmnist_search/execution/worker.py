"""One worker of the pool, as a thread or as a process."""

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

from fmnist_search.data.images import Images
from fmnist_search.execution.channel import READY, STOP, Channel
from fmnist_search.execution.job import Job
from fmnist_search.execution.worker_main import worker_loop
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Data
from fmnist_search.results.training import EpochReport

JOIN_TIMEOUT = 5.0
"""Seconds that a worker gets to leave by itself."""
THREAD_NAME = "training"
"""What a worker's thread is called."""


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
