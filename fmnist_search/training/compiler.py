"""Training without torch's compiler, whose import takes a second and a half in every process that trains."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


def defer_compiler_import() -> None:
    """Let optimizers run without `torch._dynamo`.

    Optimizers import it to exclude themselves from compilation. Until anything else of it is used, a module takes its
    place that has only the two functions that optimizers call, and nothing is compiled. Does nothing if torch has
    imported it already. For processes that only train: another process may want to compile.
    """
    if NAME not in sys.modules:
        placeholder = _CompilerPlaceholder(NAME)
        sys.modules[NAME] = placeholder
        torch._dynamo = placeholder


class _CompilerPlaceholder(ModuleType):
    """Stands for `torch._dynamo`, and imports it when another attribute is used."""

    @staticmethod
    def disable(fn: Callable[..., Any], recursive: bool = True, *, wrapping: bool = True) -> Callable[..., Any]:
        """Return the function, which is not compiled."""
        return fn

    @staticmethod
    def graph_break() -> None:
        """Do nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
            del torch._dynamo
        return getattr(importlib.import_module(NAME), name)
