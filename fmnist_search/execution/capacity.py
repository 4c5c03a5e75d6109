"""How many trainings a machine runs at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fmnist_search.recipe.execution import Execution

WORKER_MEMORY_BYTES = 1_200 * 2**20
"""Bytes that a worker process may need: torch, the images, and the standard network at large batches."""
MAX_STREAMS = 6
MIN_STEP_SECONDS = 200e-6
"""What a captured step of a small network takes on an H200-class card, however few bytes it moves."""


# ----------------------------------------------------------------------------------- how many


def worker_count(requested: int | str, execution: Execution, step_bytes: Sequence[int] = ()) -> tuple[int, str]:
    """How many workers run at a time, and a line that says why where it is not what was asked for.

    "auto" takes what fits: on a CPU as many as there are cores for their threads and memory for their processes; on a
    GPU, one for the plain loop, and for captured graphs so many that steps of `step_bytes` keep the card busy.
    """
    if torch.device(execution.device).type != "cpu":
        return _device_worker_count(requested, execution, step_bytes)
    import joblib
    import psutil  # neither is there on a bare machine on which the engine is measured

    cores, threads = joblib.cpu_count(), max(execution.threads, 1)
    memory = psutil.virtual_memory().available
    fits = max(1, min(cores // threads, memory // WORKER_MEMORY_BYTES))
    if requested == "auto":
        return fits, ""
    if int(requested) > fits:
        has = f"{cores} cores and {memory / 2**30:.1f} GiB of free memory"
        each = f"{threads} thread{'s' * (threads > 1)} and {WORKER_MEMORY_BYTES / 2**30:.1f} GiB each"
        return fits, f"execution.workers: {requested} with {each} is more than {has}; {fits} at a time"
    return int(requested), ""


def _device_worker_count(requested: int | str, execution: Execution, step_bytes: Sequence[int]) -> tuple[int, str]:
    if requested != "auto":
        return int(requested), ""
    if execution.engine != "graph" or not step_bytes:
        return 1, ""
    properties = torch.cuda.get_device_properties(torch.device(execution.device))
    bandwidth = properties.memory_clock_rate * 1e3 * 2 * properties.memory_bus_width / 8
    typical = sorted(step_bytes)[len(step_bytes) // 2]
    count = min(MAX_STREAMS, 1 + round(MIN_STEP_SECONDS * bandwidth / max(typical, 1)))
    return (
        count,
        f"{count} trials at a time: a typical step moves {typical / 1e6:.0f} MB at {bandwidth / 1e12:.1f} TB/s",
    )
