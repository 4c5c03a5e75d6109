"""The first recipes of a study, sampled without storing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from fmnist_search.config.samplers import Grid
from fmnist_search.config.space import Space
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import ModelSummary, summarize
from fmnist_search.search.samplers import make_study_sampler
from fmnist_search.search.suggest import base_recipe, grid_points, suggest_recipe, trial_seed

MEMORY_TRAFFIC_FACTOR = 4
"""How often a training step moves the float32 outputs of the layers: 1.9 MB per image, measured for cnn 32-64-128."""


@dataclass(frozen=True)
class RecipePreview:
    """A recipe that a study might start with, and the summary of its network."""

    recipe: Recipe
    summary: ModelSummary

    @property
    def step_bytes(self) -> int:
        """Estimated number of bytes that a training step moves."""
        return MEMORY_TRAFFIC_FACTOR * self.recipe.batch_size * self.summary.activation_bytes


class _SmallestValues(optuna.samplers.BaseSampler):
    """Samples the smallest number of each domain; of other choices the first."""

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
        """Return the smallest value."""
        if isinstance(param_distribution, FloatDistribution | IntDistribution):
            return param_distribution.low
        assert isinstance(param_distribution, CategoricalDistribution)
        choices = param_distribution.choices
        numbers = [choice for choice in choices if isinstance(choice, int | float)]
        return min(numbers) if len(numbers) == len(choices) else choices[0]


def recipes_of_space(config: StudyConfig, count: int) -> Iterator[Recipe]:
    """Yield a recipe of the smallest values for each family, then `count` random ones; of a grid, all its recipes."""
    base, families = base_recipe(config, "float32"), config.space.families
    spaces = [Space((family,), config.space.common, config.space.by_family) for family in families]
    if isinstance(config.sampler, Grid):
        for point in grid_points(config.space):
            yield suggest_recipe(optuna.trial.FixedTrial(point), config.space, base, 0)
        return
    for space in spaces:
        yield suggest_recipe(optuna.create_study(sampler=_SmallestValues()).ask(), space, base, 0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.seed))
    for _ in range(count):
        yield suggest_recipe(study.ask(), config.space, base, 0)


def preview_recipes(config: StudyConfig, precision: str, count: int = 5) -> Iterator[RecipePreview]:
    """Sample recipes and build their networks.

    Raises:
        UserError: if a network is too large to be built.
    """
    base = base_recipe(config, precision)
    study = optuna.create_study(direction="maximize", sampler=make_study_sampler(config))
    for _ in range(count):
        trial = study.ask()
        recipe = suggest_recipe(trial, config.space, base, trial_seed(config.seed, trial.number))
        yield RecipePreview(recipe, summarize(recipe.model))
        study.tell(trial, 0.0)
