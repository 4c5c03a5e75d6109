"""Random recipes as candidates, and the features by which a model compares recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna

from fmnist_search.config.conditional_space import (
    FAMILY_NAME,
    conditional_hyperparameters,
    family_domain,
    hyperparameter_groups,
    qualified_name,
)
from fmnist_search.config.domain import Choice, Domain, Fixed, Range, is_ordered
from fmnist_search.config.space import Space
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.search.suggest import to_distribution

Array = npt.NDArray[np.float64]
Params = Mapping[str, Any]
"""Optuna's parameters of a trial, by qualified name."""

ParamsKey = tuple[tuple[str, Any], ...]

ABSENT = 0.5
"""The feature of a hyperparameter that a recipe does not have: the middle of its domain."""


class RecipeFeatures:
    """Features of the recipes of a space, each from 0 to 1.

    A number has its position in its domain, in the logarithm where the domain has one; of a list of numbers, its place.
    A list of words or of yes and no has one feature for each of its values.
    """

    def __init__(self, space: Space):
        self._domains = {n: domain for group in hyperparameter_groups(space) for n, domain in group.items()}

    def of(self, params: Params) -> Array:
        """Return the features (d,) of Optuna's parameters of a trial."""
        return np.array(
            [value for name, domain in self._domains.items() for value in _encode(domain, params.get(name))]
        )


def _encode(domain: Domain, value: Any) -> list[float]:
    match domain:
        case Range():
            return [ABSENT if value is None else domain.relative_position(value)]
        case Choice(values) if is_ordered(domain):
            return [ABSENT if value is None else sorted(values).index(value) / (len(values) - 1)]
        case Choice(values):
            return [ABSENT if value is None else float(value == each) for each in values]
    return []


class RandomRecipes:
    """Draws recipes of a space at random, as Optuna's parameters; the draws for a trial depend on its number."""

    def __init__(self, space: Space, seed: int):
        self._space = space
        self._seed = seed
        self._hyperparameters = {family: conditional_hyperparameters(space, family) for family in space.families}

    def draw(self, number: int, count: int) -> Iterator[dict[str, Value]]:
        """Yield so many recipes for the trial of this number."""
        seed = int(np.random.default_rng([self._seed, number]).integers(2**32))
        sampler = optuna.samplers.RandomSampler(seed=seed)
        study = optuna.create_study(sampler=sampler)
        trial = study.ask()
        frozen = study.get_trials(deepcopy=False)[trial.number]

        def sample(name: str, domain: Domain) -> Value:
            if isinstance(domain, Fixed):
                return domain.value
            value: Value = sampler.sample_independent(study, frozen, name, to_distribution(domain))
            return value

        return (self._draw(sample) for _ in range(count))

    def _draw(self, sample: Any) -> dict[str, Value]:
        family = str(sample(FAMILY_NAME, family_domain(self._space)))
        values: dict[str, Value] = {FAMILY_NAME: family} if len(self._space.families) > 1 else {}
        params = dict(values)
        for variable in self._hyperparameters[family]:
            if variable.is_active(values):
                values[variable.name] = sample(variable.name, variable.domain)
                params[qualified_name(self._space, family, variable.name)] = values[variable.name]
        return params


def params_key(params: Params) -> ParamsKey:
    """Return a key that is the same for equal parameters."""
    return tuple(sorted(params.items()))


def unseen(candidates: Sequence[Params], known: set[ParamsKey]) -> list[Params]:
    """Return the candidates that are none of the known recipes, each once."""
    found = {params_key(params): params for params in candidates}
    return [params for key, params in found.items() if key not in known]
