"""Choose the fastest precision, memory format and allocator on this machine by short measurements.

A study measures once and stores the choice: noise must never change the numerics of its trials, and an option that is
slower on a machine must not be used there.
"""

from __future__ import annotations

import dataclasses
import itertools
import platform
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.models.classifier import Classifier, build
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.execution import MEMORY_FORMATS, Execution
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.training.evaluation import autocast
from fmnist_search.training.runtime import release_freed_memory, retain_freed_memory, to_memory_format, torch_settings

PROBE_MULT_ADDS = 7_470_000
"""Multiply-adds of the default cnn for one image."""
MIN_SPEEDUP = 1.1
"""An unexpected candidate is chosen only if it is faster by more than a measurement's noise."""
PRECISIONS = ("float32", "bfloat16")
BASELINE = ("float32", "contiguous")
EXPECTED_FORMAT = "channels_last"

Candidate = tuple[str, str]
"""A precision and a memory format."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """The length of a measurement: images of a batch, and timed rounds, at least 2 because the first is dropped."""

    batch_size: int = 32
    rounds: int = 6


DEFAULT_PROBE = Probe()


def autotune(execution: Execution, precision: str = "auto", probe: Probe = DEFAULT_PROBE) -> tuple[Execution, str]:
    """Return the execution and the precision with which the default cnn trains fastest on this machine.

    Args:
        execution: Device, threads and engine, which stay as they are.
        precision: "auto", or a precision that is kept; then only memory format and allocator are chosen.
        probe: The length of each measurement.
    """
    device = torch.device(execution.device)
    fastest_possible = PRECISIONS if has_bfloat16(device) else PRECISIONS[:1]
    precisions = fastest_possible if precision == "auto" else (precision,)
    formats: Sequence[str] = ("channels_last",) if device.type == "cuda" else MEMORY_FORMATS
    candidates = list(itertools.product(precisions, formats))
    if len(candidates) > 1:
        chosen = choose_fastest(_measure_step_seconds(execution, candidates, probe))
    else:
        chosen = candidates[0]
    allocator = _choose_allocator(device, probe)
    return dataclasses.replace(execution, memory_format=chosen[1], allocator=allocator), chosen[0]


def has_bfloat16(device: torch.device) -> bool:
    """Return whether torch has instructions for bfloat16 on a device. Without them it is emulated, which is slow."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def choose_fastest(seconds: Mapping[Candidate, float]) -> Candidate:
    """Return the candidate with the fewest seconds; channels last and float32 unless another wins by `MIN_SPEEDUP`."""

    def handicapped_seconds(candidate: Candidate) -> float:
        precision, memory_format = candidate
        unexpected = (memory_format != EXPECTED_FORMAT) + (precision != BASELINE[0])
        return seconds[candidate] * MIN_SPEEDUP**unexpected

    return min(seconds, key=handicapped_seconds)


def measure_throughput(execution: Execution, precision: str, probe: Probe = DEFAULT_PROBE) -> float:
    """Return the multiply-adds a second of a training step of the default cnn; a backward pass counts as two forward.

    Args:
        execution: How to run the step.
        precision: "float32" or "bfloat16".
        probe: The length of the measurement.
    """
    candidate = (precision, execution.memory_format)
    seconds = _measure_step_seconds(execution, [candidate], probe)[candidate]
    return 3 * probe.batch_size * PROBE_MULT_ADDS / seconds


def _choose_allocator(device: torch.device, probe: Probe) -> str:
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return "default"
    default = _measure_allocation_seconds(probe)
    retain_freed_memory()
    try:
        retaining = _measure_allocation_seconds(probe)
    finally:
        release_freed_memory()
    return "retaining" if retaining * MIN_SPEEDUP < default else "default"


def _measure_allocation_seconds(probe: Probe) -> float:
    """Return the seconds to allocate and fill a tensor of 48 MiB, the size of an activation of a large batch."""
    samples = []
    for _ in range(probe.rounds):
        started = time.perf_counter()
        torch.empty(48 * 2**18).fill_(1)
        samples.append(time.perf_counter() - started)
    return min(samples[1:])


def _measure_step_seconds(
    execution: Execution, candidates: Sequence[Candidate], probe: Probe
) -> dict[Candidate, float]:
    """Return the seconds of a step of the default cnn, the best of all rounds but the first.

    The candidates take turns, so that noise affects all of them alike.
    """
    device = torch.device(execution.device)
    pixels = torch.zeros(probe.batch_size, IMAGE_SIZE, IMAGE_SIZE, device=device)
    labels = torch.zeros(probe.batch_size, dtype=torch.int64, device=device)
    samples: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
    with torch_settings(execution), torch.random.fork_rng(devices=[]):
        models = {each: to_memory_format(build(FAMILIES["cnn"]()).to(device), each[1]) for each in candidates}
        for _ in range(probe.rounds):
            for (precision, memory_format), model in models.items():
                started = time.perf_counter()
                _training_step(model, pixels, labels, precision)
                samples[precision, memory_format].append(time.perf_counter() - started)
    return {candidate: min(times[1:]) for candidate, times in samples.items()}


def _training_step(model: Classifier, pixels: Tensor, labels: Tensor, precision: str) -> None:
    with autocast(pixels.device, precision):
        logits = model(pixels)
    torch.autograd.backward(functional.cross_entropy(logits.float(), labels))
    # Reading a value of a gradient waits for the device, on every type of device.
    next(model.parameters()).grad.sum().item()  # type: ignore[union-attr]
