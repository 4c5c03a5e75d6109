"""Where each value of a resolved study comes from: its file, the command line, or a default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

COMMAND_LINE, DEFAULT = "command line", "default"


@dataclass(frozen=True)
class Origins:
    """The origin of each value by key. All instances are equal, because origins do not make studies differ."""

    by_key: dict[str, str] = field(default_factory=dict, compare=False)


def find_origins(
    resolved: Mapping[str, Any], file: Mapping[str, Any], overridden: Mapping[str, Any], name: str
) -> Origins:
    """Return the origin of every value of the resolved tables, by dotted key.

    Args:
        resolved: the tables with all values.
        file: the tables of the study file.
        overridden: the tables of the study file after the overrides.
        name: the name of the study file.
    """
    before, after = dict(_flatten(file)), dict(_flatten(overridden))
    found = {}
    for key in dict(_flatten(resolved)):
        given = _deciding_key(key, after)
        if given is None:
            found[key] = DEFAULT
        else:
            found[key] = name if given in before and before[given] == after[given] else COMMAND_LINE
    return Origins(found)


def given_keys(tables: Mapping[str, Any], keys: Iterable[str]) -> set[str]:
    """Return those of the dotted keys whose values the tables give, also by a short form such as `sampler = "tpe"`."""
    given = dict(_flatten(tables))
    return {key for key in keys if _deciding_key(key, given) is not None}


def _flatten(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _deciding_key(key: str, values: Mapping[str, Any]) -> str | None:
    """Return the key that decides another: the same, or the short form `sampler = "tpe"` for `sampler.name`."""
    short = key.removesuffix(".name")
    return next((name for name in (key, short) if name in values), None)
