"""The commands of the command line, as Typer builds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from fmnist_search.cli import app


def leaf_commands() -> dict[str, Any]:
    """Return all commands by name, which may consist of two words."""
    return dict(_leaves(typer.main.get_command(app), ()))


def _leaves(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command
