"""Limits of containers, read from files as Linux shows them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fmnist_search.cgroup import available_cpus, available_memory
from fmnist_search.execution.capacity import WORKER_MEMORY_BYTES, HostResources, worker_count
from fmnist_search.recipe.execution import Execution

GIB = 2**30
UNLIMITED_V1 = "9223372036854771712"


def make_root(folder: Path, groups: str, files: dict[str, str]) -> Path:
    """Write /proc/self/cgroup and files below /sys/fs/cgroup."""
    for path, content in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content + "\n")
    return folder


def v1(quota: str, limit: str, used: str = "0", group: str = "") -> dict[str, str]:
    """Return the files of a group in the hierarchies of version 1."""
    return {
        f"cpu{group}/cpu.cfs_quota_us": quota,
        f"cpu{group}/cpu.cfs_period_us": "100000",
        f"memory{group}/memory.limit_in_bytes": limit,
        f"memory{group}/memory.usage_in_bytes": used,
    }


def v2(cpu: str, limit: str, used: str = "0", group: str = "") -> dict[str, str]:
    """Return the files of a group in the hierarchy of version 2."""
    return {f"{group}cpu.max": cpu, f"{group}memory.max": limit, f"{group}memory.current": used}


SOME = str(3 * GIB)
LIMITS = {
    "version 2, in the container": ("0::/", v2("50000 100000", SOME), 0.5),
    "version 2, a part of a CPU": ("0::/", v2("100 100000", SOME), 0.001),
    "version 2, seen from the host": ("0::/a/b", v2("max 100000", "max") | v2("90000 100000", SOME, group="a/"), 0.9),
    "version 2, own group": ("0::/a/b", v2("100000 100000", SOME, group="a/b/"), 1),
    "version 2, outside of the namespace": ("0::/../other", v2("100000 100000", SOME), 1),
    "version 1, in the container": ("4:memory:/\n1:cpu:/", v1("100000", SOME), 1),
    "version 1, two controllers": ("4:memory:/\n1:cpu,cpuacct:/", v1("100000", SOME), 1),
    "version 1, without a namespace": ("4:memory:/docker/5f\n1:cpu:/docker/5f", v1("70000", SOME), 0.7),
    "version 1, own group": (
        "4:memory:/a/b\n1:cpu:/a/b",
        v1("-1", UNLIMITED_V1) | v1("100000", SOME, group="/a"),
        1,
    ),
    "both versions": ("4:memory:/\n1:cpu:/\n0::/", v1("100000", SOME) | {"unified/cgroup.procs": "1"}, 1),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_a_container_are_found(tmp_path: Path, name: str) -> None:
    groups, files, cpus = LIMITS[name]
    root = make_root(tmp_path, groups, files)
    assert available_cpus(root) == math.ceil(cpus) == 1
    assert available_memory(root) == 3 * GIB
    assert HostResources.detect(root).cores == 1


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/", v2("max 100000", "max")),
        ("4:memory:/\n1:cpu:/", v1("-1", UNLIMITED_V1)),
        ("0::/", {}),
        ("0::/", v2("", "a lot")),
        ("5:cpuset:/", v2("100 100000", "5")),
    ],
)
def test_without_limits_the_whole_machine_is_available(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    root = make_root(tmp_path, groups, files)
    empty = tmp_path / "empty"
    assert available_cpus(root) == available_cpus(empty) >= 1
    assert available_memory(root) >= float(UNLIMITED_V1)
    assert available_memory(empty) == math.inf


def test_memory_in_use_is_not_available_but_cached_files_are(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/", v2("max 100000", SOME, used=str(2 * GIB)))
    assert available_memory(root) == GIB
    (root / "sys/fs/cgroup/memory.stat").write_text(f"anon 7\ninactive_file {GIB // 2}\n")
    assert available_memory(root) == 1.5 * GIB


def test_workers_fit_into_the_container(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/", v2("max 100000", str(int(1.5 * WORKER_MEMORY_BYTES))))
    host = HostResources.detect(root)
    assert host.free_memory <= 1.5 * WORKER_MEMORY_BYTES
    count, message = worker_count(50, Execution(device="cpu", threads=1), host=host)
    assert count == 1
    assert "execution.workers: 50" in message
