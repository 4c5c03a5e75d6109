"""Values and names of hyperparameters as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fmnist_search.recipe.hyperparameters import Value


def format_value(value: Value) -> str:
    """Return the canonical text of a value: equal values have equal texts, and the text parses to an equal value."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def format_value_short(value: Value) -> str:
    """Return a value as text for people, floats with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def short_names(names: Sequence[str]) -> list[str]:
    """Return the last part of each dotted name, or the full name where that is ambiguous or is only `name`."""
    last = [name.rpartition(".")[2] for name in names]
    return [part if last.count(part) == 1 and part != "name" else name for part, name in zip(last, names, strict=True)]


def differing_names(texts: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names whose values are not equal in all of `texts`, in their order; one that is missing differs."""
    names = dict.fromkeys(name for each in texts for name in each)
    return [name for name in names if len({each.get(name) for each in texts}) > 1]
