"""Modules of a user's own that register families of networks or costs of a trial: loaded when they are named.

A module is named by a study or recipe file that a command is given (`config.plugin_files`), by the environment variable
`FMNIST_SEARCH_PLUGINS`, or by an entry point of an installed package. Nothing that is stored in a study, a run or a
model names code: a family or a cost has only its name there.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from fmnist_search.errors import UserError
from fmnist_search.text import first_line

VARIABLE = "FMNIST_SEARCH_PLUGINS"
"""Environment variable with modules and files, separated as in PATH. Worker processes get those of this process."""

NAME_PATTERN = "^[a-z][a-z0-9_]*$"
"""What the name of a family or a cost is."""

FAMILY_ENTRY_POINTS, COST_ENTRY_POINTS = "fmnist_search.families", "fmnist_search.costs"
"""Groups of the entry points of packages: the name of a family or cost, and the module that registers it."""

COST_KEY = "cost."
"""The beginning of the key of a cost; that of a family is its name."""

FILE_MODULE = "fmnist_search_plugin_"
"""The beginning of the name of a module that is a file."""

finders: list[Callable[[str], str | None]] = []
"""Return, for the key of a family or cost, the plugin that registers it, if they know one."""

_lock = threading.RLock()
_loaded: dict[str, list[str]] = {}
"""The keys that each plugin has registered, by the plugin's module name or absolute path."""
_registered: dict[str, str] = {}
"""The module of each registered key that is not of this package."""


def load_plugin(name: str, folder: Path) -> str:
    """Load a module that a file in a folder names; return its module name or the absolute path of its file.

    `name` is the path of a file, relative to the folder, or the name of a module: that of `NAME.py` in the folder, or
    of an installed one.

    Raises:
        UserError: if there is none, it cannot be loaded, or it registers neither a family nor a cost.
    """
    beside = (folder / f"{name}.py").absolute()
    if not _is_path(name):
        plugin = str(beside) if beside.is_file() else name
    elif (path := (folder / name).absolute()).is_file():
        plugin = str(path)
    else:
        raise UserError(f"plugins.modules: {name}: no such file; give its path from the folder of the naming file")
    _load(plugin)
    return plugin


def load_family(name: str) -> None:
    """Load the plugins that may register a family; do nothing if the user has named none.

    Raises:
        UserError: if one cannot be loaded.
    """
    _load_for(name, FAMILY_ENTRY_POINTS, name, f"family {name!r}")


def load_cost(name: str) -> None:
    """Load the plugins that may register a cost, like `load_family`."""
    _load_for(name, COST_ENTRY_POINTS, COST_KEY + name, f"metric {name!r}")


def _load_for(name: str, group: str, key: str, what: str) -> None:
    points = [point.module for point in importlib.metadata.entry_points(group=group, name=name)]
    named = [plugin for plugin in os.environ.get(VARIABLE, "").split(os.pathsep) if plugin]
    for plugin in [*points, *named]:
        _load(plugin)
    for plugin in [] if key in _registered else filter(None, [finder(key) for finder in finders]):
        if _is_path(plugin) and not Path(plugin).is_file():
            raise UserError(f"{what}: its module {plugin} is missing; name where it is with {VARIABLE}")
        _load(plugin)


def note(key: str, module: str) -> None:
    """Record that a module has registered a family or a cost, if it is not one of this package."""
    if module.partition(".")[0] != __name__.partition(".")[0]:
        _registered[key] = module


def plugin_modules() -> list[str]:
    """Return the modules and files with which another process can register the families and costs of this one."""
    files = {module for module in _registered.values() if module.startswith(FILE_MODULE)}
    imported = set(_registered.values()) - files - {"__main__", *_loaded}
    return [*_loaded, *sorted(imported)]


def keys_of(plugin: str) -> list[str]:
    """Return the keys that a plugin has registered, which is given as `load_plugin` returns it."""
    return list(_loaded.get(plugin, ()))


def plugin_sources() -> dict[str, str]:
    """Return the text of each loaded plugin that is a file, by the file's name."""
    return {Path(name).name: Path(name).read_text(encoding="utf-8") for name in _loaded if _is_path(name)}


def _is_path(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _load(plugin: str) -> None:
    with _lock:
        if plugin in _loaded:
            return
        before = set(_registered)
        _import(plugin)
        # A module that this process had imported before registers nothing now.
        own = {key for key, module in _registered.items() if f"{module}.".startswith(f"{plugin}.")}
        if not (found := _registered.keys() - before | own):
            raise UserError(
                f"plugins.modules: {plugin}: registers no family and no cost; decorate a dataclass with "
                "@register_family, or a function with @register_cost"
            )
        _loaded[plugin] = sorted(found)
        os.environ[VARIABLE] = os.pathsep.join(plugin_modules())  # for processes that this one starts


def _import(plugin: str) -> None:
    try:
        if _is_path(plugin):
            _import_file(Path(plugin))
        else:
            importlib.import_module(plugin)
    except UserError as error:
        raise UserError(*(f"plugins.modules: {plugin}: {line}" for line in error.lines)) from None
    except (Exception, SystemExit) as error:
        detail = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"plugins.modules: {plugin}: cannot be loaded ({detail}); correct it, or name another module"
        ) from error


def _import_file(path: Path) -> None:
    """Import a file as a module of its own, without making the other files of its folder importable."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"{FILE_MODULE}{path.stem}_{digest}", path)
    if spec is None or spec.loader is None:
        raise UserError("is no file of Python; give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their types up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
