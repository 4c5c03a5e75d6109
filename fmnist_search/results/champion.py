"""The scores of confirmed recipes, the results of a learning rate sweep, and the champion of a study."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.statistics import format_mean_std, mean_and_std
from fmnist_search.results.training import Accuracy, TrialResult, TrialState


@dataclass(frozen=True)
class ConfirmedScore:
    """The accuracies of a recipe trained again with several new seeds. They are unbiased: none was selected."""

    trial: int
    recipe: Recipe
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean validation accuracy at the last epoch."""
        return mean_and_std(self.accuracies)[0]

    @property
    def std(self) -> float:
        """Standard deviation over the seeds; 0 for a single seed."""
        return mean_and_std(self.accuracies)[1]

    def __str__(self) -> str:
        return format_mean_std(self.accuracies)


@dataclass(frozen=True)
class LearningRateResult:
    """A network trained at one learning rate of a sweep, `factor` times the rate of its recipe, with several seeds."""

    network: str
    factor: float
    learning_rate: float
    results: tuple[TrialResult, ...]

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Validation accuracies at the last epoch of the completed trainings."""
        return completed_accuracies(self.results)

    @property
    def mean_curve(self) -> tuple[float, ...]:
        """Mean validation accuracy after each epoch over the completed trainings."""
        completed = [result.epochs for result in self.results if result.state is TrialState.COMPLETED]
        curves = [[report.val_accuracy or 0.0 for report in epochs] for epochs in completed]
        return tuple(map(statistics.fmean, zip(*curves, strict=False)))


def completed_accuracies(results: Sequence[TrialResult]) -> tuple[float, ...]:
    """Return the validation accuracies at the last epoch of the completed trainings that have one."""
    values = [result.value for result in results if result.state is TrialState.COMPLETED]
    return tuple(value for value in values if value is not None)


@dataclass(frozen=True)
class Champion:
    """The selected model of a study, as registered, with its confirmed score and its accuracy on the test images.

    `alias` is the one that its version got when it was registered, "champion" or "challenger", and `verdict` says why.
    For an ensemble `members` is greater than 1, and `recipe` is that of the first member.
    """

    confirmed_score: ConfirmedScore
    recipe: Recipe
    test: Accuracy
    model: str
    version: str
    alias: str
    verdict: str = ""
    members: int = 1

    @property
    def is_champion(self) -> bool:
        """Whether its version became champion when it was registered."""
        return self.alias == "champion"

    @property
    def address(self) -> str:
        """The MLflow address of its version."""
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True)
class SelectedRecipe:
    """What a promotion has selected. A study stores it before the model is registered.

    `key` begins with the key of the selection; the version has it as a tag. `members` is that of `Champion`.
    """

    key: str
    confirmed_score: ConfirmedScore
    recipe: Recipe
    members: int

    def is_of(self, selection_key: str) -> bool:
        """Return whether it comes from the selection with this key."""
        return self.key.partition("@")[0] == selection_key

    def registered(self, *, test: Accuracy, model: str, version: str, alias: str, verdict: str) -> Champion:
        """Return the champion, once its version is registered and decided."""
        return Champion(self.confirmed_score, self.recipe, test, model, version, alias, verdict, self.members)
