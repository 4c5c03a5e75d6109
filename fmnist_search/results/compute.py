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

    `epochs` and `seconds` are those of all trials that had ended, pruned, failed and interrupted ones included;
    `seconds` are seconds of training, of parallel trials together.
    """

    epochs: int
    seconds: float
    best: float


def trained_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that were trained, in the order in which they ended, without duplicates of earlier ones."""
    trained = [trial for trial in trials if trial.duplicate_of is None]
    return sorted(trained, key=lambda trial: (trial.ended_at or 0.0, trial.number))


def trained_epochs(trials: Sequence[TrialRecord]) -> int:
    """Return the number of epochs that all trials together trained."""
    return sum(trial.epochs for trial in trained_trials(trials))


def trained_seconds(trials: Sequence[TrialRecord]) -> float:
    """Return the seconds of training of all trials together."""
    return math.fsum(trial.seconds for trial in trained_trials(trials))


def best_by_compute(trials: Sequence[TrialRecord]) -> tuple[ComputePoint, ...]:
    """Return a point for each completed trial that was better than all before; none if no trial has completed."""
    points: list[ComputePoint] = []
    epochs, seconds = 0, 0.0
    for trial in trained_trials(trials):
        epochs, seconds = epochs + trial.epochs, seconds + trial.seconds
        if trial.state is not TrialState.COMPLETED or trial.value is None:
            continue
        if not points or trial.value > points[-1].best:
            points.append(ComputePoint(epochs, seconds, trial.value))
    return tuple(points)


def best_within_epochs(points: Sequence[ComputePoint], epochs: int) -> float | None:
    """Return the best value that so many epochs had reached; None if no trial had completed."""
    return max((point.best for point in points if point.epochs <= epochs), default=None)


def best_within_seconds(points: Sequence[ComputePoint], seconds: float) -> float | None:
    """Return the best value that so many seconds of training had reached; None if no trial had completed."""
    return max((point.best for point in points if point.seconds <= seconds), default=None)


def chance_difference(accuracy: float, images: int) -> float:
    """Return two standard errors of the difference of two such accuracies, each of `images` independent images."""
    return 2 * math.sqrt(2 * accuracy * (1 - accuracy) / images)
