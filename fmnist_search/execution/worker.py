"""One worker as its pool sees it."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from fmnist_search.execution.channel import PoolChannel
from fmnist_search.execution.job import Job, LossCause
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
    ToWorker,
    Train,
)
from fmnist_search.recipe.execution import Execution


class Worker(ABC):
    """The pool's side of the connection with a worker, and the job that the worker runs.

    `number` is the worker's place in its pool; a replacement takes over the number.
    """

    kind = "worker"
    """What messages call a worker of this class."""

    def __init__(self, number: int):
        self.number = number
        self.job: Job | None = None
        self.has_started = False
        """Whether the worker has received its job."""
        self.is_ready = False
        self.heard_at = 0.0
        """When the last message arrived, in the seconds that the pool had waited for messages until then."""
        self.free_since = 0.0
        """From when on the seconds of the next job count."""
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
    def name(self) -> str:
        """The worker as runs record it: its number and, if it is on another machine, where."""
        return str(self.number)

    @property
    def loss_cause(self) -> LossCause:
        """What has ended the worker, once it has ended."""
        return LossCause.WORKER

    def is_unresponsive(self, waited: float) -> bool:
        """Return whether the worker has been silent for longer than allowed, now that the pool has waited so long."""
        return self.silence_limit is not None and waited - self.heard_at >= self.silence_limit

    def mark_free(self) -> None:
        """Count the seconds of the next job from now on."""
        self.free_since = time.monotonic()

    def submit(self, job: Job, execution: Execution) -> None:
        """Send a job to the worker, and before it the execution and the images unless the worker has them.

        Raises:
            TimeoutError: if the worker does not read.
            OSError: if the worker has ended.
        """
        self.job, self.has_started = job, False
        job.worker, job.worker_name = self.number, self.name
        if execution != self._sent_execution:
            self.send(Configure(execution))
            self._sent_execution = execution
        self._provide_images(job)
        self.send(Train(job.recipe, job.recipe.data, job.checkpoint, job.checkpoint_seconds))

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
                    self.send(Decide(decision))
            case CheckpointTaken(content):
                assert self.job is not None
                self.job.on_checkpoint(content)
            case Finished(result):
                assert self.job is not None
                job, self.job = self.job, None
                seconds = time.monotonic() - self.free_since
                self.mark_free()
                job.on_result(result, seconds)
        return True

    @abstractmethod
    def send(self, message: ToWorker) -> None:
        """Send a message.

        Raises:
            TimeoutError: if the worker does not read.
            OSError: if the worker has ended.
        """

    @abstractmethod
    def receive(self) -> Sequence[ToPool]:
        """Return messages that have arrived, at least one.

        Raises:
            TimeoutError: if the worker has stopped in the middle of a message.
            EOFError, OSError: if the worker has ended.
        """

    @abstractmethod
    def stop(self) -> None:
        """End the worker without waiting for it. May be called again."""

    @abstractmethod
    def join(self) -> str:
        """Close the connection, wait until the worker has ended, and return how: "ended with exit code 3"."""

    @abstractmethod
    def _provide_images(self, job: Job) -> None:
        """Make the job's images available to the worker.

        Raises:
            OSError: if the worker has ended.
        """


class ChannelWorker(Worker):
    """A worker that is reached through a socket."""

    def __init__(self, number: int, channel: PoolChannel):
        super().__init__(number)
        self.channel = channel

    def send(self, message: ToWorker) -> None:
        """Send a message through the channel."""
        self.channel.send(message)

    def receive(self) -> list[ToPool]:
        """Return the next message of the channel."""
        return [self.channel.receive()]


def by_number(workers: Iterable[Worker]) -> list[Worker]:
    """Return workers in the order of their numbers."""
    return sorted(workers, key=lambda worker: worker.number)
