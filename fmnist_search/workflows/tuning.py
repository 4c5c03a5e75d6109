"""The measurement of this machine, made once a process."""

from __future__ import annotations

import functools

import torch

from fmnist_search.recipe.execution import Execution
from fmnist_search.training.autotune import autotune, has_bfloat16


@functools.cache
def tuned(execution: Execution, precision: str = "auto") -> tuple[Execution, str]:
    """Return the execution and the precision with which the standard network trains fastest on this machine."""
    return autotune(execution, precision)


def precision_warning(execution: Execution, precision: str) -> str:
    """Return a line if a precision is slow on this machine, else an empty text."""
    if precision != "bfloat16" or has_bfloat16(torch.device(execution.device)):
        return ""
    return (
        f"precision: this machine emulates bfloat16 on {execution.device!r}, which takes several times as long as "
        "float32; use float32, or auto for the faster one"
    )
