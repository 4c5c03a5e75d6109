"""Scores of confirmed recipes, and the champion of a study."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_search.recipe.recipe import Recipe

if TYPE_CHECKING:
    pass
from fmnist_search.results.statistics import format_mean_std, mean_and_std
from fmnist_search.results.training import Accuracy, TrialResult, TrialState


@dataclass(frozen=True)
class ConfirmedScore:
    """A recipe trained from several fresh seeds: an honest estimate, since none of them was selected."""

    trial: int
    recipe: Recipe
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean validation accuracy at the last epoch."""
        return mean_and_std(self.accuracies)[0]

    @property
    def std(self) -> float:
        """Standard deviation over the seeds; 0 for a single one."""
        return mean_and_std(self.accuracies)[1]

    def __str__(self) -> str:
        return format_mean_std(self.accuracies)


@dataclass(frozen=True)
class LearningRateResult:
    """A network trained at one learning rate of a sweep, `factor` times its own, from several seeds."""

    network: str
    factor: float
    learning_rate: float
    results: tuple[TrialResult, ...]

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Validation accuracies at the last epoch, of those that completed."""
        return completed_accuracies(self.results)

    @property
    def mean_curve(self) -> tuple[float, ...]:
        """Mean validation accuracy after each epoch, of those that completed."""
        done = [result.epochs for result in self.results if result.state is TrialState.COMPLETED]
        curves = [[report.val_accuracy or 0.0 for report in epochs] for epochs in done]
        return tuple(map(statistics.fmean, zip(*curves, strict=False)))


def completed_accuracies(results: Sequence[TrialResult]) -> tuple[float, ...]:
    """Validation accuracies at the last epoch, of those that completed and have one."""
    done = [result.value for result in results if result.state is TrialState.COMPLETED]
    return tuple(value for value in done if value is not None)


@dataclass(frozen=True)
class Champion:
    """The chosen recipe's model, registered: how it was confirmed and what it reached on the test images.

    `verdict` says in words why it is champion or challenger; an ensemble has `members`, and the recipe is the first's.
    """

    confirmed: ConfirmedScore
    recipe: Recipe
    test: Accuracy
    model: str
    version: str
    alias: str
    verdict: str = ""
    members: int = 1
