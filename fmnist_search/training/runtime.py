"""Apply an `Execution` to this process: threads, torch's settings, memory format and allocator."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from fmnist_search.models.classifier import Classifier
from fmnist_search.recipe.execution import Execution


def to_memory_format(model: Classifier, memory_format: str) -> Classifier:
    """Return the model with its weights in "channels_last" or "contiguous" format; activations follow the weights."""
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    return model.to(memory_format=formats[memory_format])


# -------------------------------------------------------------------------------- torch's settings


class _TorchSettings(NamedTuple):
    threads: int
    benchmark: bool
    deterministic_convolutions: bool
    deterministic: bool


_settings_lock = threading.Lock()
_active_count = 0
_saved_settings = _TorchSettings(0, False, False, False)


@contextlib.contextmanager
def torch_settings(execution: Execution) -> Iterator[None]:
    """Apply torch's settings for `execution`, and restore the previous ones when the last user leaves.

    The settings belong to the whole process, so threads that train at the same time must share one execution. The
    context can be entered again inside itself.
    """
    global _active_count, _saved_settings
    with _settings_lock:
        if not _active_count:
            _saved_settings = _current_settings()
            _apply_settings(
                _TorchSettings(
                    execution.threads or _saved_settings.threads,
                    benchmark=False,
                    deterministic_convolutions=True,
                    deterministic=execution.deterministic or _saved_settings.deterministic,
                )
            )
            if execution.allocator == "retaining":
                retain_freed_memory()
        _active_count += 1
    if execution.threads:
        torch.set_num_threads(execution.threads)  # takes effect in the calling thread
    try:
        yield
    finally:
        with _settings_lock:
            _active_count -= 1
            if not _active_count:
                _apply_settings(_saved_settings)
                if execution.allocator == "retaining":
                    release_freed_memory()


def _current_settings() -> _TorchSettings:
    return _TorchSettings(
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


def _apply_settings(settings: _TorchSettings) -> None:
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = settings.benchmark
    torch.backends.cudnn.deterministic = settings.deterministic_convolutions
    # The call imports torch's compiler, which takes a second, so it is made only if it changes something.
    if settings.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)


# -------------------------------------------------------------------------------------- allocator

# By default glibc returns large tensors to the system when they are freed, so that every step pays for page faults.
# The numbers of the options and their defaults are those of malloc.h.
_MMAP_MAX, _TOP_PAD, _TRIM_THRESHOLD = -4, -2, -1
_RETAINING_OPTIONS = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
_DEFAULT_OPTIONS = {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 128 * 1024, _TOP_PAD: 128 * 1024}


def retain_freed_memory() -> None:
    """Make glibc's allocator keep freed memory for later tensors; the C library must be glibc."""
    _set_malloc_options(_RETAINING_OPTIONS)


def release_freed_memory() -> None:
    """Restore glibc's defaults and return unused memory to the system; the C library must be glibc."""
    _set_malloc_options(_DEFAULT_OPTIONS)
    ctypes.CDLL(None).malloc_trim(0)


def _set_malloc_options(options: Mapping[int, int]) -> None:
    for option, value in options.items():
        ctypes.CDLL(None).mallopt(option, value)
