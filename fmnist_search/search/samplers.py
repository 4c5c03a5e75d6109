"""Samplers: one function for each sampler of `config.sections`, and the classes of ours that they use."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from fmnist_search.config.conditional_space import hyperparameter_groups
from fmnist_search.config.samplers import Cmaes, FreezeThaw, Gp, Grid, Qmc, Random, Sampler, Tpe
from fmnist_search.config.space import Space
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.search.candidates import ParamsKey, params_key
from fmnist_search.search.suggest import grid_points, to_distribution
from fmnist_search.search.trial_window import StudyView, TrialWindow

Distributions = dict[str, BaseDistribution]


def make_study_sampler(config: StudyConfig) -> BaseSampler:
    """Return the sampler of a study.

    Raises:
        UserError: if the sampler needs a package that is not installed.
    """
    if isinstance(config.sampler, FreezeThaw):
        from fmnist_search.search.freeze_thaw_sampler import FreezeThawSampler  # with scipy, which takes its time

        return FreezeThawSampler(config.sampler, config.seed, config.space, config.budget.epochs)
    return make_sampler(config.sampler, config.seed, config.space)


@functools.singledispatch
def make_sampler(settings: Sampler, seed: int, space: Space) -> BaseSampler:
    """Return the sampler with these settings, which must be of one that chooses nothing but recipes.

    Its draws for a trial depend only on the seed, the number of the trial and the trials that it is shown.

    Raises:
        UserError: if the sampler needs a package that is not installed.
    """
    raise NotImplementedError(f"no sampler for {settings!r}")


@make_sampler.register
def _tpe(settings: Tpe, seed: int, space: Space) -> BaseSampler:
    def create(trial_seed: int) -> BaseSampler:
        return optuna.samplers.TPESampler(
            n_startup_trials=settings.startup_trials,
            n_ei_candidates=settings.candidates,
            multivariate=True,
            seed=trial_seed,
        )

    # With fewer trials than `startup_trials` it would sample at random for ever.
    size = max(settings.window, settings.startup_trials) if settings.window else None
    return WindowedSampler(create, seed, joint_distributions(settings, space), TrialWindow(size))


@make_sampler.register
def _random(settings: Random, seed: int, space: Space) -> BaseSampler:
    def create(trial_seed: int) -> BaseSampler:
        return optuna.samplers.RandomSampler(seed=trial_seed)

    return PerTrialSampler(create, seed, joint_distributions(settings, space))


@make_sampler.register
def _gp(settings: Gp, seed: int, space: Space) -> BaseSampler:
    def create(trial_seed: int) -> BaseSampler:
        return optuna.samplers.GPSampler(
            n_startup_trials=settings.startup_trials, seed=trial_seed, warn_independent_sampling=False
        )

    return PerTrialSampler(create, seed, joint_distributions(settings, space))


@make_sampler.register
def _cmaes(settings: Cmaes, seed: int, space: Space) -> BaseSampler:
    if importlib.util.find_spec("cmaes") is None:
        raise UserError(
            "sampler: 'cmaes' needs the package cmaes; install it with `pip install 'fmnist-search[cmaes]'`"
        )

    def create(trial_seed: int) -> BaseSampler:
        return optuna.samplers.CmaEsSampler(
            n_startup_trials=settings.startup_trials,
            popsize=settings.population,
            seed=trial_seed,
            warn_independent_sampling=False,
        )

    return PerTrialSampler(create, seed, joint_distributions(settings, space))


@make_sampler.register
def _qmc(settings: Qmc, seed: int, space: Space) -> BaseSampler:
    def create(trial_seed: int) -> BaseSampler:
        # All trials share one sequence, by the seed of the study. Only independent draws use the seed of the trial.
        return optuna.samplers.QMCSampler(
            qmc_type=settings.sequence,
            scramble=True,
            seed=seed % 2**32,
            warn_independent_sampling=False,
            independent_sampler=optuna.samplers.RandomSampler(seed=trial_seed),
        )

    return PerTrialSampler(create, seed, joint_distributions(settings, space))


@make_sampler.register
def _grid(settings: Grid, seed: int, space: Space) -> BaseSampler:
    return ConditionalGridSampler(space, seed)


def joint_distributions(settings: Sampler, space: Space) -> list[Distributions]:
    """Return the groups of distributions, by Optuna's names, that a sampler samples jointly."""
    groups = settings.joint_groups(hyperparameter_groups(space))
    return [{name: to_distribution(domain) for name, domain in group.items()} for group in groups]


@contextmanager
def ignore_experimental_warnings() -> Iterator[None]:
    """Suppress the warning that Optuna gives each time something experimental is created."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def random_sampling(study: optuna.Study, config: StudyConfig, *, enabled: bool) -> Iterator[None]:
    """Let a study sample at random while the context is open, unless it tries the recipes of a grid."""
    if not enabled or isinstance(config.sampler, Grid):
        yield
        return
    sampler = study.sampler
    study.sampler = make_sampler(Random(), config.seed, config.space)
    try:
        yield
    finally:
        study.sampler = sampler


class PerTrialSampler(BaseSampler):
    """Creates a sampler for each trial, with a seed from the study's seed and the trial's number.

    Optuna seeds a sampler once per process: after a restart it would repeat its first draws, and two workers that
    start together would draw the same values. The groups of distributions come from the space. Optuna would infer
    them from the trials, and would miss a range that was widened and conditional hyperparameters that no trial has
    had yet.
    """

    def __init__(self, create: Callable[[int], BaseSampler], seed: int, groups: Sequence[Distributions]):
        self._create = create
        self._seed = seed
        self._groups = groups
        self._current: tuple[int, BaseSampler] | None = None

    def _sampler_of(self, trial: FrozenTrial) -> BaseSampler:
        if self._current is None or self._current[0] != trial.number:
            digest = hashlib.sha256(f"sampler/{self._seed}/{trial.number}".encode()).digest()
            with ignore_experimental_warnings():
                self._current = trial.number, self._create(int.from_bytes(digest[:4], "big"))
        return self._current[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        """Return the distributions of all groups."""
        return {name: distribution for group in self._groups for name, distribution in group.items()}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Sample each group on its own."""
        if trial.system_attrs.get("fixed_params"):
            return {}  # a queued trial: values that it was not given are sampled independently
        sampler = self._sampler_of(trial)
        values: dict[str, Any] = {}
        for group in self._groups:
            if group:
                values |= sampler.sample_relative(study, trial, group)
        return values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a hyperparameter outside all groups."""
        return self._sampler_of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Call the same method of the trial's sampler."""
        self._sampler_of(trial).before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Call the same method of the trial's sampler."""
        self._sampler_of(trial).after_trial(study, trial, state, values)


class WindowedSampler(PerTrialSampler):
    """Shows the sampler of each trial a window of the trials of the study."""

    def __init__(
        self, create: Callable[[int], BaseSampler], seed: int, groups: Sequence[Distributions], window: TrialWindow
    ):
        super().__init__(create, seed, groups)
        self._view = StudyView(window)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Sample each group on its own, from the window."""
        values = super().sample_relative(self._view.show(study, trial), trial, search_space)
        self._view.store_attributes(study, trial)
        return values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a hyperparameter outside all groups, from the window."""
        return super().sample_independent(self._view.show(study, trial), trial, param_name, param_distribution)


class ConditionalGridSampler(BaseSampler):
    """Samples every recipe of a space once, in a random order.

    Optuna's grid sampler supports no conditional hyperparameters.
    """

    def __init__(self, space: Space, seed: int):
        self._points = list(grid_points(space))
        random.Random(seed).shuffle(self._points)
        self._keys = [params_key(point) for point in self._points]
        self._keys_of_trials: dict[int, tuple[FrozenTrial, ParamsKey, ParamsKey]] = {}
        self._chosen_points: dict[int, Mapping[str, Value]] = {}

    def is_exhausted(self, study: optuna.Study) -> bool:
        """Return whether every recipe has a trial, be it running, completed, pruned or failed."""
        return self._next_point(study, -1) is None

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Choose the recipe of the trial; an exhausted grid repeats its first recipe."""
        # Not in sample_independent: with Hyperband, Optuna shows that method the trials of one bracket only.
        self._chosen_points = {trial.number: self._next_point(study, trial.number) or self._points[0]}

    def _next_point(self, study: optuna.Study, trial_number: int) -> Mapping[str, Value] | None:
        taken: set[ParamsKey] = set()
        for trial in study.get_trials(deepcopy=False):
            sampled, queued = self._keys_of(trial)
            taken.add(queued)
            if trial.number != trial_number:
                taken.add(sampled)
        return next((point for point, key in zip(self._points, self._keys, strict=True) if key not in taken), None)

    def _keys_of(self, trial: FrozenTrial) -> tuple[ParamsKey, ParamsKey]:
        """Return the keys of the values of a trial, and of those with which it was queued; once for each trial."""
        known = self._keys_of_trials.get(trial.number)
        if known is None or known[0] is not trial:
            queued = trial.system_attrs.get("fixed_params", {})
            known = self._keys_of_trials[trial.number] = trial, params_key(trial.params), params_key(queued)
        return known[1], known[2]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value in the recipe of the trial."""
        point = self._chosen_points[trial.number]
        if param_name in point:
            return point[param_name]
        return optuna.samplers.RandomSampler(seed=trial.number).sample_independent(
            study, trial, param_name, param_distribution
        )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        """Return no distributions: nothing is sampled jointly."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return no values: nothing is sampled jointly."""
        return {}


def is_exhausted(study: optuna.Study) -> bool:
    """Return whether the study samples a grid and every recipe of the grid has a trial."""
    return isinstance(study.sampler, ConditionalGridSampler) and study.sampler.is_exhausted(study)
