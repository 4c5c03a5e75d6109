"""The first recipes of a study, drawn without starting it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import optuna

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import ModelSummary, summarize
from fmnist_search.search.samplers import make_sampler
from fmnist_search.search.suggest import base_recipe, suggest_recipe, trial_seed

MEMORY_TRAFFIC_FACTOR = 4
"""Times that a training step moves what its layers put out in float32: measured 1.9 MB an image for cnn 32-64-128."""


@dataclass(frozen=True)
class RecipePreview:
    """A recipe that a study might begin with, and its network."""

    recipe: Recipe
    summary: ModelSummary

    @property
    def step_bytes(self) -> int:
        """About how many bytes a training step moves."""
        return MEMORY_TRAFFIC_FACTOR * self.recipe.batch_size * self.summary.activation_bytes


def preview_recipes(config: StudyConfig, precision: str, count: int = 5) -> Iterator[RecipePreview]:
    """Draw so many recipes.

    Raises:
        UserError: a drawn network is refused.
    """
    base = base_recipe(config, precision)
    study = optuna.create_study(direction="maximize", sampler=make_sampler(config.sampler, config.seed, config.space))
    for _ in range(count):
        trial = study.ask()
        recipe = suggest_recipe(trial, config.space, base, trial_seed(config.seed, trial.number))
        yield RecipePreview(recipe, summarize(recipe.model))
        study.tell(trial, 0.0)
