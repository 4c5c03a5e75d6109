"""What a space lets vary: which values each hyperparameter takes, on what it depends, how many recipes there are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fmnist_search.config.space import Choice, Domain, Fixed, Range, Space, bounds
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe, is_active, recipe_hyperparameters

MAX_CONDITION_VALUES = 1000
"""A range of more values than this is not looked through for what depends on them: its ends are."""


@dataclass(frozen=True)
class ConditionalHyperparameter:
    """A hyperparameter that a space lets vary in one family.

    `conditions` names the hyperparameters that decide whether it is there, each with the values for which it is.
    """

    name: str
    domain: Domain
    conditions: Mapping[str, tuple[Value, ...]]

    def is_active(self, chosen: Mapping[str, Value]) -> bool:
        """Whether a recipe has it, given what it depends on."""
        return all(chosen.get(gate) in wanted for gate, wanted in self.conditions.items())


@dataclass(frozen=True)
class SpaceSize:
    """How many recipes a space holds, and the names of those hyperparameters that have no end of values."""

    recipe_count: int
    unbounded: tuple[str, ...]


def domain_values(domain: Domain) -> tuple[Value, ...] | None:
    """All values of a domain; None where there is no end of them."""
    match domain:
        case Fixed(value):
            return (value,)
        case Choice(choices):
            return choices
        case Range(low, high, _, step) if isinstance(low, int) and isinstance(high, int):
            return tuple(range(low, high + 1, int(step or 1)))
        case Range(low, high, _, step) if step:
            # A last step that falls on `high` but for rounding is `high`, and no more.
            return tuple(min(low + step * n, high) for n in range(math.floor((high - low) / step + 1e-8) + 1))
    return None


def value_count(domain: Domain) -> int | None:
    """How many values a domain has; None where there is no end of them."""
    match domain:
        case Range(low, high, _, step) if isinstance(low, int) and isinstance(high, int):
            return len(range(low, high + 1, int(step or 1)))
    all_values = domain_values(domain)
    return None if all_values is None else len(all_values)


def conditional_hyperparameters(space: Space, family: str) -> list[ConditionalHyperparameter]:
    """What varies in the recipes of one family, in the order in which it is drawn.

    A domain of what no recipe of the space has (the third block of networks of two) is left out.
    """
    domains = space.domains(family)
    known = recipe_hyperparameters(FAMILIES[family])
    gates = {
        name: _conditions(name, family, domains) for name in known if not isinstance(domains.get(name, Fixed(0)), Fixed)
    }
    return [
        ConditionalHyperparameter(name, domains[name], wanted) for name, wanted in gates.items() if wanted is not None
    ]


def _conditions(name: str, family: str, domains: Mapping[str, Domain]) -> dict[str, tuple[Value, ...]] | None:
    """What decides whether a hyperparameter is there, with the values for which it is; None where it never is."""
    others = {other: _condition_values(domain) for other, domain in domains.items() if other != name}

    def wanted(other: str, point: Mapping[str, Value]) -> tuple[Value, ...]:
        return tuple(value for value in others[other] if is_active(name, FAMILIES[family], {**point, other: value}))

    flat = Recipe().replace({"model.family": family}).to_flat_dict()
    point = {**flat, **{other: candidates[-1] for other, candidates in others.items()}}
    while not is_active(name, FAMILIES[family], point):
        switch = next((other for other in others if wanted(other, point)), None)
        if switch is None:
            return None
        point[switch] = wanted(switch, point)[0]
    gates = {other: wanted(other, point) for other in others}
    return {other: values for other, values in gates.items() if len(values) < len(others[other])}


def _condition_values(domain: Domain) -> tuple[Value, ...]:
    few = (value_count(domain) or math.inf) <= MAX_CONDITION_VALUES
    return (domain_values(domain) if few else None) or bounds(domain)


def space_size(space: Space) -> SpaceSize:
    """How many recipes a space holds; what has no end of values counts as one and is named."""
    recipes, endless = 0, set()
    for family in space.families:
        for _, there in _enumerate_branches(conditional_hyperparameters(space, family)):
            counts = {variable.name: value_count(variable.domain) for variable in there}
            recipes += math.prod(number or 1 for number in counts.values())
            endless |= {name for name, number in counts.items() if number is None}
    return SpaceSize(recipes, tuple(sorted(endless)))


def enumerate_points(space: Space, family: str) -> Iterator[dict[str, Value]]:
    """Every combination of one family's values, each with what is there in it; what has no end is an error."""
    for chosen, there in _enumerate_branches(conditional_hyperparameters(space, family)):
        columns = [domain_values(variable.domain) for variable in there]
        assert all(column is not None for column in columns)
        for row in itertools.product(*(column or () for column in columns)):
            yield chosen | {variable.name: value for variable, value in zip(there, row, strict=True)}


def _enumerate_branches(
    all_variables: list[ConditionalHyperparameter],
) -> Iterator[tuple[dict[str, Value], list[ConditionalHyperparameter]]]:
    """Each choice of what others depend on, with the variables that are there besides."""
    gates = {gate for variable in all_variables for gate in variable.conditions}
    gating = [variable for variable in all_variables if variable.name in gates]
    for row in itertools.product(*(domain_values(variable.domain) or () for variable in gating)):
        chosen = {variable.name: value for variable, value in zip(gating, row, strict=True)}
        yield chosen, [v for v in all_variables if v.name not in gates and v.is_active(chosen)]


def unconditional_domains(space: Space) -> dict[str, Domain]:
    """What every recipe of a space has, of whatever family, by dotted name."""
    if len(space.families) > 1:
        own = [conditional_hyperparameters(space, family) for family in space.families]
        return {v.name: v.domain for v in own[0] if not v.conditions and not v.name.startswith("model.")}
    return {v.name: v.domain for v in conditional_hyperparameters(space, space.families[0]) if not v.conditions}


def unconditional_ranges(space: Space) -> dict[str, Domain]:
    """The ranges among what every recipe has."""
    return {name: domain for name, domain in unconditional_domains(space).items() if isinstance(domain, Range)}
