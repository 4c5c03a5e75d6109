"""What runs trials: the interface of an execution backend, and the choice of one."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from fmnist_search.execution.job import Job
from fmnist_search.execution.pool import Result
from fmnist_search.execution.process_backend import DEFAULT_LIVENESS, Liveness, ProcessBackend
from fmnist_search.recipe.execution import Execution


class Backend(Protocol):
    """Runs jobs, several at a time. A context manager: leaving it ends all workers.

    `tests/contract/test_backends.py` tests what every backend has to do.
    """

    @property
    def execution(self) -> Execution:
        """How jobs are run."""

    @property
    def size(self) -> int:
        """How many jobs run at a time."""

    @property
    def images_device(self) -> str:
        """The device on which the images of jobs have to be: theirs, if jobs share the memory of this process."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def configure(self, execution: Execution) -> None:
        """Run all following jobs in this way, which may change `size`. Must not be called while `run` runs."""

    def wait_until_ready(self) -> None:
        """Wait until all workers can start a job at once; if their number varies, until one can.

        Raises:
            UserError: if workers cannot be started.
        """

    def run_on_worker(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return what a function returns on a machine that runs jobs, which this one may not do.

        The function and what it takes and returns can be pickled. Must not be called while `run` runs.

        Raises:
            Exception: whatever the function raises.
        """

    def run(self, next_job: Callable[[], Job | None]) -> None:
        """Run jobs until `next_job` returns None and all jobs have ended.

        `next_job` is called when a worker is free, and after a None again after every event of a running job. The jobs'
        methods are called in this thread; what they or `next_job` raise is raised here.

        Raises:
            UserError: if workers cannot be started.
        """

    def stop(self) -> None:
        """End the workers without waiting for their jobs; the backend runs no more jobs."""


BackendFactory = Callable[[Execution, int], Backend]
"""Returns a backend that runs so many jobs at a time."""


def make_backend(execution: Execution, size: int, liveness: Liveness = DEFAULT_LIVENESS, kind: str = "auto") -> Backend:
    """Return a backend for this machine that runs `size` jobs at a time; `liveness` says when a process counts as lost.

    With the `kind` "auto", one worker is a thread, which starts at once; several on a GPU are threads, which share its
    context. Several on the CPU are processes: Python's global interpreter lock would slow threads down. The kinds
    "threads" and "processes" choose one of the two.
    """
    if kind == "threads" or (kind == "auto" and (size == 1 or execution.device != "cpu")):
        from fmnist_search.execution.thread_backend import ThreadBackend  # imports torch

        return ThreadBackend(execution, size)
    return ProcessBackend(execution, size, liveness=liveness)
