"""Studies for tests: a small one to vary, and Hypothesis strategies for `[space]` tables."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hypothesis import strategies as st

from fmnist_search.config.space import NOT_SEARCHABLE
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import Hyperparameter, hyperparameters
from fmnist_search.recipe.recipe import recipe_hyperparameters
from tests.support.strategies import hyperparameter_values

SMALL_SPACE: dict[str, Any] = {
    "common": {"batch_size": [64, 128], "optimizer": {"learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}},
    "cnn": {"depth": [1, 2, 3], "width_1": [8, 16], "width_2": [16, 32], "width_3": [32, 64]},
}


def make_study(space: dict[str, Any] | None = None, **changes: Any) -> StudyConfig:
    """Return a valid study with another space or other tables."""
    tables = {"name": "small", "budget": {"trials": 20, "epochs": 3}, "space": space or SMALL_SPACE, **changes}
    return StudyConfig.from_dict(tables)


SHARED_HYPERPARAMETERS = {
    name: spec
    for name, spec in recipe_hyperparameters(FAMILIES["cnn"]).items()
    if not name.startswith("model.") and name not in NOT_SEARCHABLE
}
# So that every batch fits into the images of a study that does not set their number.
SHARED_HYPERPARAMETERS["batch_size"] = dataclasses.replace(SHARED_HYPERPARAMETERS["batch_size"], high=1_000)


@st.composite
def space_tables(draw: st.DrawFn, largest: float = math.inf) -> dict[str, Any]:
    """Return `[space]` tables with any families and domains, with numbers up to `largest`."""
    families = draw(st.lists(st.sampled_from(sorted(FAMILIES)), min_size=1, unique=True))
    tables = {"common": {"family": families, **draw(_domains(SHARED_HYPERPARAMETERS, largest))}}
    for family in families:
        own = {name.removeprefix("model."): spec for name, spec in hyperparameters(FAMILIES[family], "model.").items()}
        tables[family] = draw(_domains(own, largest))
    return tables


def _domains(known: dict[str, Hyperparameter], largest: float) -> st.SearchStrategy[dict[str, Any]]:
    names = st.lists(st.sampled_from(sorted(known)), max_size=6, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: _domain(known[name], largest) for name in chosen}))


def _domain(spec: Hyperparameter, largest: float) -> st.SearchStrategy[Any]:
    values = _values(spec, largest)
    several = st.lists(values, min_size=1, max_size=4, unique=True)
    ranges = spec.choices is None and spec.kind in (int, float)
    return st.one_of(values, several, _ranges(spec, largest)) if ranges else values | several


def _values(spec: Hyperparameter, largest: float) -> st.SearchStrategy[Any]:
    if spec.choices is None and spec.kind in (int, float) and largest < math.inf:
        high = min(largest, largest if spec.high is None else spec.high)
        if spec.kind is int:
            return st.integers(int(spec.low or 0), int(high))
        return st.floats(spec.low if spec.above is None else spec.above + 1e-6, high, allow_subnormal=False)
    return hyperparameter_values(spec)


@st.composite
def _ranges(draw: st.DrawFn, spec: Hyperparameter, largest: float) -> dict[str, Any]:
    values = _values(spec, largest)
    low, high = sorted(draw(st.tuples(values, values).filter(lambda pair: pair[0] != pair[1])))
    table: dict[str, Any] = {"low": low, "high": high}
    kind = draw(st.sampled_from(["plain", "log", "step"]))
    if kind == "log" and low > 0:
        table["log"] = True
    elif kind == "step" and spec.kind is int:
        step = draw(st.integers(1, min(8, high - low)))
        # Optuna warns about a range that is not a multiple of its step.
        table |= {"step": step, "high": high - (high - low) % step}
    return table
