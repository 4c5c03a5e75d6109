"""The device, the threads and the process-wide settings of torch and the allocator."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

import torch

from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution


def resolve_execution(
    device: str = "auto", threads: int = 0, engine: str = "plain", *, deterministic: bool = False
) -> Execution:
    """How trials run on this machine: "auto" takes CUDA where there is one, no threads are torch's own number.

    Raises:
        UserError: the device is not there, or the engine needs another.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device: {device!r} cannot be used here ({str(error).splitlines()[0]}); take --device cpu or auto"
        ) from error
    if engine == "graph" and torch.device(device).type != "cuda":
        raise UserError(f"engine: 'graph' captures CUDA graphs, and the device is {device!r}; take --engine plain")
    threads = threads or torch.get_num_threads()
    return Execution(device=device, threads=threads, engine=engine, deterministic=deterministic)


# --------------------------------------------------------------------------------------- set so


_settings_lock = threading.Lock()
_active_count = 0
_saved_settings: tuple[int, bool, bool, bool] = (0, False, False, False)


@contextlib.contextmanager
def torch_settings(execution: Execution) -> Iterator[None]:
    """Torch set as the execution says, and set back when the last of those inside leaves; trials run inside it.

    These are settings of the whole process. Threads that train side by side share one execution.
    """
    global _active_count, _saved_settings
    with _settings_lock:
        if not _active_count:
            _saved_settings = _current_settings()
            _apply_settings(
                execution.threads or _saved_settings[0],
                benchmark=False,
                deterministic_convolutions=True,
                deterministic=execution.deterministic or _saved_settings[3],
            )
            if execution.allocator == "retaining":
                _retain_freed_memory()
        _active_count += 1
    if execution.threads:
        torch.set_num_threads(execution.threads)  # counts for the calling thread
    try:
        yield
    finally:
        with _settings_lock:
            _active_count -= 1
            if not _active_count:
                _apply_settings(*_saved_settings)
                if execution.allocator == "retaining":
                    _release_freed_memory()


def _current_settings() -> tuple[int, bool, bool, bool]:
    return (
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


def _apply_settings(threads: int, benchmark: bool, deterministic_convolutions: bool, deterministic: bool) -> None:
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.deterministic = deterministic_convolutions
    if (
        deterministic != torch.are_deterministic_algorithms_enabled()
    ):  # calling it loads a compiler, which takes a second
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


# glibc gives large tensors back to the system as they are freed, and every step pays for their pages anew. Numbers
# and defaults are those of malloc.h.
_MMAP_MAX, _TOP_PAD, _TRIM_THRESHOLD = -4, -2, -1
_RETAINING_OPTIONS = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
_DEFAULT_OPTIONS = {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 128 * 1024, _TOP_PAD: 128 * 1024}


def _retain_freed_memory() -> None:
    for option, value in _RETAINING_OPTIONS.items():
        ctypes.CDLL(None).mallopt(option, value)


def _release_freed_memory() -> None:
    for option, value in _DEFAULT_OPTIONS.items():
        ctypes.CDLL(None).mallopt(option, value)
    ctypes.CDLL(None).malloc_trim(0)
