"""Tests of `training.autotune`: what it chooses, and that a measurement leaves the process as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from fmnist_search.recipe.execution import MEMORY_FORMATS, Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.autotune import PROBE_MULT_ADDS, Probe, autotune, choose_fastest, measure_throughput

SMALL_PROBE = Probe(batch_size=16, rounds=2)
FLOAT32_SECONDS = {("float32", "contiguous"): 1.0, ("float32", "channels_last"): 1.0}


@pytest.fixture
def restored_torch_state() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_named_precision_is_kept(precision: str, execution: Execution) -> None:
    tuned, chosen = autotune(execution, precision, SMALL_PROBE)
    assert chosen == precision
    assert tuned.memory_format in MEMORY_FORMATS
    assert tuned.allocator in ("default", "retaining")
    unchosen = {"memory_format": execution.memory_format, "allocator": execution.allocator}
    assert dataclasses.replace(tuned, **unchosen) == execution  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({**FLOAT32_SECONDS, ("bfloat16", "channels_last"): 0.5}, ("bfloat16", "channels_last")),
        ({**FLOAT32_SECONDS, ("bfloat16", "channels_last"): 0.95}, ("float32", "channels_last")),
        ({("bfloat16", "contiguous"): 0.95, ("bfloat16", "channels_last"): 1.0}, ("bfloat16", "channels_last")),
        ({("bfloat16", "contiguous"): 0.6, ("bfloat16", "channels_last"): 1.0}, ("bfloat16", "contiguous")),
    ],
)
def test_unexpected_candidate_has_to_win_by_more_than_noise(
    seconds: dict[tuple[str, str], float], expected: tuple[str, str]
) -> None:
    assert choose_fastest(seconds) == expected


@pytest.mark.usefixtures("restored_torch_state")
def test_measurements_leave_torch_as_it_was(execution: Execution) -> None:
    def settings() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        deterministic = torch.are_deterministic_algorithms_enabled()
        return torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic, deterministic, torch.is_grad_enabled()

    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    before, generator_state = settings(), torch.get_rng_state()
    _, precision = autotune(execution, probe=SMALL_PROBE)
    Recipe(precision=precision)  # raises if recipes do not know the precision
    assert measure_throughput(execution, precision, SMALL_PROBE) > 0
    assert settings() == before
    assert torch.equal(torch.get_rng_state(), generator_state)


def test_multiply_adds_are_those_of_the_default_cnn() -> None:
    convolutions = 9 * (28**2 * 1 * 32 + 14**2 * 32 * 64 + 7**2 * 64 * 128)
    assert Recipe().widths == "32-64-128"
    assert pytest.approx(convolutions + 128 * 10, rel=0.01) == PROBE_MULT_ADDS
