"""A trial between `StudyStore.ask` and its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import optuna

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.search.trial_attributes import (
    RETRY_ATTRIBUTE,
    RUN_KEY_ATTRIBUTE,
    START_ATTRIBUTE,
    SURVIVOR_OF_ATTRIBUTE,
    WORKER_LOST_ATTRIBUTE,
)


@dataclass(frozen=True, eq=False)
class AskedTrial:
    """A trial that a study has asked for and that has not ended: its number, its recipe, and Optuna's trial.

    `origin` says why it is not an ordinary draw of the sampler, if it is not: `start` names the source of a recipe
    that the study file starts with; `survivor_of` names the trial that it repeats. `curve` holds the validation
    accuracy of each epoch that it reported before it was interrupted or paused, by epoch. `run_key` is the key of the
    run that it has begun. `epochs_at_loss` says after how many epochs it lost its last worker, if it has lost one.
    """

    number: int
    recipe: Recipe
    origin: Mapping[str, str]
    optuna_trial: optuna.Trial = field(repr=False)
    curve: Mapping[int, float] = field(default_factory=dict)
    run_key: str | None = None
    epochs_at_loss: int | None = None

    @classmethod
    def create(cls, trial: optuna.Trial, recipe: Recipe, curve: Mapping[int, float]) -> AskedTrial:
        """Return Optuna's trial with its recipe, and with what its attributes hold."""
        attributes = trial.user_attrs
        reasons = (RETRY_ATTRIBUTE, START_ATTRIBUTE, SURVIVOR_OF_ATTRIBUTE)
        origin = {name: str(attributes[name]) for name in reasons if name in attributes}
        run_key, lost = attributes.get(RUN_KEY_ATTRIBUTE), attributes.get(WORKER_LOST_ATTRIBUTE)
        return cls(trial.number, recipe, origin, trial, curve, run_key, None if lost is None else int(lost))

    @property
    def is_survivor(self) -> bool:
        """Whether it trains in full what was a candidate of the one-epoch rule."""
        return SURVIVOR_OF_ATTRIBUTE in self.origin
