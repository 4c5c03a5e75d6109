"""Random recipes as candidates: those that a study would sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.search.candidates import RandomRecipes, RecipeFeatures, params_key, unseen
from fmnist_search.search.suggest import base_recipe, suggest_recipe
from tests.support.studies import make_study, space_tables


@settings(max_examples=30)
@given(space_tables(), st.integers(0, 2**31), st.integers(0, 50))
def test_a_drawn_recipe_has_the_parameters_that_a_trial_of_the_space_has(
    table: dict[str, Any], seed: int, number: int
) -> None:
    config = make_study(table, data={"validation": 100})
    recipes = RandomRecipes(config.space, seed)
    features = RecipeFeatures(config.space)
    drawn = list(recipes.draw(number, 3))
    assert drawn == list(recipes.draw(number, 3))
    for params in drawn:
        trial = optuna.trial.FixedTrial(params, number)
        suggest_recipe(trial, config.space, base_recipe(config, "float32"), seed)  # fails if it asks for another one
        assert trial.params == params
        encoded = features.of(params)
        assert encoded.shape == features.of({}).shape
        assert np.all((encoded >= -1e-9) & (encoded <= 1 + 1e-9))


def test_recipes_that_have_begun_and_repetitions_are_left_out() -> None:
    one, other = {"batch_size": 64, "depth": 2}, {"depth": 3, "batch_size": 64}
    assert unseen([one, other, dict(other)], {params_key({"depth": 2, "batch_size": 64})}) == [other]
