"""The first recipes of a study, sampled without storing anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna

from fmnist_search.config.samplers import Grid
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import ModelSummary, summarize
from fmnist_search.search.samplers import make_study_sampler
from fmnist_search.search.start_recipes import enqueue_start
from fmnist_search.search.suggest import (
    base_recipe,
    grid_points,
    sample_with_fixed,
    smallest_points,
    suggest_recipe,
    trial_seed,
)
from fmnist_search.search.trial_attributes import FIXED_VALUES_ATTRIBUTE, START_ATTRIBUTE

MEMORY_TRAFFIC_FACTOR = 4
"""How often a training step moves the float32 outputs of the layers: 1.9 MB per image, measured for cnn 32-64-128."""


@dataclass(frozen=True)
class RecipePreview:
    """A recipe that a study might start with, and the summary of its network.

    `source` names the recipe of `[start]` that it comes from, if it does.
    """

    recipe: Recipe
    summary: ModelSummary
    source: str | None = None

    @property
    def step_bytes(self) -> int:
        """Estimated number of bytes that a training step moves."""
        return MEMORY_TRAFFIC_FACTOR * self.recipe.batch_size * self.summary.activation_bytes


def recipes_of_space(config: StudyConfig, count: int) -> Iterator[Recipe]:
    """Yield a recipe of the smallest values for each family, then `count` random ones; of a grid, all its recipes."""
    base = base_recipe(config, "float32")
    for point in grid_points(config.space) if isinstance(config.sampler, Grid) else smallest_points(config.space):
        yield suggest_recipe(optuna.trial.FixedTrial(point), config.space, base, 0)
    if isinstance(config.sampler, Grid):
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.seed))
    for _ in range(count):
        yield suggest_recipe(study.ask(), config.space, base, 0)


def preview_recipes(
    config: StudyConfig, precision: str, count: int = 5, starts: Sequence[tuple[str, Mapping[str, Value]]] = ()
) -> Iterator[RecipePreview]:
    """Sample recipes and build their networks; those of `starts`, each a source and its values, come first.

    Raises:
        UserError: if a network is too large to be built, or the study refuses a start.
    """
    base = base_recipe(config, precision)
    study = optuna.create_study(direction="maximize", sampler=make_study_sampler(config))
    for source, values in starts:
        enqueue_start(study, config, source, values)
    for _ in range(max(count, len(starts))):
        trial = study.ask()
        seed, attributes = trial_seed(config.seed, trial.number), trial.user_attrs
        if FIXED_VALUES_ATTRIBUTE in attributes:
            recipe = sample_with_fixed(config.space, base, attributes[FIXED_VALUES_ATTRIBUTE], seed)
        else:
            recipe = suggest_recipe(trial, config.space, base, seed)
        yield RecipePreview(recipe, summarize(recipe.model, recipe.data.num_classes), attributes.get(START_ATTRIBUTE))
        study.tell(trial, 0.0)
