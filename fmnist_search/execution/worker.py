"""One worker as its pool sees it."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod

from fmnist_search.execution.channel import PoolChannel
from fmnist_search.execution.job import Job
from fmnist_search.execution.messages import (
    CheckpointTaken,
    Configure,
    Decide,
    EpochReported,
    Finished,
    Heartbeat,
    Ready,
    Started,
    ToPool,
    Train,
)
from fmnist_search.recipe.execution import Execution


class Worker(ABC):
    """The pool's end of the channel to a worker, and the job that the worker runs.

    `number` is the worker's place in its pool; a replacement takes over the number.
    """

    kind = "worker"
    """What messages call a worker of this class."""

    def __init__(self, number: int, channel: PoolChannel):
        self.number = number
        self.channel = channel
        self.job: Job | None = None
        self.has_started = False
        """Whether the worker has received its job."""
        self.is_ready = False
        self.silent_seconds = 0.0
        """Seconds without a message, counted only while the pool waits for messages."""
        self._free_since = 0.0
        self._sent_execution: Execution | None = None

    @property
    def is_free(self) -> bool:
        """Whether the worker waits for a job."""
        return self.is_ready and self.job is None

    @property
    def silence_limit(self) -> float | None:
        """Seconds without a message after which the worker counts as lost; None if it sends no heartbeats."""
        return None

    @property
    def is_unresponsive(self) -> bool:
        """Whether the worker has been silent for longer than allowed."""
        return self.silence_limit is not None and self.silent_seconds >= self.silence_limit

    def mark_free(self) -> None:
        """Count the seconds of the next job from now on."""
        self._free_since = time.monotonic()

    def submit(self, job: Job, execution: Execution) -> None:
        """Send a job to the worker, and before it the execution and the images unless the worker has them.

        Raises:
            TimeoutError: if the worker does not read.
            OSError: if the worker has ended.
        """
        self.job, self.has_started = job, False
        job.worker = self.number
        if execution != self._sent_execution:
            self.channel.send(Configure(execution))
            self._sent_execution = execution
        self._provide_images(job)
        self.channel.send(Train(job.recipe, job.recipe.data, job.checkpoint, job.checkpoint_seconds))

    def handle(self, message: ToPool) -> bool:
        """Call the job's method for a message; return False if it concerns no job."""
        match message:
            case Heartbeat():
                return False
            case Started():
                self.has_started = True
                return False
            case Ready():
                self.is_ready = True
                self.mark_free()
            case EpochReported(report):
                assert self.job is not None
                decision = self.job.on_epoch(report)
                with contextlib.suppress(OSError):  # the worker has ended: the next receive shows it
                    self.channel.send(Decide(decision))
            case CheckpointTaken(content):
                assert self.job is not None
                self.job.on_checkpoint(content)
            case Finished(result):
                assert self.job is not None
                job, self.job = self.job, None
                seconds = time.monotonic() - self._free_since
                self.mark_free()
                job.on_result(result, seconds)
        return True

    @abstractmethod
    def stop(self) -> None:
        """End the worker without waiting for it. May be called again."""

    @abstractmethod
    def join(self) -> str:
        """Close the channel, wait until the worker has ended, and return how: "ended with exit code 3"."""

    @abstractmethod
    def _provide_images(self, job: Job) -> None:
        """Make the job's images available to the worker.

        Raises:
            OSError: if the worker has ended.
        """
