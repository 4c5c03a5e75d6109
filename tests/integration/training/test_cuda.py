"""Checks of benchmarks.checks, which `python -m benchmarks.gpu` runs on machines with a GPU; some need CUDA."""

from __future__ import annotations

import pytest
import torch

from benchmarks.checks import check_concurrent_matches_single, check_resume_matches_uninterrupted, run_all_checks
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.recipe.execution import Execution


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_concurrent_and_eager_trainings_agree(source: DataSource) -> None:
    assert [check for check in run_all_checks(source) if not check.passed] == []


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_trials_of_workers_equal_single_ones(count: int, images: Images, execution: Execution) -> None:
    check = check_concurrent_matches_single(images, execution, count)
    assert check.passed, check.details


def test_resumed_training_equals_an_uninterrupted_one(images: Images, execution: Execution) -> None:
    check = check_resume_matches_uninterrupted(images, execution)
    assert check.passed, check.details
