"""TOML files: reading them, recipes as TOML, and the values of `--set`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe


def read_toml(path: str | Path, missing_hint: str = "") -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        UserError: if there is no such file, it cannot be read, or it is not TOML. If there is no such file, the error
            names the files beside it and ends with `missing_hint`.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = sorted(path.parent.glob("*.toml")) if path.parent.is_dir() else []
        known = f"there are {', '.join(map(str, near))}" if near else ""
        remedies = [remedy for remedy in (known, missing_hint) if remedy] or ["check the path"]
        raise UserError("; ".join([f"{path}: no such file", *remedies])) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the path and its permissions") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}; correct the file there") from None


def read_recipe(path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe of a TOML file, with other values by dotted name.

    Raises:
        UserError: if the file cannot be read or has mistakes, with a line for each: file, key and remedy.
    """
    try:
        return Recipe.from_dict(read_toml(path)).replace(overrides or {})
    except UserError as error:
        raise UserError(*(line if line.startswith(str(path)) else f"{path}: {line}" for line in error.lines)) from None


def recipe_from_toml(text: str) -> Recipe:
    """Return the recipe that `recipe_to_toml` wrote."""
    return Recipe.from_dict(tomllib.loads(text))


def recipe_to_toml(recipe: Recipe, *, brief: bool = False) -> str:
    """Return a recipe as TOML with every value, or with `brief` only the values that differ from the defaults."""
    tables = recipe.to_dict()
    return tomli_w.dumps(_non_defaults(tables, Recipe(model=type(recipe.model)()).to_dict()) if brief else tables)


def _non_defaults(tables: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested tables that differ from the defaults, and always the family."""
    found = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            if inner := _non_defaults(value, defaults[name]):
                found[name] = inner
        elif value != defaults[name] or name == "family":
            found[name] = value
    return found


def resolve_recipe_paths(tables: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the tables of a study file, with the paths in `start.recipes` resolved against its folder."""
    start = tables.get("start")
    if isinstance(start, dict) and isinstance(start.get("recipes"), list):
        start["recipes"] = [str(folder / entry) if _is_recipe_path(entry) else entry for entry in start["recipes"]]
    return tables


def _is_recipe_path(entry: object) -> bool:
    return isinstance(entry, str) and entry != "champion" and not entry.startswith(("study:", "preset:"))


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return name and value of a `--set name=value`; a value that is not TOML is a string.

    Raises:
        UserError: if there is no `=` or no name.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set {text!r}: is not an assignment; write --set optimizer.learning_rate=0.01")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
