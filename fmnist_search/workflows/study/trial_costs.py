"""The cost of a trial, which a study with two metrics minimizes."""

from __future__ import annotations

import functools
import statistics

from fmnist_search.recipe.families import Architecture
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import summarize
from fmnist_search.results.objectives import TrialCost
from fmnist_search.results.training import TrialResult


def measure_cost(metric: str, recipe: Recipe, result: TrialResult) -> TrialCost:
    """Return the cost of a completed trial; `metric` is one of `results.objectives.COST_LABELS`.

    Multiply-adds are those of one image, seconds the mean of the epochs with their validation.
    """
    match metric:
        case "mult_adds":
            return TrialCost(metric, _mult_adds(recipe.model))
        case "parameters":
            return TrialCost(metric, result.parameters)
        case "seconds_per_epoch":
            return TrialCost(metric, statistics.fmean(report.seconds for report in result.epochs))
    raise ValueError(f"no cost {metric!r}")


@functools.lru_cache(maxsize=256)
def _mult_adds(architecture: Architecture) -> int:
    return summarize(architecture).mult_adds
