"""What needs a CUDA device: the same checks that `python -m benchmarks.gpu` makes where there is nothing but torch."""

from __future__ import annotations

import pytest
import torch

from benchmarks.checks import DATA, all_checks, going_on_equals_never_having_stopped, packed_equals_alone
from fmnist_search.data.loading import Source, prepare
from fmnist_search.recipe.recipe import Execution


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_packed_and_plain_trainings_agree(source: Source) -> None:
    assert [check for check in all_checks(source) if not check.holds] == []


def test_two_worker_processes_give_what_each_trial_gives_alone(source: Source) -> None:
    images = prepare(DATA, source)
    check = packed_equals_alone(images, Execution(device="cpu", threads=1), count=2)
    assert check.holds, check.found


def test_a_training_that_goes_on_gives_what_it_gives_in_one_go(source: Source) -> None:
    check = going_on_equals_never_having_stopped(prepare(DATA, source), Execution(device="cpu", threads=1))
    assert check.holds, check.found
