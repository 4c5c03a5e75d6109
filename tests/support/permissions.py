"""Folders that cannot be written, also for root."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

CAPABILITY_VERSION = 0x20080522
DAC_OVERRIDE = 1 << 1
"""The capability of root to write what its permissions forbid (linux/capability.h)."""


@contextlib.contextmanager
def nothing_writable(folder: Path) -> Iterator[None]:
    """Let nobody, not even root, write to the folder, its files and its subfolders."""
    paths = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths if not path.is_symlink()}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        with without_root_privileges():
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@contextlib.contextmanager
def without_root_privileges() -> Iterator[None]:
    """Let permissions hold for root in this thread."""
    if os.geteuid() != 0:
        yield
        return
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, twice
    assert library.capget(header, before) == 0, os.strerror(ctypes.get_errno())
    reduced = (ctypes.c_uint32 * 6)(*before)
    reduced[0] &= ~DAC_OVERRIDE
    assert library.capset(header, reduced) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert library.capset(header, before) == 0, os.strerror(ctypes.get_errno())
