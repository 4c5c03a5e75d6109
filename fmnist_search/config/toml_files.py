"""Recipes as TOML files, and what a `--set` says."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe


def read_recipe(path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """The recipe of a TOML file, with values overridden by dotted name.

    Raises:
        UserError: one line per mistake, with file, key and remedy.
    """
    try:
        return Recipe.from_dict(read_toml(path)).replace(overrides or {})
    except UserError as error:
        raise UserError(*(line if line.startswith(str(path)) else f"{path}: {line}" for line in error.lines)) from None


def recipe_from_toml(text: str) -> Recipe:
    """The recipe that `recipe_to_toml` wrote."""
    return Recipe.from_dict(tomllib.loads(text))


def recipe_to_toml(recipe: Recipe, *, brief: bool = False) -> str:
    """A recipe as TOML, every value spelled out or, in brief, those that are not defaults; reading it gives it back."""
    tables = recipe.to_dict()
    return tomli_w.dumps(_non_defaults(tables, Recipe(model=type(recipe.model)()).to_dict()) if brief else tables)


def _non_defaults(tables: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What of nested tables is not as usual; a family is always named."""
    found = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            if inner := _non_defaults(value, defaults[name]):
                found[name] = inner
        elif value != defaults[name] or name == "family":
            found[name] = value
    return found


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file; UserError with file and place where there is none or it is not TOML."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = sorted(path.parent.glob("*.toml")) if path.parent.is_dir() else []
        known = f"; there are {', '.join(map(str, near))}" if near else "; check the path"
        raise UserError(f"{path}: no such file{known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the path and its rights") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}; mend the file there") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """`name=value` of a `--set`, the value read as TOML and, where it is none, as text.

    Raises:
        UserError: there is no `=` or no name.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set {text!r}: is no assignment; write --set optimizer.learning_rate=0.01")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
