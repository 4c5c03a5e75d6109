"""Runs several trials at a time: jobs, the backends that run them, and how many a machine can run."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach

if TYPE_CHECKING:
    from fmnist_search.execution.backend import Backend, make_backend
    from fmnist_search.execution.capacity import worker_count
    from fmnist_search.execution.job import Job, LossCause

__all__ = ["Backend", "Job", "LossCause", "make_backend", "worker_count"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Backend": "backend",
        "Job": "job",
        "LossCause": "job",
        "make_backend": "backend",
        "worker_count": "capacity",
    },
)
