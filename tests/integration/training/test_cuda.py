"""Checks of benchmarks.checks, which `python -m benchmarks.gpu` runs on machines with a GPU; some need CUDA."""

from __future__ import annotations

import pytest
import torch

from benchmarks.checks import (
    DATA_CONFIG,
    check_concurrent_matches_single,
    check_resume_matches_uninterrupted,
    run_all_checks,
)
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import load_images
from fmnist_search.recipe.execution import Execution


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_concurrent_and_eager_trainings_agree(source: DataSource) -> None:
    assert [check for check in run_all_checks(source) if not check.passed] == []


def test_trials_in_two_worker_processes_equal_single_ones(source: DataSource) -> None:
    images = load_images(DATA_CONFIG, source)
    check = check_concurrent_matches_single(images, Execution(device="cpu", threads=1), count=2)
    assert check.passed, check.details


def test_resumed_training_equals_an_uninterrupted_one(source: DataSource) -> None:
    check = check_resume_matches_uninterrupted(load_images(DATA_CONFIG, source), Execution(device="cpu", threads=1))
    assert check.passed, check.details
