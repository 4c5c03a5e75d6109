"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import sys

PR_SET_PDEATHSIG = 1
"""The option of prctl, from linux/prctl.h."""


def end_with_parent(number: int) -> None:
    """Let Linux send this process a signal when the thread that started it ends, however that ends.

    Other systems have nothing of the kind.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
