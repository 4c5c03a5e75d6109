"""Limits of CPU time and memory that containers and batch systems set, read from Linux control groups (v1 and v2).

Neither torch nor the operating system's number of CPUs takes them into account.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

UNIFIED = ""
"""How /proc/self/cgroup names the hierarchy of version 2, which has all controllers."""


def available_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: those it may run on, within the quotas of its control groups.

    A quota of one and a half CPUs counts as two. `root` is the folder with `proc` and `sys`.
    """
    with contextlib.suppress(AttributeError):  # not on macOS and Windows
        return math.ceil(min(len(os.sched_getaffinity(0)), _cpu_quota(root)))
    return os.cpu_count() or 1


def available_memory(root: Path = Path("/")) -> float:
    """Return the bytes that control groups let this process use in addition; infinity without a limit."""
    free = [math.inf]
    for folder in _folders(root, "memory"):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "memory.max").exists():
                limit, used = _read(folder / "memory.max"), _read(folder / "memory.current")
            else:
                limit, used = _read(folder / "memory.limit_in_bytes"), _read(folder / "memory.usage_in_bytes")
            free.append(max(0.0, limit - used + _reclaimable(folder)))
    return min(free)


def _cpu_quota(root: Path) -> float:
    """Return the CPUs of the smallest quota, such as 1.5; infinity without one."""
    quotas = [math.inf]
    for folder in _folders(root, "cpu"):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "cpu.max").exists():
                quota, period = map(float, (folder / "cpu.max").read_text().replace("max", "inf").split())
            else:
                quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            if quota > 0 and period > 0:  # -1 is no quota
                quotas.append(quota / period)
    return min(quotas)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups of this process that may limit it, with all that contain them."""
    mounts = root / "sys" / "fs" / "cgroup"
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == UNIFIED:
            bases = [mounts, mounts / "unified"]
        else:
            bases = [mounts / controller] if controller in controllers.split(",") else []
        # In a container without a namespace for control groups, the path is that of the host, and its own is the root.
        group = PurePosixPath(path)
        groups = [] if ".." in group.parts else [group, *group.parents]
        yield from (base / str(each).lstrip("/") for base in bases for each in groups or [PurePosixPath("/")])


def _read(path: Path) -> float:
    return float(path.read_text().replace("max", "inf"))


def _reclaimable(folder: Path) -> float:
    """Return the bytes of cached files that are given up when memory is needed."""
    statistics: dict[str, str] = {}
    with contextlib.suppress(OSError):
        statistics = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
    return float(statistics.get("total_inactive_file") or statistics.get("inactive_file") or 0)
