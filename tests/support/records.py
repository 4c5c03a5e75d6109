"""Trial records for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState


def make_record(
    number: int, state: TrialState = TrialState.COMPLETED, value: float | None = 0.9, **changes: Any
) -> TrialRecord:
    recipe = Recipe().replace({"seed": number, "model.depth": 2})
    return dataclasses.replace(TrialRecord(number, state, value, 3, recipe, seconds=2.5), **changes)
