"""The table `[plugins]` of study and recipe files, and which module of the user's own registered what.

Commands that read a study, a run or weights find a family or a cost by its name alone, so what files have named is
remembered for the user, and not in a study, a run or a folder that somebody else may have written.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write, make_private_folder
from fmnist_search.recipe import plugins
from fmnist_search.workspace import plugin_list_file


def load_plugins(table: object, folder: Path) -> None:
    """Load the modules that the table `[plugins]` of a file in a folder names, and remember what they register.

    Raises:
        UserError: if it is no such table, or a module cannot be loaded.
    """
    if table is None:
        return
    modules = table.get("modules") if isinstance(table, Mapping) and table.keys() == {"modules"} else None
    if not isinstance(modules, list | tuple) or not all(isinstance(name, str) and name for name in modules):
        raise UserError('plugins: names no modules; write modules = ["my_networks.py"] below [plugins]')
    loaded = [plugins.load_plugin(name, folder) for name in modules]
    _remember({key: plugin for plugin in loaded for key in plugins.keys_of(plugin)})


def _remember(plugin_of: Mapping[str, str]) -> None:
    """Store which plugin registers each key; without a folder that can be written, it must be named each time."""
    remembered = _read()
    known = {**remembered, **plugin_of}
    if known == remembered:
        return
    with contextlib.suppress(OSError):
        path = plugin_list_file()
        make_private_folder(path.parent)
        with atomic_write(path) as file:
            file.write(json.dumps(known, indent=1, sort_keys=True).encode())


def _read() -> dict[str, str]:
    try:
        stored = json.loads(plugin_list_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(name) for key, name in stored.items()} if isinstance(stored, dict) else {}


def _find_remembered(key: str) -> str | None:
    return _read().get(key)


plugins.finders.append(_find_remembered)
