"""Samplers and pruners by name, and the rules under which ours are asked."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from fmnist_search.config.sections import (
    Cmaes,
    Gp,
    Grid,
    Qmc,
    Sampler,
    Tpe,
)
from fmnist_search.config.space import Space
from fmnist_search.errors import UserError
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.search.suggest import distribution_groups, grid_points

Distributions = dict[str, BaseDistribution]


# ------------------------------------------------------------------------------------------ samplers


def make_sampler(settings: Sampler, seed: int, space: Space) -> optuna.samplers.BaseSampler:
    """The sampler of that name; its draws for trial n depend on the seed, n and the trials it sees, on nothing else.

    Raises:
        UserError: it needs a package that is not installed.
    """
    if isinstance(settings, Grid):
        return ConditionalGridSampler(space, seed)
    if isinstance(settings, Cmaes) and importlib.util.find_spec("cmaes") is None:
        raise UserError(
            "sampler: 'cmaes' needs the package cmaes; install it with `pip install 'fmnist-search[cmaes]'`"
        )
    return PerTrialSampler(settings, seed, space)


def independently_sampled(settings: Sampler, space: Space) -> list[str]:
    """Optuna's names of what this sampler leaves to chance: what it cannot take, said so that nobody wonders."""
    if isinstance(settings, Gp | Cmaes):
        taken = {name for group in _relative_groups(settings, space) for name in group}
        everything = {name for group in distribution_groups(space) for name in group}
        return sorted(everything - taken)
    return []


def _relative_groups(settings: Sampler, space: Space) -> list[Distributions]:
    """What a sampler draws together. What no group holds it draws one by one, at random."""
    groups = distribution_groups(space)
    always_there = groups[0]
    match settings:
        case Tpe():
            return groups
        case Gp():
            return [always_there]
        case Cmaes():
            return [{n: d for n, d in always_there.items() if not isinstance(d, CategoricalDistribution)}]
        case Qmc():
            return [{name: distribution for group in groups for name, distribution in group.items()}]
        case _:
            return []


@contextlib.contextmanager
def _ignore_experimental_warnings() -> Iterator[None]:
    """Optuna warns of what it calls experimental each time that it is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


class PerTrialSampler(optuna.samplers.BaseSampler):
    """A fresh sampler for each trial, seeded by the study's seed and the trial's number, asked for our own groups.

    Optuna seeds a sampler once a process: after a restart it would repeat its first draws, and two workers that
    start together would draw alike. And it takes what belongs together from the trials so far: it would miss a
    domain that was widened, and what the first trials happen not to have.
    """

    def __init__(self, settings: Sampler, seed: int, space: Space):
        self._settings = settings
        self._seed = seed
        self._groups = _relative_groups(settings, space)
        self._trial_number = -1
        self._current_sampler = self._make_sampler(seed)

    def _make_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        with _ignore_experimental_warnings():
            return self._sampler(seed)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        match self._settings:
            case Tpe(startup_trials=startup, candidates=candidates):
                return optuna.samplers.TPESampler(
                    n_startup_trials=startup, n_ei_candidates=candidates, multivariate=True, seed=seed
                )
            case Gp(startup_trials=startup):
                return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)
            case Cmaes(startup_trials=startup, population=population):
                return optuna.samplers.CmaEsSampler(
                    n_startup_trials=startup, popsize=population, seed=seed, warn_independent_sampling=False
                )
            case Qmc(sequence=sequence):
                # One sequence a study: only what it leaves over is drawn by the trial's seed.
                return optuna.samplers.QMCSampler(
                    qmc_type=sequence, scramble=True, seed=self._seed % 2**32, warn_independent_sampling=False,
                    independent_sampler=optuna.samplers.RandomSampler(seed=seed),
                )  # fmt: skip
            case _:
                return optuna.samplers.RandomSampler(seed=seed)

    def _sampler_for(self, trial: FrozenTrial) -> optuna.samplers.BaseSampler:
        if trial.number != self._trial_number:
            digest = hashlib.sha256(f"sampler/{self._seed}/{trial.number}".encode()).digest()
            self._trial_number = trial.number
            self._current_sampler = self._make_sampler(int.from_bytes(digest[:4], "big"))
        return self._current_sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        """Return the distributions of all groups."""
        return {name: distribution for group in self._groups for name, distribution in group.items()}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Sample each group on its own."""
        if trial.system_attrs.get("fixed_params"):
            return {}  # it was queued: what it was not given, if anything, is drawn one by one
        sampler = self._sampler_for(trial)
        drawn: dict[str, Any] = {}
        for group in self._groups:
            if group:
                drawn |= sampler.sample_relative(study, trial, group)
        return drawn

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample one hyperparameter outside all groups."""
        return self._sampler_for(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Pass the call on to this trial's sampler."""
        self._sampler_for(trial).before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Pass the call on to this trial's sampler."""
        self._sampler_for(trial).after_trial(study, trial, state, values)


class ConditionalGridSampler(optuna.samplers.BaseSampler):
    """Every recipe of a space once, in an order of the seed's.

    Optuna's own grid takes no hyperparameter that only some recipes have.
    """

    def __init__(self, space: Space, seed: int):
        self._points = list(grid_points(space))
        random.Random(seed).shuffle(self._points)
        self._chosen_points: dict[int, Mapping[str, Value]] = {}

    def is_exhausted(self, study: optuna.Study) -> bool:
        """Whether every recipe was taken; one that failed or runs was."""
        return self._next_point(study, -1) is None

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose the trial's recipe. A grid that is used up begins again, answered from what is known."""
        # Here, and not when it is asked for a value: then it is shown no more than the trials of one bracket.
        self._chosen_points = {trial.number: self._next_point(study, trial.number) or self._points[0]}

    def _next_point(self, study: optuna.Study, trial_number: int) -> Mapping[str, Value] | None:
        trials = study.get_trials(deepcopy=False)
        taken = {_point_key(trial.params) for trial in trials if trial.number != trial_number}
        taken |= {_point_key(trial.system_attrs.get("fixed_params", {})) for trial in trials}
        return next((point for point in self._points if _point_key(point) not in taken), None)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value that the trial's recipe has."""
        point = self._chosen_points[trial.number]
        if param_name in point:
            return point[param_name]
        return optuna.samplers.RandomSampler(seed=trial.number).sample_independent(
            study, trial, param_name, param_distribution
        )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        """Nothing is drawn ahead."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Nothing is drawn ahead."""
        return {}


def _point_key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))
