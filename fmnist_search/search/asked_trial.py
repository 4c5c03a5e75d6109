"""A trial between `StudyStore.ask` and `StudyStore.tell`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.search.trial_attributes import RETRY_ATTRIBUTE, START_ATTRIBUTE, SURVIVOR_OF_ATTRIBUTE


@dataclass(frozen=True, eq=False)
class AskedTrial:
    """A trial that a study has asked for and that has not ended: its number, its recipe, and Optuna's trial.

    `origin` says why it is not an ordinary draw of the sampler, if it is not: `start` names the source of a recipe
    that the study file starts with; `retry_of` and `survivor_of` name the trial that it repeats.
    """

    number: int
    recipe: Recipe
    origin: Mapping[str, str]
    optuna_trial: optuna.Trial = field(repr=False)

    @classmethod
    def create(cls, trial: optuna.Trial, recipe: Recipe) -> AskedTrial:
        """Return Optuna's trial with its recipe, and with the origin that its attributes hold."""
        attributes = trial.user_attrs
        reasons = (RETRY_ATTRIBUTE, START_ATTRIBUTE, SURVIVOR_OF_ATTRIBUTE)
        return cls(trial.number, recipe, {name: str(attributes[name]) for name in reasons if name in attributes}, trial)

    @property
    def is_survivor(self) -> bool:
        """Whether it trains in full what was a candidate of the one-epoch rule."""
        return SURVIVOR_OF_ATTRIBUTE in self.origin
