"""Freeze-thaw for a study of Optuna: which trial the next epoch goes to, and the recipe of a new one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from fmnist_search.config.samplers import FreezeThaw as FreezeThawSettings
from fmnist_search.config.space import Space
from fmnist_search.results.study import Prediction
from fmnist_search.search.candidates import Params, RandomRecipes, params_key, unseen
from fmnist_search.search.freeze_thaw import FIRST_TRIALS, KnownTrial, Status
from fmnist_search.search.study_curves import StudyCurves

MAX_DRAWS = 20
"""Random recipes that are looked at for each one that is wanted, if not all are accepted."""


@dataclasses.dataclass(frozen=True)
class NextEpoch:
    """What the next epoch goes to: a paused or running trial, or a new one with these parameters; else nothing."""

    trial: int | None = None
    params: Params | None = None


class FreezeThawSampler(BaseSampler):
    """Samples the recipe that promises most of some random ones; `decide` also compares the trials that have begun.

    `map_candidates` may replace the random recipes for a trial by others, before any is judged. Only those are judged
    that `accepts` returns True for. If it does so for few, more are drawn.
    """

    def __init__(self, settings: FreezeThawSettings, seed: int, space: Space, last_epoch: int):
        self._settings = settings
        self._curves = StudyCurves(space, last_epoch)
        self._recipes = RandomRecipes(space, seed)
        self._drawn: tuple[int, list[Params]] | None = None
        self._decided: tuple[object, NextEpoch] | None = None
        self._sampled: dict[int, Params] = {}
        self.map_candidates: Callable[[list[Params]], list[Params]] = lambda candidates: candidates
        self.accepts: Callable[[Params], bool] = lambda _: True

    def decide(self, study: optuna.Study, running: int | None = None, new_number: int | None = None) -> NextEpoch:
        """Return what the next epoch goes to.

        `running` is a trial that has just reported an epoch and may go on, or be paused for another one. `new_number`
        is that of a trial that is being created.
        """
        trials = study.get_trials(deepcopy=False)
        known = self._curves.known_trials(trials[:new_number])
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
        features = self._curves.features(candidates)
        choice = self._curves.ask_rule(study, lambda rule: rule.choose(list(known.values()), features))
        if choice.trial is not None:
            return NextEpoch(trial=list(known)[choice.trial])
        return NextEpoch(params=None if choice.candidate is None else candidates[choice.candidate])

    def predict(self, study: optuna.Study, number: int) -> Prediction | None:
        """Return the accuracy that a trial is expected to have after its last epoch; None before there is a model."""
        known = self._curves.known_trials(study.get_trials(deepcopy=False))
        if number not in known or len(known) < FIRST_TRIALS:
            return None
        known[number] = dataclasses.replace(known[number], status=Status.PAUSED)
        trials, place = list(known.values()), list(known).index(number)
        return self._curves.ask_rule(study, lambda rule: rule.predict(trials, place))

    def _candidates(self, number: int, trials: Sequence[FrozenTrial]) -> list[Params]:
        if self._drawn is None or self._drawn[0] != number:
            begun = {params_key(trial.params) for trial in trials if trial.number != number}
            self._drawn = number, unseen(self.map_candidates(self._draw(number)), begun)
        return self._drawn[1]

    def _draw(self, number: int) -> list[Params]:
        """Return accepted random recipes for the trial of this number: as many as wanted, if so many are found."""
        wanted = self._settings.candidates
        drawn = self._recipes.draw(number, MAX_DRAWS * wanted)
        return list(itertools.islice(filter(self.accepts, drawn), wanted))

    # --------------------------------------------------------------------------- as a sampler of Optuna

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose the recipe of a new trial, unless it was queued with one."""
        # Optuna calls this for a trial that goes on, too: that has its recipe.
        if trial.system_attrs.get("fixed_params") or trial.params:
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
