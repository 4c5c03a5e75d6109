"""How trials run on this machine: device and threads, and which of the faster ways are faster here.

Each way is tried once a study, which keeps the answer: noise shall never choose the numerics of a trial, and a trick
that loses on a machine is left off there.
"""

from __future__ import annotations

import dataclasses
import itertools
import platform
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.models.classifier import Classifier, build
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.execution import MEMORY_FORMATS, Execution
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.training.evaluation import autocast
from fmnist_search.training.runtime import _release_freed_memory, _retain_freed_memory, torch_settings

PROBE_BATCH = 32
PROBE_MULT_ADDS = 7_470_000
"""Multiply-adds of the default cnn for one image."""
PROBE_ROUNDS = 6
PROBE_MIN_SPEEDUP = 1.1
"""Another way than the one that is expected to win is taken only where it is faster by more than a probe's noise."""
PRECISIONS = ("float32", "bfloat16")
BASELINE = ("float32", "contiguous")
EXPECTED_FORMAT = "channels_last"


# ------------------------------------------------------------------------------------- found out


def tune(execution: Execution, precision: str = "auto") -> tuple[Execution, str]:
    """The execution and the precision in which the standard network trains fastest here, after a short trial of each.

    A precision that is named stays; then the memory format and the allocator alone are chosen.
    """
    device = torch.device(execution.device)
    precisions = PRECISIONS if precision == "auto" else (precision,)
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            precisions = precisions[:1]
        formats: Sequence[str] = ("channels_last",)
    else:
        formats = MEMORY_FORMATS
    ways = list(itertools.product(precisions, formats))
    chosen = _fastest(_step_seconds(execution, ways)) if len(ways) > 1 else ways[0]
    return dataclasses.replace(execution, memory_format=chosen[1], allocator=_choose_allocator(device)), chosen[0]


def _fastest(seconds: dict[tuple[str, str], float]) -> tuple[str, str]:
    """The fastest way; channels last and float32 where another wins by no more than noise."""

    def handicapped(way: tuple[str, str]) -> float:
        precision, memory_format = way
        unexpected = (memory_format != EXPECTED_FORMAT) + (precision != BASELINE[0])
        return seconds[way] * PROBE_MIN_SPEEDUP**unexpected

    return min(seconds, key=handicapped)


def _choose_allocator(device: torch.device) -> str:
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return "default"
    usual = _allocation_seconds()
    _retain_freed_memory()
    try:
        retaining = _allocation_seconds()
    finally:
        _release_freed_memory()
    return "retaining" if retaining * PROBE_MIN_SPEEDUP < usual else "default"


def _allocation_seconds() -> float:
    """Seconds to get and fill a tensor as large as an activation of a large batch: what retaining memory spares."""
    samples = []
    for _ in range(PROBE_ROUNDS):
        started = time.perf_counter()
        torch.empty(48 * 2**18).fill_(1)
        samples.append(time.perf_counter() - started)
    return min(samples[1:])


def measure_throughput(execution: Execution, precision: str) -> float:
    """Multiply-adds a second in a training step of the standard network, backward pass counted as two forward ones."""
    way = (precision, execution.memory_format)
    return 3 * PROBE_BATCH * PROBE_MULT_ADDS / _step_seconds(execution, [way])[way]


def _step_seconds(execution: Execution, candidates: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Seconds of a step of the standard network, the best of several; the ways take turns, so that noise hits all."""
    device = torch.device(execution.device)
    pixels = torch.zeros(PROBE_BATCH, IMAGE_SIZE, IMAGE_SIZE, device=device)
    labels = torch.zeros(PROBE_BATCH, dtype=torch.int64, device=device)
    samples: dict[tuple[str, str], list[float]] = {way: [] for way in candidates}
    with torch_settings(execution), torch.random.fork_rng(devices=[]):
        models = {way: to_memory_format(build(FAMILIES["cnn"]()).to(device), way[1]) for way in candidates}
        for _ in range(PROBE_ROUNDS):
            for way, model in models.items():
                samples[way].append(_elapsed_seconds(lambda m=model, p=way[0]: _training_step(m, pixels, labels, p)))  # type: ignore[misc]
    return {way: min(times[1:]) for way, times in samples.items()}


def to_memory_format(model: Classifier, memory_format: str) -> Classifier:
    """The model with its weights laid out so; what flows through it follows them."""
    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    return model.to(memory_format=layouts[memory_format])


def _elapsed_seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _training_step(model: Classifier, pixels: Tensor, labels: Tensor, precision: str) -> None:
    with autocast(pixels.device, precision):
        logits = model(pixels)
    torch.autograd.backward(functional.cross_entropy(logits.float(), labels))
    # Reading a gradient waits for the device, whichever it is.
    next(model.parameters()).grad.sum().item()  # type: ignore[union-attr]
