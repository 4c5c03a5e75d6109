"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def machine() -> str:
    """Processor, cores and, where there is one, the GPU."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{len(os.sched_getaffinity(0))} cores of {processor}{gpu}"


def versions() -> dict[str, str]:
    """Python and the packages that figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "optuna")}}
