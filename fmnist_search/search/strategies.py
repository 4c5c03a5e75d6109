"""Samplers and pruners by name, and the rules under which ours are asked."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from fmnist_search.config import Halving, Median, Pruner, Random, Sampler, Tpe

# Experimental, and meant: multivariate TPE in groups is the one that sees conditional parameters.
warnings.filterwarnings("ignore", message=".*(multivariate|group).* is an experimental feature.*")

FIRST_RUNG_RESULTS = 8
"""Nothing is pruned before as many results stand at the first rung: a best third of three is mere luck."""


def make_sampler(settings: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of that name; its draws for trial n depend on the seed, n and the trials it sees, on nothing else."""
    return _SeededByTrial(settings, seed)


def make_pruner(settings: Pruner) -> optuna.pruners.BasePruner:
    """The pruner of that name; epochs count from 1."""
    match settings:
        case Halving():
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=settings.min_epochs, reduction_factor=settings.reduction_factor
            )
        case Median():
            return optuna.pruners.MedianPruner(
                n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs
            )
        case _:
            return optuna.pruners.NopPruner()


def heed_pruner(trials: Sequence[FrozenTrial], settings: Pruner, epoch: int, last_epoch: int) -> bool:
    """Whether the pruner's word counts: not among the first trials, and not after the last epoch.

    It is asked all the same, since successive halving notes a trial's standing only when it is asked.
    """
    rung = first_rung(settings)
    return epoch < last_epoch and sum(rung in trial.intermediate_values for trial in trials) >= FIRST_RUNG_RESULTS


def first_rung(settings: Pruner) -> int:
    """The epoch after which a trial can first be pruned."""
    match settings:
        case Halving():
            return settings.min_epochs
        case Median():
            return settings.warmup_epochs + 1
        case _:
            return 1


class _SeededByTrial(optuna.samplers.BaseSampler):
    """A fresh sampler for each trial, seeded by the study's seed and the trial's number.

    Optuna seeds a sampler once a process: after a restart it would repeat its first draws, and two workers that
    start together would draw alike.
    """

    def __init__(self, settings: Sampler, seed: int):
        self._settings = settings
        self._seed = seed
        self._number = -1
        self._current = _SAMPLERS[settings.name](settings, seed)

    def _of(self, trial: FrozenTrial) -> optuna.samplers.BaseSampler:
        if trial.number != self._number:
            digest = hashlib.sha256(f"sampler/{self._seed}/{trial.number}".encode()).digest()
            self._number = trial.number
            self._current = _SAMPLERS[self._settings.name](self._settings, int.from_bytes(digest[:4], "big"))
        return self._current

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._of(trial).before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._of(trial).after_trial(study, trial, state, values)


def _tpe(settings: Any, seed: int) -> optuna.samplers.BaseSampler:
    assert isinstance(settings, Tpe)
    return optuna.samplers.TPESampler(
        n_startup_trials=settings.startup_trials,
        multivariate=True,
        group=True,
        seed=seed,
    )


def _random(settings: Any, seed: int) -> optuna.samplers.BaseSampler:
    assert isinstance(settings, Random)
    return optuna.samplers.RandomSampler(seed=seed)


_SAMPLERS: dict[str, Callable[[Any, int], optuna.samplers.BaseSampler]] = {"tpe": _tpe, "random": _random}
