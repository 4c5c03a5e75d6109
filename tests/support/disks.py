"""Small disks, to fill them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FILLER = "filler"
BLOCK = 4096


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of a few megabytes on a folder; the test is skipped where that is not permitted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Write to a disk until it is full."""
    with contextlib.suppress(OSError), (disk / FILLER).open("ab", buffering=0) as file:
        while True:
            file.write(bytes(BLOCK))


def free_space(disk: Path) -> None:
    """Undo `fill`."""
    (disk / FILLER).unlink()
