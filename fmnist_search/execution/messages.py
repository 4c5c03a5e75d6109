"""Messages between a worker pool and its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult

if TYPE_CHECKING:
    from fmnist_search.data.images import Images


@dataclass(frozen=True)
class Configure:
    """Sets how the following trials are run."""

    execution: Execution


@dataclass(frozen=True)
class AddImages:
    """Gives a worker the images that trials with this data configuration need."""

    data: Data
    images: Images


@dataclass(frozen=True)
class Train:
    """Starts a trial on the images of `data`, from its beginning or from the state in `checkpoint`.

    `checkpoint_seconds` is that of `Job`.
    """

    recipe: Recipe
    data: Data
    checkpoint: Mapping[str, Any] | None = None
    checkpoint_seconds: float | None = None


@dataclass(frozen=True)
class Decide:
    """Answers an `EpochReported`."""

    decision: Decision


@dataclass(frozen=True)
class Stop:
    """Ends the worker; sent instead of a decision, it ends the running trial without a result."""


@dataclass(frozen=True)
class Ready:
    """Says that the worker has imported its libraries and waits for trials."""


@dataclass(frozen=True)
class Heartbeat:
    """Says that the worker's process runs."""


@dataclass(frozen=True)
class Started:
    """Says that the worker has received a `Train`; a worker that ends before it was lost without any fault of the job.

    It concerns the pool alone, like a heartbeat.
    """


@dataclass(frozen=True)
class EpochReported:
    """Reports an epoch; the worker waits for a `Decide`."""

    report: EpochReport


@dataclass(frozen=True)
class CheckpointTaken:
    """Delivers the state of the running trial after an epoch that was reported, as `serialize_checkpoint` returns it.

    It arrives before the trial's `Finished`, and may arrive after reports of later epochs.
    """

    content: bytes


@dataclass(frozen=True)
class Finished:
    """Delivers a trial's result; the worker waits for the next trial."""

    result: TrialResult


ToWorker = Configure | AddImages | Train | Decide | Stop
ToPool = Ready | Heartbeat | Started | EpochReported | CheckpointTaken | Finished
