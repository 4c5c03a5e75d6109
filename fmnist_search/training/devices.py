"""The device of a training, chosen without torch where there is no GPU."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path

from fmnist_search.cgroup import available_cpus
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.text import first_line

AMD_DRIVER = Path("/dev/kfd")
CPU_DESCRIPTION = Path("/proc/cpuinfo")
MAX_REASON = 150
"""Characters of torch's reason that are shown; for a missing backend it lists all others."""


def resolve_execution(
    device: str = "auto", threads: int = 0, engine: str = "plain", *, deterministic: bool = False
) -> Execution:
    """Return how trials run on this machine. Torch is imported only if the answer depends on it.

    Args:
        device: A torch device, or "auto" for CUDA if there is a GPU and the CPU otherwise.
        threads: Intra-op threads on the CPU; 0 for torch's own number, within the quota of a container.
        engine: "plain", or "graph" for captured CUDA graphs.
        deterministic: Whether to use deterministic algorithms only.

    Raises:
        UserError: if the device cannot be used, the CPU has fewer threads, or the engine needs another device.
    """
    available = os.cpu_count() or 1
    if threads > available:  # they would only wait for each other; with thousands, torch hangs
        raise UserError(
            f"threads: {threads} is more than the {available} CPUs of this machine; give at most {available}"
        )
    if device == "auto" and not may_have_gpu():
        device = "cpu"
    if device != "cpu" or not threads:
        device, threads = _resolve_with_torch(device, threads)
    if engine == "graph" and not device.startswith("cuda"):
        raise UserError(f"engine: 'graph' captures CUDA graphs, but the device is {device!r}; use --engine plain")
    return Execution(device=device, threads=threads, engine=engine, deterministic=deterministic)


def may_have_gpu() -> bool:
    """Return False if torch cannot find a GPU, because a Linux machine has no driver of NVIDIA or AMD."""
    if sys.platform != "linux":
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return AMD_DRIVER.exists()
    return True


@functools.cache
def device_name(device: str) -> str:
    """Return the model of a GPU or of this machine's processor; "" if it is not known."""
    if device.partition(":")[0] == "cuda":
        import torch

        try:
            return torch.cuda.get_device_name(torch.device(device))
        except (RuntimeError, AssertionError):  # there is none: the training says so
            return ""
    if device != "cpu":
        return ""
    try:
        lines = CPU_DESCRIPTION.read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _resolve_with_torch(device: str, threads: int) -> tuple[str, int]:
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # devices such as "meta" have no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device: {device!r} cannot be used here ({_reason(device, error)}") from error
    device = "cpu" if torch.device(device).type == "cpu" else device
    return device, threads or min(torch.get_num_threads(), available_cpus())


def _reason(device: str, error: Exception) -> str:
    """Return why a device cannot be used, and what to do."""
    import torch

    remedy, backend = "use --device cpu or auto", device.partition(":")[0]
    missing = {
        "cuda": torch.version.cuda is None and torch.version.hip is None,
        "mps": not torch.backends.mps.is_built(),
    }
    if missing.get(backend):
        name = backend.upper()
        return f"torch {torch.__version__} is built without {name}); install a build with {name}, or {remedy}"
    return f"{first_line(error)[:MAX_REASON]}); {remedy}"
