"""The machine and the versions on which a figure was measured."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fmnist_search.training.autotune import has_bfloat16

PACKAGES = ("torch", "torchvision", "numpy", "optuna", "mlflow")


def machine() -> str:
    """Return the number of cores, the processor and, if there is one, the GPU; else whether it computes in bfloat16."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.cuda.is_available():
        return f"{cores} cores of {processor}, {torch.cuda.get_device_name()}"
    return f"{cores} cores of {processor} {'with' if _cpu_has_bfloat16() else 'without'} bfloat16"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_slug(device: str) -> str:
    """Return a device as part of a file name: the name of the GPU, or which kind of CPU it is.

    A search trains in another precision on a CPU without bfloat16, so that figures of the two kinds are kept apart.
    """
    if device == "cpu":
        return "cpu" if _cpu_has_bfloat16() else "cpu-without-bfloat16"
    if not device.startswith("cuda"):
        return device
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def _cpu_has_bfloat16() -> bool:
    return has_bfloat16(torch.device("cpu"))
