"""Overrides of a study file: `--set` assignments change its tables before they are validated."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fmnist_search.config.pruners import FALLBACK_PRUNER
from fmnist_search.config.samplers import FALLBACK_SAMPLER
from fmnist_search.config.space import shared_hyperparameters
from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.recipe import families
from fmnist_search.recipe.families import DEFAULT_FAMILY, FAMILIES
from fmnist_search.recipe.hyperparameters import hyperparameters

DEFAULT_VARIANTS = {"sampler": FALLBACK_SAMPLER.name, "pruner": FALLBACK_PRUNER.name}
"""Tables that have several forms, with the name that a table without a name has."""


def apply_overrides(tables: dict[str, Any], overrides: Mapping[str, object], keys: Collection[str]) -> dict[str, Any]:
    """Return the tables of a study file with other values; the tables are changed in place.

    Args:
        tables: as read from TOML.
        overrides: values by key of the study file (`budget.trials`) or by dotted name of a hyperparameter, which
            becomes fixed (`model.depth`).
        keys: the keys of a study file.

    Raises:
        UserError: if a name is unknown, or a table is needed where the study file has something else.
    """
    # The family comes first: it decides which hyperparameters the other names can mean.
    for name in sorted(overrides, key=lambda name: name != "model.family"):
        value = overrides[name]
        if name.split(".")[0] in keys:
            _set_value(tables, name.split("."), value)
        elif name == "model.family":
            _fix_family(tables, value)
        elif name.startswith("model."):
            _fix_model_hyperparameter(tables, name, value)
        elif name in shared_hyperparameters():
            _fix_hyperparameter(_get_or_create_table(tables, "space", "common"), name, value)
        else:
            raise UserError(f"--set {name}: unknown name; {_suggestion(name, keys)}")
    return tables


def unused_settings(written: Mapping[str, Any], chosen: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each sampler or pruner of a study file that an override has replaced by another one.

    Args:
        written: the tables of the study file.
        chosen: the names of the sampler and of the pruner that the study uses.
    """
    for key, name in chosen.items():
        table = written.get(key)
        if isinstance(table, dict) and (before := _variant_name(key, table)) != name:
            settings = [f"{key}.{setting}" for setting in table if setting != "name"]
            if settings:
                yield f"{', '.join(settings)} belongs to {before!r} and does nothing for {name!r}"


def unnamed_samplers(tables: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line if a study has settings of a sampler that it does not name, which is not the default one then."""
    table = tables.get("sampler")
    if isinstance(table, dict) and "name" not in table:
        settings = ", ".join(f"sampler.{setting}" for setting in table)
        yield f"{settings} belongs to {FALLBACK_SAMPLER.name!r}, as sampler.name is missing; give it for another one"


def _variant_name(key: str, table: Mapping[str, Any]) -> object:
    return table.get("name", DEFAULT_VARIANTS[key])


def _suggestion(name: str, keys: Collection[str]) -> str:
    """Return the nearest name, or the nearest table if the name of the table is misspelt."""
    shared = shared_hyperparameters()
    group, dot, last = name.partition(".")
    parts = {part for other in shared for part in other.split(".")}
    if dot and not {group, last} & parts:
        return did_you_mean(group, keys)
    return did_you_mean(name, [*shared, *keys])


def _set_value(tables: dict[str, Any], path: list[str], value: object) -> None:
    *groups, last = path
    given = tables.get(last)
    if path in (["sampler"], ["pruner"]) and isinstance(given, dict) and _variant_name(last, given) == value:
        given["name"] = value  # the file has the same sampler or pruner: its settings stay
        return
    for group in groups:
        inner = tables.get(group)
        if isinstance(inner, str) and group in DEFAULT_VARIANTS:
            tables[group] = {"name": inner}
        tables = _get_or_create_table(tables, group)
    tables[last] = value


def _get_or_create_table(tables: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return the table of that path; UserError if the path holds something else."""
    for position, name in enumerate(path):
        inner = tables.setdefault(name, {})
        if not isinstance(inner, dict):
            key = ".".join(path[: position + 1])
            raise UserError(f"{key}: {inner!r} is not a table; write [{key}] above its keys")
        tables = inner
    return tables


def _fix_family(tables: dict[str, Any], value: object) -> None:
    """Let the study search this family or these families only, and remove the tables of all others."""
    space = _get_or_create_table(tables, "space")
    _get_or_create_table(space, "common")["family"] = value
    kept = value if isinstance(value, list) else [value]
    for other in FAMILIES.keys() & space.keys():
        if other not in kept:
            del space[other]


def _fix_model_hyperparameter(tables: dict[str, Any], name: str, value: object) -> None:
    """Fix a hyperparameter in every family of the study that has it."""
    space = _get_or_create_table(tables, "space")
    default = [family for family in space if family in FAMILIES] or [DEFAULT_FAMILY]
    searched = _get_or_create_table(tables, "space", "common").get("family", default)
    architectures = [families.get(family) for family in (searched if isinstance(searched, list) else [searched])]
    having = [family for family in architectures if name in hyperparameters(family, "model.")]
    if not having:
        known = [key for family in architectures for key in hyperparameters(family, "model.")]
        raise UserError(f"--set {name}: unknown name; {did_you_mean(name, known)}")
    for family in having:
        _get_or_create_table(tables, "space", family.family)[name.removeprefix("model.")] = value


def _fix_hyperparameter(table: dict[str, Any], name: str, value: object) -> None:
    """Fix a hyperparameter, whatever its domain in the file and whether the file writes its name dotted or nested."""
    group, _, last = name.rpartition(".")
    if group and isinstance(table.get(group), dict):
        table[group].pop(last, None)
    table[name] = value
