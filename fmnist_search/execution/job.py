"""A training as an execution backend sees it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult

if TYPE_CHECKING:
    from fmnist_search.data.images import Images


class LossCause(Enum):
    """What ended a worker that had a job: something that the job may have caused, or the machines under it."""

    WORKER = "worker"
    """Its process or thread ended, or was killed for want of memory."""
    INFRASTRUCTURE = "infrastructure"
    """Its node died, was drained or preempted, or could not be reached any more. The job is not to blame."""


class Job(Protocol):
    """One training and what happens with its reports.

    The methods are called in the thread that calls `Backend.run`; what they raise leaves `Backend.run`. After
    `on_result` or `on_worker_lost` none is called again.
    """

    recipe: Recipe
    images: Images
    worker: int
    """The number of the worker that runs the job, set by the backend."""
    worker_name: str
    """The worker as a run records it: its number and, if it is on another machine, where. Set by the backend."""

    @property
    def checkpoint(self) -> Mapping[str, Any] | None:
        """The state to resume from, as a `TrainingCallback` receives it; None starts with the first epoch."""

    @property
    def checkpoint_seconds(self) -> float | None:
        """Seconds after which a checkpoint is due at the end of an epoch: 0 after each epoch, None never."""

    def on_epoch(self, report: EpochReport) -> Decision:
        """Handle an epoch's report and return whether the training continues."""

    def on_checkpoint(self, content: bytes) -> None:
        """Handle the state of the training after an epoch that was reported, as `serialize_checkpoint` returns it.

        With `checkpoint_seconds`, a training that pauses or is interrupted sends its last state before its result.
        """

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Handle the result; `seconds` passed since the worker became free for this job."""

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        """Handle the end of the worker before it delivered a result."""
