"""What a space lets vary: conditional hyperparameters, the number of recipes, varying and constant values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fmnist_search.config.domain import Choice, Domain, Fixed, Range, bounds, domain_values, value_count
from fmnist_search.config.space import NOT_SEARCHABLE, Space
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe, is_active, recipe_hyperparameters

FAMILY_NAME = "model.family"

MAX_CONDITION_VALUES = 1000
"""Of a range with more values, only the ends are checked for hyperparameters that depend on it."""


# ----------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class ConditionalHyperparameter:
    """A hyperparameter that varies within one family.

    `conditions` maps each hyperparameter on which it depends to the values with which it is active.
    """

    name: str
    domain: Domain
    conditions: Mapping[str, tuple[Value, ...]]

    def is_active(self, chosen: Mapping[str, Value]) -> bool:
        """Return whether a recipe with these values has the hyperparameter."""
        return all(chosen.get(other) in allowed for other, allowed in self.conditions.items())


def conditional_hyperparameters(space: Space, family: str) -> list[ConditionalHyperparameter]:
    """Return the hyperparameters that vary in the recipes of a family, in the order in which they are sampled.

    A hyperparameter that is active in no recipe of the space (the third block of networks of two) is left out.
    """
    domains = space.domains(family)
    conditions = {
        name: _conditions(name, family, domains)
        for name in recipe_hyperparameters(FAMILIES[family])
        if not isinstance(domains.get(name, Fixed(0)), Fixed)
    }
    return [
        ConditionalHyperparameter(name, domains[name], found) for name, found in conditions.items() if found is not None
    ]


def _conditions(name: str, family: str, domains: Mapping[str, Domain]) -> dict[str, tuple[Value, ...]] | None:
    """Return the hyperparameters on which one depends, with the values that activate it; None if nothing does."""
    others = {other: _condition_values(domain) for other, domain in domains.items() if other != name}

    def activating(other: str, point: Mapping[str, Value]) -> tuple[Value, ...]:
        return tuple(value for value in others[other] if is_active(name, FAMILIES[family], {**point, other: value}))

    defaults = Recipe().replace({FAMILY_NAME: family}).to_flat_dict()
    point = {**defaults, **{other: values[-1] for other, values in others.items()}}
    while not is_active(name, FAMILIES[family], point):
        switch = next((other for other in others if activating(other, point)), None)
        if switch is None:
            return None
        point[switch] = activating(switch, point)[0]
    conditions = {other: activating(other, point) for other in others}
    return {other: values for other, values in conditions.items() if len(values) < len(others[other])}


def _condition_values(domain: Domain) -> tuple[Value, ...]:
    few = (value_count(domain) or math.inf) <= MAX_CONDITION_VALUES
    return (domain_values(domain) if few else None) or bounds(domain)


def family_domain(space: Space) -> Domain:
    """Return the domain of the family."""
    return Choice(space.families) if len(space.families) > 1 else Fixed(space.families[0])


def qualified_name(space: Space, family: str, name: str) -> str:
    """Return the name of a hyperparameter in its study: `cnn.depth` for `model.depth` if it has several families."""
    if len(space.families) > 1 and name.startswith("model."):
        return f"{family}.{name.removeprefix('model.')}"
    return name


def hyperparameter_groups(space: Space) -> list[dict[str, Domain]]:
    """Return the domains that vary, by qualified name; each group holds hyperparameters that the same recipes have.

    The first group, which may be empty, holds what all recipes have.
    """
    groups: dict[object, dict[str, Domain]] = {(): {}}
    if len(space.families) > 1:
        groups[()][FAMILY_NAME] = family_domain(space)
    for family in space.families:
        for variable in conditional_hyperparameters(space, family):
            if value_count(variable.domain) == 1:
                continue
            own = len(space.families) > 1 and variable.name.startswith("model.")
            conditions = tuple(sorted(variable.conditions.items()))
            group = groups.setdefault((family, *conditions) if own else conditions, {})
            group[qualified_name(space, family, variable.name)] = variable.domain
    return list(groups.values())


# ------------------------------------------------------------------------------ all recipes of a space


@dataclass(frozen=True)
class SpaceSize:
    """The number of recipes of a space, and the names of the hyperparameters with infinitely many values."""

    recipe_count: int
    unbounded: tuple[str, ...]


def space_size(space: Space) -> SpaceSize:
    """Return the size of a space; an infinite domain counts as one value and is named."""
    recipes, unbounded = 0, set()
    for family in space.families:
        for _, active in _enumerate_branches(conditional_hyperparameters(space, family)):
            counts = {variable.name: value_count(variable.domain) for variable in active}
            recipes += math.prod(count or 1 for count in counts.values())
            unbounded |= {name for name, count in counts.items() if count is None}
    return SpaceSize(recipes, tuple(sorted(unbounded)))


def enumerate_points(space: Space, family: str) -> Iterator[dict[str, Value]]:
    """Yield every combination of values of one family, with the active hyperparameters only; needs a finite space."""
    for chosen, active in _enumerate_branches(conditional_hyperparameters(space, family)):
        columns = [domain_values(variable.domain) for variable in active]
        assert all(column is not None for column in columns)
        for row in itertools.product(*(column or () for column in columns)):
            yield chosen | {variable.name: value for variable, value in zip(active, row, strict=True)}


def _enumerate_branches(
    variables: list[ConditionalHyperparameter],
) -> Iterator[tuple[dict[str, Value], list[ConditionalHyperparameter]]]:
    """Yield each combination of the values that conditions name, with the other hyperparameters that it activates."""
    names = {other for variable in variables for other in variable.conditions}
    switches = [variable for variable in variables if variable.name in names]
    for row in itertools.product(*(domain_values(variable.domain) or () for variable in switches)):
        chosen = {variable.name: value for variable, value in zip(switches, row, strict=True)}
        yield chosen, [v for v in variables if v.name not in names and v.is_active(chosen)]


# ------------------------------------------------------------------------- what varies and what does not


def unconditional_domains(space: Space) -> dict[str, Domain]:
    """Return the varying domains, by dotted name, that every recipe of a space has, of whatever family."""
    if len(space.families) > 1:
        own = [conditional_hyperparameters(space, family) for family in space.families]
        return {v.name: v.domain for v in own[0] if not v.conditions and not v.name.startswith("model.")}
    return {v.name: v.domain for v in conditional_hyperparameters(space, space.families[0]) if not v.conditions}


def unconditional_ranges(space: Space) -> dict[str, Domain]:
    """Return the ranges among the unconditional domains."""
    return {name: domain for name, domain in unconditional_domains(space).items() if isinstance(domain, Range)}


def searchable_values(given: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values, by dotted name, without those that a study sets for all its trials."""
    return {name: value for name, value in given.items() if name not in NOT_SEARCHABLE and name != "schema_version"}


def varying_names(space: Space) -> list[str]:
    """Return the dotted names of everything that may differ between trials, in the order of a recipe."""
    names = [FAMILY_NAME] if len(space.families) > 1 else []
    for family in space.families:
        varying = _varying_in_family(space, family)
        names += [name for name in recipe_hyperparameters(FAMILIES[family]) if name in varying]
    return list(dict.fromkeys(names))


def constant_values(space: Space, base: Recipe) -> dict[str, Value]:
    """Return the values, by dotted name, that are the same in all trials of a study with this base recipe."""
    varying = {*varying_names(space), "seed"}
    ends = {n: bounds(d) for n, d in space.domains(space.families[0]).items()}
    # A value that does not vary may still follow from one that does: from a depth of 3 or 4, the default of width_3.
    lowest = {n: end[0] for n, end in ends.items() if len(end) == 1 or n.startswith("model.")}
    values = base.replace({FAMILY_NAME: space.families[0], **lowest}).to_flat_dict()
    if len(space.families) > 1:
        values = {name: value for name, value in values.items() if not name.startswith("model.")}
    return {name: value for name, value in values.items() if name not in varying}


def _varying_in_family(space: Space, family: str) -> set[str]:
    """Return the names that are sampled, or belong to a block that not all recipes of the family have."""
    domains = space.domains(family)
    sampled = {name for name, domain in domains.items() if not isinstance(domain, Fixed)}
    ends = {name: bounds(domain) for name, domain in domains.items() if name.startswith("model.")}
    lowest = {FAMILY_NAME: family, **{name: values[0] for name, values in ends.items()}}
    recipes = [
        Recipe().replace({**lowest, name: end}).to_flat_dict() for name, values in ends.items() for end in values
    ]
    blocks = {name for flat in recipes for name in flat if name.startswith("model.") and flat[name] != recipes[0][name]}
    return sampled | blocks
