"""The pruner that extrapolates learning curves: it ends a trial that will hardly beat the best one."""

from __future__ import annotations

import dataclasses

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from fmnist_search.config.pruners import Extrapolation
from fmnist_search.config.space import Space
from fmnist_search.search.freeze_thaw import Status
from fmnist_search.search.study_curves import StudyCurves


class ExtrapolationPruner(BasePruner):
    """Prunes a trial whose chance to end above the best completed one is small.

    `curve_model` predicts that. Domhan, Springenberg and Hutter (2015) stop trainings by the same rule, with curves
    that are extrapolated one by one.
    """

    def __init__(self, settings: Extrapolation, space: Space, last_epoch: int):
        self._settings = settings
        self._curves = StudyCurves(space, last_epoch)
        self._last_epoch = last_epoch

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial has hardly a chance; never before `startup_trials` have completed."""
        known = self._curves.known_trials(study.get_trials(deepcopy=False))
        completed = sum(self._last_epoch in one.curve for one in known.values())
        if completed < self._settings.startup_trials or trial.number not in known or trial.last_step is None:
            return False
        known[trial.number] = dataclasses.replace(known[trial.number], status=Status.PAUSED)
        trials, place = list(known.values()), list(known).index(trial.number)
        probability = self._curves.ask_rule(study, lambda rule: rule.probability_to_beat(trials, place))
        return probability < self._settings.min_probability
