"""Costs of a trial that modules of the user's own define, for studies that minimize them beside the accuracy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fmnist_search.errors import UserError
from fmnist_search.recipe import plugins
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.objectives import ACCURACY, COST_LABELS, TrialCost, cost_of
from fmnist_search.results.training import TrialResult
from fmnist_search.text import first_line

CostFunction: TypeAlias = Callable[[Recipe, TrialResult], float]
"""Returns a cost of a completed trial, from its recipe and its result."""

RESERVED = ("accuracy", "seconds")
"""Names by which `leaderboard` calls other metrics."""


@dataclass(frozen=True)
class OwnCost:
    """A cost that a module of the user's own defines."""

    label: str
    function: CostFunction


_own_costs: dict[str, OwnCost] = {}


def register_cost(name: str, label: str = "") -> Callable[[CostFunction], CostFunction]:
    """Return a decorator that registers a function as a cost, which study files name in `objective.metrics`.

    The process of the search calls it once for each completed trial. Its value is minimized. A trial fails if the
    function raises an exception or returns no finite number. `label` names it in tables and plots, by default `name`.

    Raises:
        UserError: if the name is not valid or is taken.
    """
    if not re.fullmatch(plugins.NAME_PATTERN, name) or name in (*RESERVED, ACCURACY, *COST_LABELS):
        raise UserError(
            f"cost {name!r}: is not a valid name, or that of another metric; use small letters, digits and _"
        )

    def register(function: CostFunction) -> CostFunction:
        known = _own_costs.get(name)
        if known and known.function.__module__ != function.__module__:
            raise UserError(f"cost {name!r}: is registered by {known.function.__module__} already; take another name")
        _own_costs[name] = OwnCost(label or name, function)
        plugins.note(plugins.COST_KEY + name, function.__module__)
        return function

    return register


def find_own_cost(metric: str) -> OwnCost | None:
    """Return the registered cost of this name; None if there is none.

    Raises:
        UserError: if the plugin that registers it cannot be loaded.
    """
    if metric not in _own_costs:
        plugins.load_cost(metric)
    return _own_costs.get(metric)


def cost_label(metric: str) -> str:
    """Return how tables and plots name a cost."""
    if metric in COST_LABELS:
        return COST_LABELS[metric]
    own = find_own_cost(metric)
    return own.label if own else metric


def compute_cost(recipe: Recipe, result: TrialResult, metric: str) -> TrialCost | None:
    """Return a cost of a completed trial, which the user's own function computes unless it is one of `COST_LABELS`.

    Raises:
        UserError: if that function fails, or returns no finite number.
    """
    if metric in COST_LABELS:
        return cost_of(result, metric)
    own = find_own_cost(metric)
    if own is None:
        raise UserError(f"objective.metrics: no module registers {metric!r}; name it below [plugins]")
    try:
        value = float(own.function(recipe, result))
    except Exception as error:
        raise UserError(f"objective.metrics: {metric}: {type(error).__name__}: {first_line(error)}") from error
    if not math.isfinite(value):
        raise UserError(f"objective.metrics: {metric}: returned {value}, which is no finite number")
    return TrialCost(metric, value)
