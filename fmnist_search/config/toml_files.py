"""TOML files: reading them, recipes as TOML, and the values of `--set`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fmnist_search.config.plugin_files import load_plugins
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe

MAX_DEPTH = 10
"""Tables and lists within each other. Study files use half as many, and Python's recursion is limited."""

MAX_INTEGER = 2**63 - 1
"""The largest integer that TOML and SQL have."""

ASSIGNED_KEY = "value"
_NEXT_ASSIGNMENT = re.compile(r"\s*[A-Za-z_][\w.-]*\s*=")


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        tomllib.TOMLDecodeError: if the text is not TOML.
        UserError: if a value cannot be stored; the line names the key.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise UserError(f"is nested too deeply; use at most {MAX_DEPTH} tables and lists within each other") from None
    except ValueError:  # Python limits the digits of an integer
        raise UserError("an integer has thousands of digits; give one of at most 64 bits") from None
    _check_values(tables)
    return tables


def _check_values(tables: Mapping[str, Any]) -> None:
    """Raise UserError if a value is nested too deeply, or is an integer or a text that databases do not store."""
    remaining: list[tuple[str, int, Any]] = [(key, 1, value) for key, value in tables.items()]
    while remaining:
        key, depth, value = remaining.pop()
        if isinstance(value, dict | list) and depth > MAX_DEPTH:
            raise UserError(
                f"{key[:50]}: is nested too deeply; use at most {MAX_DEPTH} tables and lists within each other"
            )
        if isinstance(value, dict):
            remaining += [(f"{key}.{name}", depth + 1, inner) for name, inner in value.items()]
        elif isinstance(value, list):
            remaining += [(key, depth + 1, inner) for inner in value]
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise UserError(f"{key}: the integer has more than 64 bits; give a smaller one")
        elif isinstance(value, str) and (characters := _unstorable_characters(value)):
            raise UserError(f"{key}: a text with {characters} cannot be stored; remove that character")


def _unstorable_characters(text: str) -> str:
    """Return the first character that a database refuses: NUL, or a byte of the command line that is not UTF-8."""
    return next((ascii(character) for character in text if character == "\0" or "\ud800" <= character <= "\udfff"), "")


def read_toml(path: str | Path, missing_hint: str = "") -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        UserError: if there is no such file, it cannot be read, or it is not TOML. If there is no such file, the error
            names the files beside it and ends with `missing_hint`.
    """
    path = Path(path)
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = sorted(path.parent.glob("*.toml")) if path.parent.is_dir() else []
        known = f"there are {', '.join(map(str, near))}" if near else ""
        remedies = [remedy for remedy in (known, missing_hint) if remedy] or ["check the path"]
        raise UserError("; ".join([f"{path}: no such file", *remedies])) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the path and its permissions") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}; correct the file there") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_recipe(path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe of a TOML file, with other values by dotted name.

    Raises:
        UserError: if the file cannot be read or has mistakes, with a line for each: file, key and remedy.
    """
    try:
        tables = read_toml(path)
        load_plugins(tables.pop("plugins", None), Path(path).parent)
        return Recipe.from_dict(tables).replace(overrides or {})
    except UserError as error:
        raise UserError(*(line if line.startswith(str(path)) else f"{path}: {line}" for line in error.lines)) from None


def recipe_from_toml(text: str) -> Recipe:
    """Return the recipe that `recipe_to_toml` wrote."""
    return Recipe.from_dict(parse_toml(text))


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


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Return the values of all `--set name=value`, by name, see `parse_assignment`.

    One text may hold several, separated by commas: `mlflow run` takes `-P set=` only once.
    """
    return dict(parse_assignment(part) for text in texts for part in _split_assignments(text))


def _split_assignments(text: str) -> list[str]:
    """Split before each `name=` that follows a comma outside of brackets and quotation marks."""
    parts, start, depth, quote = [], 0, 0, ""
    for position, character in enumerate(text):
        if quote or character in "\"'":
            quote = "" if character == quote else quote or character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0 and _NEXT_ASSIGNMENT.match(text, position + 1):
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return name and value of a `--set name=value`; a value that is not TOML is a string.

    Raises:
        UserError: if there is no `=` or no name, or the value cannot be stored.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise UserError(f"--set {text!r}: is not an assignment; write --set optimizer.learning_rate=0.01")
    try:
        return name, _parse_value(value)
    except UserError as error:
        raise UserError(f"--set {name}: {str(error).removeprefix(f'{ASSIGNED_KEY}: ')}") from None


def _parse_value(text: str) -> Any:
    try:
        tables = parse_toml(f"{ASSIGNED_KEY} = {text}")
    except tomllib.TOMLDecodeError:
        tables = {ASSIGNED_KEY: text}
        _check_values(tables)
    if len(tables) > 1:  # a line break in the text began another key
        raise UserError("is more than one value; write --set once for each")
    return tables[ASSIGNED_KEY]
