"""The import graph of a package, read from its source: chains, circles and long modules.

All import statements count, including those in functions and under TYPE_CHECKING. Imports by name
(`importlib.import_module`, lazy attributes of a package) and the parent packages of a module do not count.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, frozenset[str]]
"""The modules that each module imports, by full name."""


def module_files(root: Path, package: str) -> dict[str, Path]:
    """Return the file of every module of the package in the folder `root`, by the module's full name."""
    files = sorted((root / package).rglob("*.py"))
    return {_module_name(file.relative_to(root)): file for file in files}


def module_graph(files: Mapping[str, Path]) -> Graph:
    """Return which of these modules each of them imports."""
    return {name: frozenset(_imported(name, file, files)) - {name} for name, file in files.items()}


def package_graph(graph: Graph, package: str) -> Graph:
    """Return the graph of the subpackages, and of the modules directly in the package.

    The package's `__init__` and `__main__` are left out.
    """
    merged: dict[str, set[str]] = {}
    for name, imported in graph.items():
        merged.setdefault(_top(name), set()).update(map(_top, imported))
    outside = {package, f"{package}.__main__"}
    return {name: frozenset(found - outside - {name}) for name, found in merged.items() if name not in outside}


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """Return the groups of modules that import each other, directly or indirectly."""
    return sorted(tuple(sorted(group)) for group in set(_groups(graph).values()) if len(group) > 1)


def longest_chain(graph: Graph) -> list[tuple[str, ...]]:
    """Return the longest chain of imports, from the importer down; the modules of a circle are one link."""
    groups = _groups(graph)

    @functools.cache
    def chain(group: frozenset[str]) -> tuple[frozenset[str], ...]:
        below = {groups[imported] for name in group for imported in graph[name]} - {group}
        return group, *max(map(chain, sorted(below, key=sorted)), key=len, default=())

    longest = max(map(chain, sorted(set(groups.values()), key=sorted)), key=len, default=())
    return [tuple(sorted(group)) for group in longest]


def long_modules(files: Mapping[str, Path], limit: int) -> dict[str, int]:
    """Return the modules of more than `limit` lines, with their number of lines."""
    lines = {name: len(file.read_text().splitlines()) for name, file in files.items()}
    return {name: count for name, count in lines.items() if count > limit}


def _module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, package)
            found = {f"{source}.{alias.name}" for alias in node.names}
            yield from found & known.keys()
            if source in known and found - known.keys():
                yield source


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the module that `from ... import` names, a relative one resolved within the importer's package."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    above = parents[: len(parents) - node.level + 1]
    return ".".join([*above, *filter(None, [node.module])])


def _top(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _groups(graph: Graph) -> dict[str, frozenset[str]]:
    """Return for each module the modules of its circle; a module outside of circles is alone in its set."""
    reached = {name: _reachable(graph, name) for name in graph}
    return {name: frozenset({name, *(other for other in reached[name] if name in reached[other])}) for name in graph}


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found
