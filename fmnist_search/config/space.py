"""The `[space]` tables of a study file: a list is a choice, a table a range, a scalar a fixed value.

    [space.common]
    batch_size = [64, 128]
    optimizer.learning_rate = { low = 1e-3, high = 3e-2, log = true }
    label_smoothing = 0.1

`[space.common]` holds the hyperparameters of every family, `[space.cnn]` those of that family alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fmnist_search.config.domain import Choice, Domain, Fixed, Range
from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe import families
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.hyperparameters import Hyperparameter, hyperparameters
from fmnist_search.recipe.recipe import recipe_hyperparameters

MAX_STEPS = 10_000
"""Steps of a range. The sampler models each value, and with more it takes seconds for a trial."""

NOT_SEARCHABLE = {
    "epochs": "budget.epochs",
    "precision": "execution.precision",
    "seed": "seed",
    **dict.fromkeys(hyperparameters(Data, "data."), "[data]"),
}
"""Hyperparameters that a study sets for all its trials, because trials could not be compared otherwise.

Each maps to the key of the study file that sets it.
"""


@dataclass(frozen=True)
class Space:
    """What a study searches: the families, and the domain of each hyperparameter by dotted name.

    `common` holds those of every family, `by_family` those of one family alone. Hyperparameters without a domain keep
    their defaults.
    """

    families: tuple[str, ...]
    common: Mapping[str, Domain]
    by_family: Mapping[str, Mapping[str, Domain]]

    def domains(self, family: str) -> dict[str, Domain]:
        """Return the domains of the recipes of one family, by dotted name."""
        return {**self.by_family.get(family, {}), **self.common}

    def by_key(self) -> Iterator[tuple[str, Domain]]:
        """Yield every domain with its key in the study file."""
        yield from ((f"space.common.{name}", domain) for name, domain in self.common.items())
        for family, domains in self.by_family.items():
            yield from ((f"space.{family}.{name.removeprefix('model.')}", domain) for name, domain in domains.items())

    def to_toml_table(self) -> dict[str, Any]:
        """Return the `[space]` table that `parse_space` turns into this space."""
        tables = {"common": {"family": list(self.families), **_nest_domains(self.common)}}
        for family, domains in self.by_family.items():
            tables[family] = _nest_domains({name.removeprefix("model."): d for name, d in domains.items()})
        return tables


def parse_space(table: object) -> Space:
    """Return the space of a `[space]` table; a `Space` is returned as it is.

    Raises:
        UserError: if the table has mistakes, with a line for each.
    """
    if isinstance(table, Space):
        return table
    if not isinstance(table, Mapping):
        raise UserError(f"space: {table!r} is not a table; write [space.common] and [space.cnn]")
    problems: list[str] = []
    tables: dict[str, Mapping[str, Any]] = {}
    for name, content in table.items():
        if name != "common" and name not in FAMILIES:
            problems.append(f"space.{name}: no such family; {did_you_mean(name, ['common', *FAMILIES])}")
        elif not isinstance(content, Mapping):
            problems.append(f"space.{name}: {content!r} is not a table; write [space.{name}] above its keys")
        else:
            tables[name] = content
    common_table = dict(tables.pop("common", {}))
    searched = _parse_families(common_table.pop("family", list(tables) or ["cnn"]), problems)
    problems += [
        f"space.{name}: the study does not search this family; add {name!r} to space.common.family"
        for name in tables
        if searched and name not in searched
    ]
    common = _parse_domains("space.common", common_table, shared_hyperparameters(), problems)
    by_family = {}
    for name, content in tables.items():
        own = {key.removeprefix("model."): h for key, h in hyperparameters(FAMILIES[name], "model.").items()}
        domains = _parse_domains(f"space.{name}", content, own, problems)
        by_family[name] = {f"model.{key}": domain for key, domain in domains.items()}
    if problems:
        raise UserError(*problems)
    return Space(searched, common, by_family)


def _parse_families(given: object, problems: list[str]) -> tuple[str, ...]:
    names = given if isinstance(given, list) else [given]
    try:
        if not names:
            raise UserError("space.common.family: an empty list holds no value; name at least one family")
        if len({str(name) for name in names}) < len(names):
            raise UserError(f"space.common.family: {names} names a family twice; name each once")
        return tuple(families.get(name).family for name in names)
    except UserError as error:
        problems.extend(line.replace("model.family", "space.common.family") for line in error.lines)
        return ()


def _parse_domains(
    where: str, table: Mapping[str, Any], known: Mapping[str, Hyperparameter], problems: list[str]
) -> dict[str, Domain]:
    domains = {}
    for name, content in _flatten_domains(table, known):
        if name in NOT_SEARCHABLE:
            problems.append(f"{where}.{name}: is the same in all trials of a study; set {NOT_SEARCHABLE[name]}")
        elif name not in known:
            problems.append(f"{where}.{name}: unknown hyperparameter; {_suggestion(name, known)}")
        else:
            try:
                domains[name] = _parse_domain(content, known[name])
            except UserError as error:
                problems += [f"{where}.{name}: {line.removeprefix(known[name].name + ': ')}" for line in error.lines]
    return domains


def _suggestion(name: str, known: Mapping[str, Hyperparameter]) -> str:
    """Return the table to which a hyperparameter in the wrong table belongs, or else the nearest known name."""
    owners = [family for family in FAMILIES if f"model.{name}" in hyperparameters(FAMILIES[family], "model.")]
    if owners:
        return f"it belongs to {' or '.join(f'[space.{owner}]' for owner in owners)}"
    if any(f"{other}.".startswith(f"{name}.") for other in shared_hyperparameters()):
        return "it belongs to [space.common]"
    return did_you_mean(name, known)


def shared_hyperparameters() -> dict[str, Hyperparameter]:
    """Return the hyperparameters that recipes of every family have, by dotted name."""
    any_family = next(iter(FAMILIES.values()))
    return {n: h for n, h in recipe_hyperparameters(any_family).items() if not n.startswith("model.")}


def _flatten_domains(
    table: Mapping[str, Any], known: Mapping[str, Hyperparameter], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield each dotted name with its value; a table is a domain if its name is known, and a group otherwise."""
    for key, content in table.items():
        name = prefix + key
        if isinstance(content, Mapping) and any(other.startswith(f"{name}.") for other in known):
            yield from _flatten_domains(content, known, f"{name}.")
        else:
            yield name, content


def _parse_domain(content: object, spec: Hyperparameter) -> Domain:
    if isinstance(content, list):
        if not content:
            raise UserError("an empty list holds no value; name at least one value")
        values = tuple(spec.parse(value) for value in content)
        if len(set(values)) < len(values):
            raise UserError(f"{content!r} names a value twice; name each once")
        return Choice(values)
    if isinstance(content, Mapping):
        return _parse_range(content, spec)
    return Fixed(spec.parse(content))


def _parse_range(content: Mapping[str, Any], spec: Hyperparameter) -> Range:
    unknown = content.keys() - {"low", "high", "log", "step"}
    if unknown:
        name = min(unknown)
        raise UserError(f"unknown key {name!r} of a range; {did_you_mean(name, ['low', 'high', 'log', 'step'])}")
    if spec.kind not in (int, float) or spec.choices is not None:
        raise UserError(f"a range needs numbers; {spec.expected()}")
    missing = {"low", "high"} - content.keys()
    if missing:
        raise UserError(f"a range needs low and high; {min(missing)} is missing")
    low, high = spec.parse(content["low"]), spec.parse(content["high"])
    log, step = content.get("log", False), content.get("step")
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if low >= high:
        raise UserError(f"low = {low} is not below high = {high}; swap them, or give a single value")
    if not isinstance(log, bool):
        raise UserError(f"log = {log!r} is not a boolean; give true or false")
    if log and low <= 0:
        raise UserError(f"low = {low} has no logarithm; give a low above 0, or leave out log")
    if step is not None and not _is_step(step, spec, log):
        noun = "a whole number" if spec.kind is int else "a number"
        raise UserError(f"step = {step!r} does not fit; give {noun} above 0, and none together with log")
    if step is not None and not 1 <= (high - low) / step <= MAX_STEPS:
        raise UserError(
            f"step = {step} makes no or too many steps from {low} to {high}; give one that makes 1 to {MAX_STEPS:,}"
        )
    return Range(low, high, log, step)


def _is_step(step: object, spec: Hyperparameter, log: bool) -> bool:
    allowed = int if spec.kind is int else int | float
    return isinstance(step, allowed) and not isinstance(step, bool) and math.isfinite(step) and step > 0 and not log


def _nest_domains(domains: Mapping[str, Domain]) -> dict[str, Any]:
    """Return domains by dotted name as nested tables."""
    tables: dict[str, Any] = {}
    for name, domain in domains.items():
        *groups, last = name.split(".")
        table = tables
        for group in groups:
            table = table.setdefault(group, {})
        table[last] = domain.to_toml_value()
    return tables
