"""The recorded recipes of a table: which is nearest to a proposal, what it reaches, and what its epochs cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.curves.table import Curve, CurveTable
from fmnist_search.config.conditional_space import varying_names
from fmnist_search.config.domain import Choice, Domain, Range
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import is_active
from fmnist_search.search.candidates import Params
from fmnist_search.search.suggest import start_params

Array = npt.NDArray[np.float64]

EXACT = 1e-12
"""Squared distance up to which two recipes are the same."""


class RecordedRecipes:
    """The random recipes of a table and their neighbours: values, Optuna's parameters, curves, and costs of epochs.

    The unit of costs is the mean full training of a random recipe. The random recipes are the first `random_count`.
    """

    def __init__(self, table: CurveTable, clock: str):
        random, neighbours = (_distinct(table.curves_of_kind(kind)) for kind in ("search", "neighbour"))
        recorded = [*random.values(), *(curve for key, curve in neighbours.items() if key not in random)]
        self.config = StudyConfig.from_dict(table.header.study)
        self.precision = table.header.precision
        self.seed_deviation = table.seed_deviation()
        self.random_count = len(random)
        self.curves = [curve.val_accuracy for curve in recorded]
        self.values = [curve.values for curve in recorded]
        self.params: list[Params] = [start_params(self.config, "", curve.values)[0] for curve in recorded]
        self.final_accuracies = np.array([curve[-1] for curve in self.curves])
        self.seconds = [curve.seconds for curve in recorded]
        costs = np.array(self.seconds)
        if clock != "seconds":
            costs = np.ones_like(costs)
        self.epoch_costs = costs / costs[: self.random_count].sum(1).mean()
        domains, varying = self.config.space.domains("cnn"), varying_names(self.config.space)
        self._domains = {name: domain for name, domain in domains.items() if name in varying}
        self.features = np.stack([self.feature_vector(values) for values in self.values])

    @property
    def random_accuracies(self) -> Array:
        """The final accuracies of the random recipes."""
        return self.final_accuracies[: self.random_count]

    def nearest_recipe(self, values: Mapping[str, Value], free: Collection[int]) -> int:
        """Return the nearest of the free recipes, with each hyperparameter scaled to a domain of length 1."""
        candidates = sorted(free)
        return candidates[int(self._distances(values, candidates).argmin())]

    def is_recorded_as(self, recipe: int, values: Mapping[str, Value]) -> bool:
        """Return whether a recorded recipe has these values."""
        return bool(self._distances(values, [recipe])[0] <= EXACT)

    def _distances(self, values: Mapping[str, Value], recipes: Sequence[int]) -> Array:
        distances: Array = self.squared_differences(self.feature_vector(values)[None], recipes)[0].sum(1)
        return distances

    def squared_differences(self, features: Array, recipes: Sequence[int] | slice = slice(None)) -> Array:
        """Return for each feature vector, recorded recipe and hyperparameter how far they are apart, squared."""
        recorded = self.features[recipes]
        differences = recorded[None] - features[:, None]
        # A hyperparameter that only one of two recipes has counts as half a domain.
        squares = np.where(np.isnan(differences), 0.25, differences**2)
        both_absent = np.isnan(recorded)[None] & np.isnan(features)[:, None]
        return np.where(both_absent, 0.0, squares)

    def feature_vector(self, values: Mapping[str, Value]) -> Array:
        """Return the hyperparameters of a recipe, each scaled to a domain of length 1; NaN for those it lacks."""
        there = {name: domain for name, domain in self._domains.items() if is_active(name, FAMILIES["cnn"], values)}
        places = {name: _normalized_position(values[name], domain) for name, domain in there.items()}
        return np.array([places.get(name, math.nan) for name in self._domains])


def _distinct(curves: Mapping[int, Curve]) -> dict[tuple[tuple[str, Value], ...], Curve]:
    """Return the first curve of each recipe by its values; two of the best recipes may have the same neighbour."""
    found: dict[tuple[tuple[str, Value], ...], Curve] = {}
    for number in sorted(curves):
        if not curves[number].failed:
            found.setdefault(tuple(sorted(curves[number].values.items())), curves[number])
    return found


def _normalized_position(value: Value, domain: Domain) -> float:
    match domain:
        case Choice(choices):
            return choices.index(value) / (len(choices) - 1)
        case Range(low, high, True):
            assert not isinstance(value, str)
            return math.log(value / low) / math.log(high / low)
        case Range(low, high):
            assert not isinstance(value, str)
            return (value - low) / (high - low)
    return 0.0
