"""The trials of a study as a model of learning curves sees them, and what is stored of that model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_search.config.space import Space
from fmnist_search.search.candidates import Params, RecipeFeatures
from fmnist_search.search.curve_model import Array
from fmnist_search.search.freeze_thaw import FreezeThaw, KnownTrial, Status
from fmnist_search.search.trial_attributes import PAUSED_ATTRIBUTE

MODEL_ATTRIBUTE = "curve_model"
"""Attribute of a study: the parameters of its model of curves, and the number of observations they were fitted to."""

T = TypeVar("T")


class StudyCurves:
    """The curves of the trials of one study, whose trials have `last_epoch` epochs."""

    def __init__(self, space: Space, last_epoch: int):
        self._features = RecipeFeatures(space)
        self._last_epoch = last_epoch
        self._made: dict[int, tuple[FrozenTrial, KnownTrial | None]] = {}
        self._rule: FreezeThaw | None = None

    def features(self, recipes: Sequence[Params]) -> Array:
        """Return the features (n, d) of recipes."""
        width = len(self._features.of({}))
        return np.array([self._features.of(params) for params in recipes]).reshape(-1, width)

    def known_trials(self, trials: Sequence[FrozenTrial]) -> dict[int, KnownTrial]:
        """Return the trials that have begun and have not failed, by number.

        A trial that has values outside the space has no parameters and is left out.
        """
        found = {}
        for trial in trials:
            made = self._made.get(trial.number)
            if made is None or made[0] is not trial:
                made = self._made[trial.number] = trial, self._known_trial(trial)
            if made[1] is not None:
                found[trial.number] = made[1]
        return found

    def _known_trial(self, trial: FrozenTrial) -> KnownTrial | None:
        status = _status(trial)
        values = trial.intermediate_values.items()
        curve = {epoch: value for epoch, value in values if epoch > 0 and not math.isnan(value)}  # 0: it was refused
        if not trial.params or status is None or (status is Status.ENDED and not curve):
            return None
        return KnownTrial(self._features.of(trial.params), curve, status)

    def ask_rule(self, study: optuna.Study, question: Callable[[FreezeThaw], T]) -> T:
        """Return what a function makes of the rule; store the parameters of the model if they were fitted again.

        A search that goes on takes the parameters that are stored, and so decides as one that was not interrupted.
        """
        self._rule = self._rule or _stored_rule(study.user_attrs, self._last_epoch)
        fitted_before = self._rule.fitted_observations
        answer = question(self._rule)
        if self._rule.parameters is not None and self._rule.fitted_observations != fitted_before:
            parameters = self._rule.parameters.tolist()
            stored = {"observations": self._rule.fitted_observations, "parameters": parameters}
            study._storage.set_study_user_attr(study._study_id, MODEL_ATTRIBUTE, stored)
        return answer


def _status(trial: FrozenTrial) -> Status | None:
    """Return what a trial does; None if it has not begun or has failed."""
    if trial.user_attrs.get(PAUSED_ATTRIBUTE) is not None:
        return Status.PAUSED
    if trial.state is TrialState.FAIL or (trial.state is TrialState.WAITING and not trial.intermediate_values):
        return None
    return Status.ENDED if trial.state.is_finished() else Status.RUNNING


def _stored_rule(attributes: Mapping[str, object], last_epoch: int) -> FreezeThaw:
    stored = attributes.get(MODEL_ATTRIBUTE)
    if not isinstance(stored, dict):
        return FreezeThaw(last_epoch)
    return FreezeThaw(last_epoch, np.array(stored["parameters"]), stored["observations"])
