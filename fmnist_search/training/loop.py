"""The interface of a training loop, and the values that a training passes to its caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from fmnist_search.models.classifier import Classifier
from fmnist_search.results.training import EpochReport, SetupInfo
from fmnist_search.training.evaluation import Evaluation


class EpochResult(NamedTuple):
    """What `fit` yields after an epoch.

    `classifier` holds the averaged weights that the validation values belong to. `state_dict()` returns the state that
    `fit` can resume from. Both are valid until the next epoch starts.
    """

    report: EpochReport
    evaluation: Evaluation | None
    classifier: Classifier
    setup: SetupInfo
    state_dict: Callable[[], dict[str, Any]]


class Progress(NamedTuple):
    """The progress within an epoch: the fraction of its images that is done, their mean loss and their accuracy.

    `epoch` counts from 1; `fraction` and `accuracy` lie in 0..1.
    """

    epoch: int
    fraction: float
    loss: float
    accuracy: float


ProgressCallback = Callable[[Progress], None]
"""Receives the progress within an epoch, a few times a second at most."""
PROGRESS_INTERVAL_SECONDS = 0.2
"""Least time between two reports of progress: each of them waits for the device."""


class TrainingLoop(Protocol):
    """Runs the steps of an epoch."""

    def run(self, order: Tensor, first_step: int) -> None:
        """Train once on each training image.

        Args:
            order: A permutation of the training images, (N,) int64 on the device.
            first_step: The number of steps before this epoch.
        """

    def close(self) -> None:
        """Free what the loop holds on the device."""
