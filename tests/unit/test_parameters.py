"""Parameter lists: values that belong together travel as one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import FunctionType

import fmnist_search

MAX_PARAMETERS = 8


def public_functions() -> Iterator[FunctionType]:
    """Return the public functions and methods of the package; a command has a parameter for each option."""
    for found in pkgutil.walk_packages(fmnist_search.__path__, "fmnist_search."):
        if found.name.startswith("fmnist_search.cli") or found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        members = [value for value in vars(module).values() if getattr(value, "__module__", None) == found.name]
        classes = [value for value in members if inspect.isclass(value)]
        functions = [value for value in members if inspect.isfunction(value)]
        for class_ in classes:
            functions += [value for value in vars(class_).values() if inspect.isfunction(value)]
        yield from (function for function in functions if not function.__name__.startswith("_"))


def test_no_public_function_takes_more_than_eight_parameters() -> None:
    counts = {
        f"{function.__module__}.{function.__qualname__}": len(
            [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
        )
        for function in public_functions()
    }
    assert counts["fmnist_search.workflows.study.api.run_study"] > 1  # functions are found
    assert {name: count for name, count in counts.items() if count > MAX_PARAMETERS} == {}
