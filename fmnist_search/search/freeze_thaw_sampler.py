"""Freeze-thaw for a study of Optuna: which trial the next epoch goes to, and the recipe of a new one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from fmnist_search.config.samplers import FreezeThaw as FreezeThawSettings
from fmnist_search.config.space import Space
from fmnist_search.results.study import Prediction
from fmnist_search.search.candidates import Params, RandomRecipes, RecipeFeatures, params_key, unseen
from fmnist_search.search.freeze_thaw import Choice, FreezeThaw, KnownTrial, Status
from fmnist_search.search.trial_attributes import PAUSED_ATTRIBUTE

MODEL_ATTRIBUTE = "curve_model"
"""Attribute of a study: the parameters of its model of curves, and the number of observations they were fitted to."""


class CurveView:
    """The trials of a study as a model of curves sees them, by number; those without parameters are left out.

    A trial that has values outside the space has no parameters.
    """

    def __init__(self, space: Space):
        self._features = RecipeFeatures(space)
        self._made: dict[int, tuple[FrozenTrial, KnownTrial | None]] = {}

    def features(self, candidates: Sequence[Params]) -> Any:
        """Return the features (n, d) of recipes."""
        width = len(self._features.of({}))
        return np.array([self._features.of(params) for params in candidates]).reshape(-1, width)

    def known_trials(self, trials: Sequence[FrozenTrial]) -> dict[int, KnownTrial]:
        """Return the trials that have begun and have parameters, by number."""
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
        curve = {epoch: value for epoch, value in trial.intermediate_values.items() if value == value}
        if not trial.params or status is None or (status is Status.ENDED and not curve):
            return None
        return KnownTrial(self._features.of(trial.params), curve, status)


def _status(trial: FrozenTrial) -> Status | None:
    """Return what a trial does; None if it has not begun or has failed."""
    if trial.user_attrs.get(PAUSED_ATTRIBUTE) is not None:
        return Status.PAUSED
    if trial.state is TrialState.FAIL or (trial.state is TrialState.WAITING and not trial.intermediate_values):
        return None
    return Status.ENDED if trial.state.is_finished() else Status.RUNNING


@dataclasses.dataclass(frozen=True)
class NextEpoch:
    """What the next epoch goes to: a paused or running trial, or a new one with these parameters; else nothing."""

    trial: int | None = None
    params: Params | None = None


class FreezeThawSampler(BaseSampler):
    """Samples the recipe that promises most of some random ones; `decide` also compares the trials that have begun.

    `map_candidates` may replace the random recipes for a trial by others, before any is judged.
    """

    def __init__(self, settings: FreezeThawSettings, seed: int, space: Space, last_epoch: int):
        self._settings = settings
        self._last_epoch = last_epoch
        self._view = CurveView(space)
        self._recipes = RandomRecipes(space, seed)
        self._rule: FreezeThaw | None = None
        self._drawn: tuple[int, list[Params]] | None = None
        self._decided: tuple[object, NextEpoch] | None = None
        self._sampled: dict[int, Params] = {}
        self.map_candidates: Callable[[list[Params]], list[Params]] = lambda candidates: candidates

    def decide(self, study: optuna.Study, running: int | None = None, new_number: int | None = None) -> NextEpoch:
        """Return what the next epoch goes to.

        `running` is a trial that has just reported an epoch and may go on, or be paused for another one. `new_number`
        is that of a trial that is being created.
        """
        trials = study.get_trials(deepcopy=False)
        known = self._view.known_trials(trials[:new_number])
        if running in known:
            known[running] = dataclasses.replace(known[running], status=Status.PAUSED)
        number = len(trials) if new_number is None else new_number
        situation = number, [(n, trial.status, len(trial.curve)) for n, trial in known.items()]
        if self._decided is None or self._decided[0] != situation:
            self._decided = situation, self._decide(study, known, number, trials)
        return self._decided[1]

    def _decide(
        self, study: optuna.Study, known: dict[int, KnownTrial], number: int, trials: Sequence[FrozenTrial]
    ) -> NextEpoch:
        candidates = self._candidates(number, trials)
        choice = self._choose(study, list(known.values()), candidates)
        if choice.trial is not None:
            return NextEpoch(trial=list(known)[choice.trial])
        return NextEpoch(params=None if choice.candidate is None else candidates[choice.candidate])

    def _choose(self, study: optuna.Study, trials: Sequence[KnownTrial], candidates: Sequence[Params]) -> Choice:
        rule = self._rule or _stored_rule(study, self._last_epoch)
        self._rule, fitted_before = rule, rule.fitted_observations
        choice = rule.choose(trials, self._view.features(candidates))
        if rule.fitted_observations != fitted_before and rule.parameters is not None:
            stored = {"observations": rule.fitted_observations, "parameters": rule.parameters.tolist()}
            study._storage.set_study_user_attr(study._study_id, MODEL_ATTRIBUTE, stored)
        return choice

    def predict(self, study: optuna.Study, number: int) -> Prediction | None:
        """Return the accuracy that a trial is expected to have after its last epoch; None before there is a model."""
        known = self._view.known_trials(study.get_trials(deepcopy=False))
        if number not in known or self._rule is None or self._rule.parameters is None:
            return None
        return self._rule.predict(list(known.values()), list(known).index(number))

    def _candidates(self, number: int, trials: Sequence[FrozenTrial]) -> list[Params]:
        if self._drawn is None or self._drawn[0] != number:
            begun = {params_key(trial.params) for trial in trials if trial.number != number}
            drawn: list[Params] = list(self._recipes.draw(number, self._settings.candidates))
            self._drawn = number, unseen(self.map_candidates(drawn), begun)
        return self._drawn[1]

    # --------------------------------------------------------------------------- as a sampler of Optuna

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose the recipe of a new trial, unless it was queued with one."""
        if trial.system_attrs.get("fixed_params"):
            return
        params = self.decide(study, new_number=trial.number).params
        if params is None:  # the caller wants a new trial, whatever the rule prefers
            params = next(iter(self._candidates(trial.number, study.get_trials(deepcopy=False))), {})
        self._sampled = {trial.number: params}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return no distributions: nothing is sampled jointly."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return no values: nothing is sampled jointly."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value in the recipe of the trial; that of a queued trial which was not given it is random."""
        params = self._sampled.get(trial.number, {})
        if param_name in params:
            return params[param_name]
        sampler = optuna.samplers.RandomSampler(seed=trial.number)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def _stored_rule(study: optuna.Study, last_epoch: int) -> FreezeThaw:
    stored = study.user_attrs.get(MODEL_ATTRIBUTE)
    if stored is None:
        return FreezeThaw(last_epoch)
    return FreezeThaw(last_epoch, np.array(stored["parameters"]), stored["observations"])
