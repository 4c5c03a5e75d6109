"""Pruners: what Optuna has, and the one-epoch rule."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist_search.config.sections import (
    Halving,
    Hyperband,
    Median,
    OneEpoch,
    Patience,
    Percentile,
    Pruner,
)
from fmnist_search.search.samplers import _ignore_experimental_warnings

# ------------------------------------------------------------------------------------------- pruners


def make_pruner(settings: Pruner, epochs: int) -> optuna.pruners.BasePruner:
    """The pruner of that name for trials of so many epochs, which count from 1."""
    with _ignore_experimental_warnings():
        return _build_pruner(settings, epochs)


def _build_pruner(settings: Pruner, epochs: int) -> optuna.pruners.BasePruner:
    match settings:
        case Halving():
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=settings.first_rung(epochs), reduction_factor=settings.reduction_factor
            )
        case Hyperband():
            hyperband = optuna.pruners.HyperbandPruner(
                min_resource=settings.first_rung(epochs),
                max_resource=epochs,
                reduction_factor=settings.reduction_factor,
            )
            # Its brackets, which decide what a sampler sees, are made when it is first asked: that shall not be later
            # in a study that goes on than in one that never stopped.
            hyperband.prune(optuna.create_study(), optuna.trial.create_trial(state=TrialState.RUNNING))
            return hyperband
        case Median():
            return optuna.pruners.MedianPruner(
                n_startup_trials=settings.startup_trials,
                n_warmup_steps=settings.first_rung(epochs),
                n_min_trials=settings.min_trials,
            )
        case Percentile():
            return optuna.pruners.PercentilePruner(
                settings.percentile,
                n_startup_trials=settings.startup_trials,
                n_warmup_steps=settings.first_rung(epochs),
                n_min_trials=settings.min_trials,
            )
        case Patience():
            return optuna.pruners.PatientPruner(None, settings.epochs, settings.min_delta)
        case OneEpoch():
            return OneEpochPruner(settings.epochs)
        case _:
            return optuna.pruners.NopPruner()


def pruner_applies(trials: Sequence[FrozenTrial], settings: Pruner, epoch: int, last_epoch: int) -> bool:
    """Whether the pruner's word counts: not after the last epoch, and at rungs not among the first trials.

    It is asked all the same, since successive halving notes a trial's standing only when it is asked.
    """
    if epoch >= last_epoch:
        return False
    if not isinstance(settings, Halving | Hyperband):
        return True
    rung = settings.first_rung(last_epoch)
    results = sum(rung in trial.intermediate_values for trial in trials)
    return results >= settings.startup_trials


SURVIVOR_OF_ATTRIBUTE = "survivor_of"
"""Attribute of a trial that trains in full what was one of the best candidates."""


class OneEpochPruner(optuna.pruners.BasePruner):
    """Prunes each candidate after `epochs`; what survives is trained in a trial of its own."""

    def __init__(self, epochs: int):
        self._epochs = epochs

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is a candidate that has had its epochs."""
        return SURVIVOR_OF_ATTRIBUTE not in trial.user_attrs and (trial.last_step or 0) >= self._epochs
