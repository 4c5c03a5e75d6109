"""Public names of packages that are imported at their first use (PEP 562).

`--help` and worker processes import packages whose public names need torch, MLflow or Optuna, and must not load those.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def attach(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for the package named `package`.

    `modules` maps each public name to the module below the package that defines it: `{"Recipe": "recipe"}`.
    """

    def __getattr__(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *modules})

    return __getattr__, __dir__
