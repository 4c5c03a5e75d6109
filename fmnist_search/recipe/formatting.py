"""Values and names of hyperparameters as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmnist_search.recipe.hyperparameters import (
    Value,
)

if TYPE_CHECKING:
    pass


def format_value(value: Value) -> str:
    """The canonical text of a value: the same value always reads the same, and reads back equal."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def format_value_short(value: Value) -> str:
    """A value for people: floats in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of dotted names; whole names where their last parts are not told apart, or say nothing."""
    last = [name.rpartition(".")[2] for name in names]
    return [part if last.count(part) == 1 and part != "name" else name for part, name in zip(last, names, strict=True)]
