"""What the loops over the steps of an epoch have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from fmnist_search.models.classifier import Classifier
from fmnist_search.results.training import EpochReport, SetupInfo
from fmnist_search.training.evaluation import Evaluation


class EpochResult(NamedTuple):
    """What `fit` yields: figures, and the averaged weights they belong to, valid until the next epoch starts.

    `state_dict` gives all that `fit` needs to go on from here as if it had never stopped, valid as long.
    """

    report: EpochReport
    evaluation: Evaluation | None
    classifier: Classifier
    setup: SetupInfo
    state_dict: Callable[[], dict[str, Any]]


class Progress(NamedTuple):
    """An epoch on its way: the share of its images that is done, their mean loss and their accuracy."""

    epoch: int
    fraction: float
    loss: float
    accuracy: float


ProgressCallback = Callable[[Progress], None]
"""Sees how an epoch gets on, a few times a second at most."""
PROGRESS_INTERVAL_SECONDS = 0.2
"""Between two looks at a running epoch, each of which waits for the device."""


class TrainingLoop(Protocol):
    """How the steps of an epoch are run."""

    def run(self, order: Tensor, first_step: int) -> None:
        """One pass over the training images in this order; `first_step` counts the steps before it."""

    def close(self) -> None:
        """Give back what it holds on the device."""
