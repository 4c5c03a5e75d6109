"""What a space lets vary: which values each hyperparameter takes, on what it depends, how many recipes there are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fmnist_search.config.space import Choice, Domain, Pin, Range, Space, ends
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import FAMILIES, Recipe, in_use, known_hyperparameters

GATE_VALUES = 1000
"""A range of more values than this is not looked through for what depends on them: its ends are."""


@dataclass(frozen=True)
class Variable:
    """A hyperparameter that a space lets vary in one family.

    `depends_on` names the hyperparameters that decide whether it is there, each with the values for which it is.
    """

    name: str
    domain: Domain
    depends_on: Mapping[str, tuple[Value, ...]]

    def is_there(self, chosen: Mapping[str, Value]) -> bool:
        """Whether a recipe has it, given what it depends on."""
        return all(chosen.get(gate) in wanted for gate, wanted in self.depends_on.items())


@dataclass(frozen=True)
class Size:
    """How many recipes a space holds, and the names of those hyperparameters that have no end of values."""

    recipes: int
    endless: tuple[str, ...]


def values(domain: Domain) -> tuple[Value, ...] | None:
    """All values of a domain; None where there is no end of them."""
    match domain:
        case Pin(value):
            return (value,)
        case Choice(choices):
            return choices
        case Range(low, high, _, step) if isinstance(low, int) and isinstance(high, int):
            return tuple(range(low, high + 1, int(step or 1)))
        case Range(low, high, _, step) if step:
            # A last step that falls on `high` but for rounding is `high`, and no more.
            return tuple(min(low + step * n, high) for n in range(math.floor((high - low) / step + 1e-8) + 1))
    return None


def count(domain: Domain) -> int | None:
    """How many values a domain has; None where there is no end of them."""
    match domain:
        case Range(low, high, _, step) if isinstance(low, int) and isinstance(high, int):
            return len(range(low, high + 1, int(step or 1)))
    all_values = values(domain)
    return None if all_values is None else len(all_values)


def variables(space: Space, family: str) -> list[Variable]:
    """What varies in the recipes of one family, in the order in which it is drawn.

    A domain of what no recipe of the space has (the third block of networks of two) is left out.
    """
    domains = space.domains(family)
    known = known_hyperparameters(FAMILIES[family])
    gates = {name: _gates(name, family, domains) for name in known if not isinstance(domains.get(name, Pin(0)), Pin)}
    return [Variable(name, domains[name], wanted) for name, wanted in gates.items() if wanted is not None]


def _gates(name: str, family: str, domains: Mapping[str, Domain]) -> dict[str, tuple[Value, ...]] | None:
    """What decides whether a hyperparameter is there, with the values for which it is; None where it never is."""
    others = {other: _candidates(domain) for other, domain in domains.items() if other != name}

    def wanted(other: str, point: Mapping[str, Value]) -> tuple[Value, ...]:
        return tuple(value for value in others[other] if in_use(name, FAMILIES[family], {**point, other: value}))

    flat = Recipe().replace({"model.family": family}).flat()
    point = {**flat, **{other: candidates[-1] for other, candidates in others.items()}}
    while not in_use(name, FAMILIES[family], point):
        switch = next((other for other in others if wanted(other, point)), None)
        if switch is None:
            return None
        point[switch] = wanted(switch, point)[0]
    gates = {other: wanted(other, point) for other in others}
    return {other: values for other, values in gates.items() if len(values) < len(others[other])}


def _candidates(domain: Domain) -> tuple[Value, ...]:
    few = (count(domain) or math.inf) <= GATE_VALUES
    return (values(domain) if few else None) or ends(domain)


def size(space: Space) -> Size:
    """How many recipes a space holds; what has no end of values counts as one and is named."""
    recipes, endless = 0, set()
    for family in space.families:
        for _, there in _branches(variables(space, family)):
            counts = {variable.name: count(variable.domain) for variable in there}
            recipes += math.prod(number or 1 for number in counts.values())
            endless |= {name for name, number in counts.items() if number is None}
    return Size(recipes, tuple(sorted(endless)))


def points(space: Space, family: str) -> Iterator[dict[str, Value]]:
    """Every combination of one family's values, each with what is there in it; what has no end is an error."""
    for chosen, there in _branches(variables(space, family)):
        columns = [values(variable.domain) for variable in there]
        assert all(column is not None for column in columns)
        for row in itertools.product(*(column or () for column in columns)):
            yield chosen | {variable.name: value for variable, value in zip(there, row, strict=True)}


def _branches(all_variables: list[Variable]) -> Iterator[tuple[dict[str, Value], list[Variable]]]:
    """Each choice of what others depend on, with the variables that are there besides."""
    gates = {gate for variable in all_variables for gate in variable.depends_on}
    gating = [variable for variable in all_variables if variable.name in gates]
    for row in itertools.product(*(values(variable.domain) or () for variable in gating)):
        chosen = {variable.name: value for variable, value in zip(gating, row, strict=True)}
        yield chosen, [v for v in all_variables if v.name not in gates and v.is_there(chosen)]


def always_there(space: Space) -> dict[str, Domain]:
    """What every recipe of a space has, of whatever family, by dotted name."""
    if len(space.families) > 1:
        own = [variables(space, family) for family in space.families]
        return {v.name: v.domain for v in own[0] if not v.depends_on and not v.name.startswith("model.")}
    return {v.name: v.domain for v in variables(space, space.families[0]) if not v.depends_on}


def ranges_of_all(space: Space) -> dict[str, Domain]:
    """The ranges among what every recipe has."""
    return {name: domain for name, domain in always_there(space).items() if isinstance(domain, Range)}
