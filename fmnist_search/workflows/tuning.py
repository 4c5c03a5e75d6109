"""The measurement of this machine, made once a process."""

from __future__ import annotations

import functools

from fmnist_search.recipe.execution import Execution
from fmnist_search.training.autotune import autotune


@functools.cache
def tuned(execution: Execution, precision: str = "auto") -> tuple[Execution, str]:
    """Return the execution and the precision with which the standard network trains fastest on this machine."""
    return autotune(execution, precision)
