"""Pruners: one function for each pruner of `config.sections`; the one-epoch rule has a module of its own."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from array import array
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from fmnist_search.config.pruners import (
    Extrapolation,
    Halving,
    Hyperband,
    Median,
    NoPruner,
    OneEpoch,
    Patience,
    Percentile,
    Pruner,
    RungPruner,
)
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.search.one_epoch import OneEpochPruner
from fmnist_search.search.samplers import ignore_experimental_warnings


def make_study_pruner(config: StudyConfig) -> BasePruner:
    """Return the pruner of a study."""
    if isinstance(config.pruner, Extrapolation):
        from fmnist_search.search.extrapolation import ExtrapolationPruner  # with scipy, which takes its time

        return ExtrapolationPruner(config.pruner, config.space, config.budget.epochs)
    return make_pruner(config.pruner, config.budget.epochs)


def make_pruner(settings: Pruner, epochs: int) -> BasePruner:
    """Return the pruner with these settings, for trials of `epochs` epochs that count from 1.

    They must be of a pruner that looks at nothing but the values of the trials.
    """
    with ignore_experimental_warnings():
        return _make_pruner(settings, epochs)


@functools.singledispatch
def _make_pruner(settings: Pruner, epochs: int) -> BasePruner:
    raise NotImplementedError(f"no pruner for {settings!r}")


@_make_pruner.register
def _halving(settings: Halving, epochs: int) -> BasePruner:
    return HalvingPruner(settings.first_rung(epochs), settings.reduction_factor)


@_make_pruner.register
def _hyperband(settings: Hyperband, epochs: int) -> BasePruner:
    pruner = optuna.pruners.HyperbandPruner(
        min_resource=settings.first_rung(epochs), max_resource=epochs, reduction_factor=settings.reduction_factor
    )
    # Its brackets decide which trials a sampler sees, and it creates them on its first call. That call must not come
    # later in a study that is resumed than in one that never stopped.
    pruner.prune(optuna.create_study(), optuna.trial.create_trial(state=TrialState.RUNNING))
    pruner._pruners = [
        HalvingPruner(settings.first_rung(epochs), settings.reduction_factor, bracket)
        for bracket in range(len(pruner._pruners))
    ]
    return pruner


@_make_pruner.register
def _median(settings: Median, epochs: int) -> BasePruner:
    return CompletedPercentilePruner(
        50.0,
        n_startup_trials=settings.startup_trials,
        n_warmup_steps=settings.first_rung(epochs),
        n_min_trials=settings.min_trials,
    )


@_make_pruner.register
def _percentile(settings: Percentile, epochs: int) -> BasePruner:
    return CompletedPercentilePruner(
        settings.percentile,
        n_startup_trials=settings.startup_trials,
        n_warmup_steps=settings.first_rung(epochs),
        n_min_trials=settings.min_trials,
    )


@_make_pruner.register
def _patience(settings: Patience, epochs: int) -> BasePruner:
    return optuna.pruners.PatientPruner(None, settings.epochs, settings.min_delta)


@_make_pruner.register
def _one_epoch(settings: OneEpoch, epochs: int) -> BasePruner:
    return OneEpochPruner(settings.epochs)


@_make_pruner.register
def _none(settings: NoPruner, epochs: int) -> BasePruner:
    return optuna.pruners.NopPruner()


class HalvingPruner(optuna.pruners.SuccessiveHalvingPruner):
    """Optuna's successive halving for one study that is maximized, which keeps the values of each rung in order.

    Optuna collects and sorts them for each decision. They are collected once here, because nobody else drives the
    study. What is stored and decided is the same.
    """

    def __init__(self, min_resource: int, reduction_factor: int, min_early_stopping_rate: int = 0):
        super().__init__(min_resource, reduction_factor, min_early_stopping_rate)
        self._first_step = min_resource * reduction_factor**min_early_stopping_rate
        self._factor = reduction_factor
        self._rungs: defaultdict[str, list[float]] | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is not among the best of the rung that it has reached."""
        if (step := trial.last_step) is None:
            return False
        value, attributes = trial.intermediate_values[step], trial.system_attrs
        for rung in itertools.count():
            key = f"completed_rung_{rung}"
            if key in attributes:
                continue
            if step < self._first_step * self._factor**rung:
                return False
            if math.isnan(value) or not self._is_promoted(study, trial, key, value):
                return True
        raise AssertionError

    def _is_promoted(self, study: optuna.Study, trial: FrozenTrial, key: str, value: float) -> bool:
        """Store the value of a trial at a rung, and return whether it is among the best fraction there."""
        if self._rungs is None:
            self._rungs = _collect_rungs(study.get_trials(deepcopy=False))
        study._storage.set_trial_system_attr(trial._trial_id, key, value)
        values = self._rungs[key]
        bisect.insort(values, value)
        return value >= values[-max(len(values) // self._factor, 1)]


def _collect_rungs(trials: Sequence[FrozenTrial]) -> defaultdict[str, list[float]]:
    rungs: defaultdict[str, list[float]] = defaultdict(list)
    for trial in trials:
        for key, value in trial.system_attrs.items():
            if key.startswith("completed_rung_"):
                rungs[key].append(value)
    for values in rungs.values():
        values.sort()
    return rungs


class CompletedPercentilePruner(BasePruner):
    """Optuna's percentile pruner for one study that is maximized, which keeps the values of the completed trials.

    It prunes a trial whose best value is worse than a percentile of the completed trials' values at its step.
    """

    def __init__(self, percentile: float, *, n_startup_trials: int, n_warmup_steps: int, n_min_trials: int):
        self._percentile = percentile
        self._startup_trials = max(n_startup_trials, 1)
        self._warmup_steps = n_warmup_steps
        self._min_trials = n_min_trials
        self._known: set[int] = set()
        self._values: defaultdict[int, array[float]] = defaultdict(lambda: array("d"))
        self._thresholds: dict[int, float] = {}

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is worse than the percentile."""
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        step = trial.last_step
        if len(completed) < self._startup_trials or step is None or step < self._warmup_steps:
            return False
        reached = [value for value in trial.intermediate_values.values() if not math.isnan(value)]
        if not reached:
            return True
        return max(reached) < self._threshold(completed, step)  # which is False if there is no threshold yet

    def _threshold(self, completed: Sequence[FrozenTrial], step: int) -> float:
        """Return the value that a trial must reach at a step; NaN if too few trials have completed."""
        if len(completed) != len(self._known):
            self._thresholds.clear()
            for trial in completed:
                if trial.number not in self._known:
                    self._known.add(trial.number)
                    for reported, value in trial.intermediate_values.items():
                        self._values[reported].append(value)
        if step not in self._thresholds:
            values = np.array(self._values[step])
            is_known = len(values) >= self._min_trials and not np.isnan(values).all()
            self._thresholds[step] = float(np.nanpercentile(values, 100 - self._percentile)) if is_known else math.nan
        return self._thresholds[step]


class StartupTrials:
    """The trials that no pruner prunes: until `startup_trials` of them have reached the first rung."""

    def __init__(self, settings: Pruner, last_epoch: int):
        self._last_epoch = last_epoch
        self._rung = settings.first_rung(last_epoch) if isinstance(settings, RungPruner) else None
        self._count = settings.startup_trials if isinstance(settings, RungPruner) else 0
        self._are_over = self._rung is None

    def allow_pruning(self, study: optuna.Study, epoch: int) -> bool:
        """Return whether a trial that the pruner wants to prune after this epoch is pruned.

        It is not after its last epoch, nor before enough trials have reached the first rung. The pruner is asked in
        those cases too, because successive halving records the rung of a trial only when it is asked.
        """
        if epoch >= self._last_epoch:
            return False
        if not self._are_over:
            trials = study.get_trials(deepcopy=False)
            self._are_over = sum(self._rung in trial.intermediate_values for trial in trials) >= self._count
        return self._are_over
