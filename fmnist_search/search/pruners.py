"""Pruners: one function for each pruner of `config.sections`; the one-epoch rule has a module of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from fmnist_search.config.pruners import (
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
from fmnist_search.search.one_epoch import OneEpochPruner
from fmnist_search.search.samplers import ignore_experimental_warnings


def make_pruner(settings: Pruner, epochs: int) -> BasePruner:
    """Return the pruner with these settings, for trials of `epochs` epochs that count from 1."""
    with ignore_experimental_warnings():
        return _make_pruner(settings, epochs)


@functools.singledispatch
def _make_pruner(settings: Pruner, epochs: int) -> BasePruner:
    raise NotImplementedError(f"no pruner for {settings!r}")


@_make_pruner.register
def _halving(settings: Halving, epochs: int) -> BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=settings.first_rung(epochs), reduction_factor=settings.reduction_factor
    )


@_make_pruner.register
def _hyperband(settings: Hyperband, epochs: int) -> BasePruner:
    pruner = optuna.pruners.HyperbandPruner(
        min_resource=settings.first_rung(epochs), max_resource=epochs, reduction_factor=settings.reduction_factor
    )
    # Its brackets decide which trials a sampler sees, and it creates them on its first call. That call must not come
    # later in a study that is resumed than in one that never stopped.
    pruner.prune(optuna.create_study(), optuna.trial.create_trial(state=TrialState.RUNNING))
    return pruner


@_make_pruner.register
def _median(settings: Median, epochs: int) -> BasePruner:
    return optuna.pruners.MedianPruner(
        n_startup_trials=settings.startup_trials,
        n_warmup_steps=settings.first_rung(epochs),
        n_min_trials=settings.min_trials,
    )


@_make_pruner.register
def _percentile(settings: Percentile, epochs: int) -> BasePruner:
    return optuna.pruners.PercentilePruner(
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


def pruner_applies(trials: Sequence[FrozenTrial], settings: Pruner, epoch: int, last_epoch: int) -> bool:
    """Return whether a trial that the pruner wants to prune after this epoch is pruned.

    It is not after its last epoch, nor before `startup_trials` trials have reached the first rung. The pruner is asked
    in those cases too, because successive halving records the rung of a trial only when it is asked.
    """
    if epoch >= last_epoch:
        return False
    if not isinstance(settings, RungPruner):
        return True
    rung = settings.first_rung(last_epoch)
    return sum(rung in trial.intermediate_values for trial in trials) >= settings.startup_trials
