"""The first recipes of a study, drawn without starting it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import optuna

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import ModelSummary, summarize
from fmnist_search.search.samplers import make_sampler
from fmnist_search.search.suggest import base_recipe, sample, trial_seed

TRAFFIC = 4
"""Times that a training step moves what its layers put out in float32: measured 1.9 MB an image for cnn 32-64-128."""


@dataclass(frozen=True)
class Sketch:
    """A recipe that a study might begin with, and its network."""

    recipe: Recipe
    summary: ModelSummary

    @property
    def step_bytes(self) -> int:
        """About how many bytes a training step moves."""
        return TRAFFIC * self.recipe.batch_size * self.summary.activation_bytes


def sketches(config: StudyConfig, precision: str, count: int = 5) -> Iterator[Sketch]:
    """Draw so many recipes.

    Raises:
        UserError: a drawn network is refused.
    """
    base = base_recipe(config, precision)
    study = optuna.create_study(direction="maximize", sampler=make_sampler(config.sampler, config.seed, config.space))
    for _ in range(count):
        trial = study.ask()
        recipe = sample(trial, config.space, base, trial_seed(config.seed, trial.number))
        yield Sketch(recipe, summarize(recipe.model))
        study.tell(trial, 0.0)
