"""How good a search is for its compute: the best value against trained epochs and against seconds of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState


@dataclass(frozen=True)
class ComputePoint:
    """The compute of a study when a trial had ended, and the best value of a completed trial until then.

    `epochs` and `seconds` are those of all trials that had ended, pruned, failed and interrupted ones included, or were
    paused for the last time; `seconds` are seconds of training, of parallel trials together.
    """

    epochs: int
    seconds: float
    best: float


@dataclass(frozen=True)
class StudyProgress:
    """The best value of a study against its compute: its total epochs and seconds, and each improvement."""

    name: str
    epochs: int
    seconds: float
    points: tuple[ComputePoint, ...]

    def best_within(self, *, epochs: int | None = None, seconds: float | None = None) -> float | None:
        """Return the best value that so many epochs or seconds had reached; None if no trial had completed."""
        reached = [
            point.best
            for point in self.points
            if (epochs is None or point.epochs <= epochs) and (seconds is None or point.seconds <= seconds)
        ]
        return max(reached, default=None)


def study_progress(name: str, trials: Sequence[TrialRecord]) -> StudyProgress:
    """Return how the best value of a study rose with its compute."""
    points: list[ComputePoint] = []
    epochs, seconds = 0, 0.0
    for trial in _in_order_of_training(trials):
        epochs, seconds = epochs + trial.epochs, seconds + trial.seconds
        if trial.state is not TrialState.COMPLETED or trial.value is None:
            continue
        if not points or trial.value > points[-1].best:
            points.append(ComputePoint(epochs, seconds, trial.value))
    return StudyProgress(name, epochs, seconds, tuple(points))


def trained_epochs(trials: Sequence[TrialRecord]) -> int:
    """Return the number of epochs that all trials together trained."""
    return sum(trial.epochs for trial in _in_order_of_training(trials))


def _in_order_of_training(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that were trained, in the order in which they were last.

    Duplicates of earlier ones, which took no compute, are left out.
    """
    trained = [trial for trial in trials if trial.duplicate_of is None]
    return sorted(trained, key=lambda trial: (trial.trained_until or trial.ended_at or 0.0, trial.number))


def chance_difference(accuracy: float, images: int) -> float:
    """Return two standard errors of the difference of two such accuracies, each of `images` independent images."""
    return 2 * math.sqrt(2 * accuracy * (1 - accuracy) / images)
