"""Hyperparameters as fields of dataclasses, each with its type, its limits and its error messages.

Recipes and families of networks declare theirs with `hyperparameter`; study files are checked against the same limits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast, get_type_hints

from fmnist_search.errors import UserError

Value = bool | int | float | str
"""The type of a hyperparameter: a scalar, so that it can be a column of a table."""

MAX_SEED = 2**63 - 1
"""The largest integer that TOML, SQL and torch all accept."""

_TYPE_DESCRIPTIONS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Hyperparameter:
    """One field of a recipe: its dotted name, its type and the values that make sense for it.

    `added_later` is set for fields that recipes of earlier versions do not have; see `Recipe.seed_independent_key`.
    """

    name: str
    kind: type
    default: Value
    description: str
    low: float | None = None
    above: float | None = None
    high: float | None = None
    choices: Collection[Value] | None = None
    share_of: int | None = None
    added_later: bool = False

    def parse(self, value: object) -> Value:
        """Return the value in this field's type.

        Raises:
            UserError: if its type is wrong or it is out of bounds; the line names field, value and remedy.
        """
        if self.kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            value = _as_float(value)
        if self.share_of and isinstance(value, float) and 0 < value < 1:
            value = round(value * self.share_of)
        if type(value) is not self.kind:
            raise UserError(f"{self.name}: {value!r} is not {_TYPE_DESCRIPTIONS[self.kind]}; {self.expected()}")
        assert isinstance(value, bool | int | float | str)
        if value != self.default and not self._allows(value):
            raise UserError(f"{self.name}: {value!r} is out of bounds; {self.expected()}")
        return value

    def expected(self) -> str:
        """Return what values are right, as the end of an error message."""
        if self.choices is not None:
            return f"choose from {', '.join(map(str, self.choices))}"
        if self.kind is bool:
            return "give true or false"
        bounds = [
            f"{word} {limit:g}"
            for word, limit in (("at least", self.low), ("above", self.above), ("at most", self.high))
            if limit is not None
        ]
        share = ", or a share of all between 0 and 1" if self.share_of else ""
        return f"give {_TYPE_DESCRIPTIONS[self.kind]} {' and '.join(bounds)}".rstrip() + share

    def _allows(self, value: Value) -> bool:
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, str | bool):
            return True
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
        )


def _as_float(value: float) -> float:
    """Return a float: -0.0 as 0.0, so that equal recipes have equal keys, and too large an integer as infinity."""
    try:
        return float(value) + 0.0
    except OverflowError:
        return math.inf


def hyperparameter(
    default: Value,
    description: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: Collection[Value] | None = None,
    share_of: int | None = None,
    added_later: bool = False,
) -> Any:
    """Return a dataclass field with limits. `default` is allowed even where it is outside the limits.

    With `share_of`, a float between 0 and 1 stands for that share of it. Set `added_later` for a new field, whose
    default must mean what recipes without it meant: it keeps the keys of these recipes.
    """
    limits = {
        "low": low, "above": above, "high": high, "choices": choices, "share_of": share_of, "added_later": added_later,
    }  # fmt: skip
    return field(default=default, metadata={"meaning": description, "limits": limits})


def hyperparameters(group: type, prefix: str = "") -> dict[str, Hyperparameter]:
    """Return the hyperparameters of one dataclass by dotted name, in the order of their declaration."""
    return {spec.name: spec for spec in _collect(group, prefix)}


@functools.cache  # called for every new recipe, and type hints are slow to resolve
def _collect(group: type, prefix: str) -> tuple[Hyperparameter, ...]:
    types = get_type_hints(group)
    return tuple(
        Hyperparameter(
            prefix + f.name, types[f.name], cast(Value, f.default), f.metadata["meaning"], **f.metadata["limits"]
        )
        for f in dataclasses.fields(group)
        if "limits" in f.metadata
    )


class HyperparameterGroup:
    """Base class of dataclasses that check their own hyperparameters; `prefix` is their place in a recipe."""

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, spec in hyperparameters(type(self), self.prefix).items():
            attribute = name.removeprefix(self.prefix)
            object.__setattr__(self, attribute, spec.parse(getattr(self, attribute)))
