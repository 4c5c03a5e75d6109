"""Workers that are processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.execution.capacity import worker_count
from fmnist_search.execution.channel import Channel, socket_pair
from fmnist_search.execution.job import Job
from fmnist_search.execution.messages import AddImages
from fmnist_search.execution.pool import WorkerPool
from fmnist_search.execution.worker import ChannelWorker, Worker, by_number
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.plugins import VARIABLE, plugin_modules

JOIN_TIMEOUT_SECONDS = 5.0
"""How long the end of a process is waited for before it is killed."""
MAX_HEARTBEAT_INTERVAL = 5.0


@dataclass(frozen=True)
class Liveness:
    """When a worker process counts as lost; all values are seconds.

    A worker sends a heartbeat every `heartbeat_interval` from a thread of its own, also during a step or a graph
    capture. One that sends nothing for `heartbeat_timeout` is ended: its process was stopped, or a call that holds the
    global interpreter lock hangs. `start_timeout` applies until the worker is ready: imports can delay heartbeats.

    A call that hangs without holding the lock does not stop the heartbeats and is not noticed. A limit on the time
    between epoch reports would notice it, but no value fits both trainings of seconds and those whose epochs take
    hours, and a value that is too low ends trainings that are in order.
    """

    heartbeat_interval: float = 3.75
    heartbeat_timeout: float = 30.0
    start_timeout: float = 300.0

    def __post_init__(self) -> None:
        if not 0 < 2 * self.heartbeat_interval <= self.heartbeat_timeout:
            raise ValueError(
                f"heartbeat_timeout: {self.heartbeat_timeout:g} must be at least two intervals of "
                f"{self.heartbeat_interval:g} seconds"
            )

    @classmethod
    def of_heartbeat(cls, seconds: float) -> Liveness:
        """Return the times for `execution.heartbeat_seconds`: a worker that misses two heartbeats is ended.

        Workers send several in that time, so that the pool notices soon after the second one that it is missing, and so
        that a worker notices within seconds that its pool has gone.
        """
        return cls(heartbeat_interval=min(seconds / 4, MAX_HEARTBEAT_INTERVAL), heartbeat_timeout=2 * seconds)


DEFAULT_LIVENESS = Liveness()
_processes: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()


def kill_worker_processes() -> None:
    """Kill all worker processes of this process, without waiting for anything. Any thread may call it."""
    for process in list(_processes):
        process.kill()


class ProcessBackend(WorkerPool):
    """Runs jobs in worker processes.

    They take seconds to start and do so in the background. A process that dies or stops responding loses its own job
    only. `execution` gives the number of threads that a process starts with; `command` is how a process is started,
    by default `python -m fmnist_search.execution.worker_main`.
    """

    def __init__(
        self,
        execution: Execution,
        size: int,
        *,
        liveness: Liveness = DEFAULT_LIVENESS,
        command: Sequence[str] | None = None,
    ):
        def start_worker(number: int, execution: Execution) -> Worker:
            return ProcessWorker(number, execution.threads, liveness, command or default_command())

        super().__init__(execution, size, start_worker, check_interval=liveness.heartbeat_interval)

    @property
    def worker_pids(self) -> list[int]:
        """The process ids by worker number."""
        return [worker.pid for worker in by_number(self._workers) if isinstance(worker, ProcessWorker)]

    def configure(self, execution: Execution) -> None:
        """Run all following jobs in this way; another number of threads restarts the processes, as many as fit."""
        needs_restart = execution.threads != self._execution.threads
        self._execution = execution
        if needs_restart:
            size = self.size
            self._end_workers()
            self._places = range(worker_count(size, execution)[0])
            self._start_workers()


class ProcessWorker(ChannelWorker):
    """A process in a process group of its own, so that Ctrl-C in a terminal does not reach it."""

    kind = "process"

    def __init__(self, number: int, threads: int, liveness: Liveness, command: Sequence[str]):
        near, far = socket_pair()
        super().__init__(number, Channel(near, liveness.heartbeat_timeout))
        self._liveness = liveness
        self._sent_data: set[Data] = set()
        with far:
            self._process = subprocess.Popen(
                [*command, str(far.fileno()), str(liveness.heartbeat_interval)],
                pass_fds=[far.fileno()],
                process_group=0,
                env=_worker_environment(threads),
                stdin=subprocess.DEVNULL,
            )
        _processes.add(self._process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def silence_limit(self) -> float:
        """Seconds without a message after which the process counts as lost."""
        return self._liveness.heartbeat_timeout if self.is_ready else self._liveness.start_timeout

    def stop(self) -> None:
        """Kill the process, which holds nothing that has to be saved."""
        self._process.kill()

    def join(self) -> str:
        """Close the channel, wait until the process has ended, and return how."""
        self.channel.close()
        try:
            code = self._process.wait(JOIN_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was killed ({name}{', possibly because memory ran out' if -code == signal.SIGKILL else ''})"

    def _provide_images(self, job: Job) -> None:
        if job.recipe.data not in self._sent_data:
            self.channel.send(AddImages(job.recipe.data, job.images))
            self._sent_data.add(job.recipe.data)


def default_command() -> list[str]:
    """Return the command that starts a worker process, without its arguments."""
    return [sys.executable, "-P", "-m", f"{__package__}.worker_main"]  # imports nothing from the current folder


def _worker_environment(threads: int) -> dict[str, str]:
    """Return this process's environment with its import path and the number of threads, read at import by libraries."""
    paths = os.pathsep.join(path for path in sys.path if path)
    plugins = os.pathsep.join(plugin_modules())
    return {**os.environ, VARIABLE: plugins, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(max(threads, 1))}
