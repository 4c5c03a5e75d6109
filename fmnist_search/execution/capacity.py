"""How many trials a machine runs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fmnist_search.cgroup import available_cpus, available_memory
from fmnist_search.recipe.execution import Execution

WORKER_MEMORY_BYTES = 1_200 * 2**20
"""Memory that a worker process may need: torch, the images, and the standard network at large batch sizes."""
MAX_STREAMS = 6
MIN_STEP_SECONDS = 200e-6
"""Seconds of a captured step of a small network on an H200-class card, however few bytes the step moves."""


class HostResources(NamedTuple):
    """What worker processes share: CPU cores and bytes of free memory."""

    cores: int
    free_memory: int

    @classmethod
    def detect(cls, root: Path = Path("/")) -> HostResources:
        """Return this machine's resources, within the limits of its container; `root` has its folders proc and sys."""
        import joblib
        import psutil  # imported here: a machine on which only the engine is measured has neither

        cores = min(joblib.cpu_count(), available_cpus(root))
        return cls(cores, int(min(psutil.virtual_memory().available, available_memory(root))))


def worker_count(
    requested: int | str, execution: Execution, step_bytes: Sequence[int] = (), *, host: HostResources | None = None
) -> tuple[int, str]:
    """Return how many workers run at a time and, if that is not the requested number, one line that says why.

    "auto" is the number that fits. On a CPU the cores limit it by the threads of a worker, and the free memory of
    `host` (default: this machine) by `WORKER_MEMORY_BYTES`. On a GPU it is one for the plain loop; for captured graphs
    it is the number that keeps the card busy with training steps that move `step_bytes` each.
    """
    if execution.device != "cpu":
        return _device_worker_count(requested, execution, step_bytes)
    host = host or HostResources.detect()
    threads = max(execution.threads, 1)
    limit = max(1, min(host.cores // threads, host.free_memory // WORKER_MEMORY_BYTES))
    if requested == "auto":
        return limit, ""
    if int(requested) > limit:
        available = f"{host.cores} cores and {host.free_memory / 2**30:.1f} GiB of free memory"
        needed = f"{threads} thread{'s' * (threads > 1)} and {WORKER_MEMORY_BYTES / 2**30:.1f} GiB each"
        return limit, f"execution.workers: {requested} with {needed} is more than {available}; {limit} at a time"
    return int(requested), ""


def _device_worker_count(requested: int | str, execution: Execution, step_bytes: Sequence[int]) -> tuple[int, str]:
    if requested != "auto":
        return int(requested), ""
    if execution.engine != "graph" or not step_bytes:
        return 1, ""
    import torch

    properties = torch.cuda.get_device_properties(torch.device(execution.device))
    bandwidth = properties.memory_clock_rate * 1e3 * 2 * properties.memory_bus_width / 8
    median_bytes = sorted(step_bytes)[len(step_bytes) // 2]
    count = min(MAX_STREAMS, 1 + round(MIN_STEP_SECONDS * bandwidth / max(median_bytes, 1)))
    return (
        count,
        f"{count} trials at a time: the median step moves {median_bytes / 1e6:.0f} MB at {bandwidth / 1e12:.1f} TB/s",
    )
