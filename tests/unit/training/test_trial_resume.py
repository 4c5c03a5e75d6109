"""Tests of resuming in `training.trial`: a resumed training equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fmnist_search.data.images import Images
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.training.loop import EpochResult
from fmnist_search.training.trial import run_trial

RECIPE = Recipe().replace(
    {
        "model.width_1": 4,
        "model.width_2": 8,
        "model.width_3": 8,
        "epochs": 4,
        "batch_size": 96,
        "optimizer.learning_rate": 1e-2,
        "data.train_images": 500,
        "data.validation": 500,
    }
)
RECIPE_CHANGES = {
    "adamw, averaged": {},
    "sgd, momentum, dropout, shift": {
        "optimizer.name": "sgd",
        "model.dropout": 0.3,
        "augmentation.shift": 2,
        "averaging.horizon": 0.0,
    },
    "adam, one-cycle, erasing, val_loss": {
        "optimizer.name": "adam",
        "schedule.name": "one-cycle",
        "augmentation.erasing": 0.5,
        "keep": "val_loss",
    },
    "muon": {"optimizer.name": "muon"},
    "bfloat16": {"precision": "bfloat16"},
}


class StateRecorder:
    """Stores a copy of the state after each epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        self.states.append(copy.deepcopy(state))


@pytest.mark.parametrize("changes", RECIPE_CHANGES.values(), ids=RECIPE_CHANGES.keys())
def test_resumed_equals_uninterrupted(changes: dict[str, Any], images: Images, execution: Execution) -> None:
    recipe = RECIPE.replace(changes)
    recorder = StateRecorder()
    uninterrupted = run_trial(recipe, images, execution, training_callback=recorder)
    for state in recorder.states[:-1]:
        resumed = run_trial(recipe, images, execution, resume_from=state)
        assert [_report_values(report) for report in resumed.epochs] == [
            _report_values(report) for report in uninterrupted.epochs
        ]
        assert (resumed.best_epoch, resumed.confusion, resumed.state) == (
            uninterrupted.best_epoch,
            uninterrupted.confusion,
            TrialState.COMPLETED,
        )
        for name in ("weights", "last_weights"):
            ours, theirs = getattr(resumed, name), getattr(uninterrupted, name)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_stopper_gets_new_epochs_and_the_result_has_all(images: Images, execution: Execution) -> None:
    recorder, seen = StateRecorder(), []

    def record_epoch(report: EpochReport) -> Decision:
        seen.append(report.epoch)
        return Decision.CONTINUE

    first = run_trial(RECIPE.replace({"epochs": 2}), images, execution, training_callback=recorder)
    second = run_trial(RECIPE, images, execution, record_epoch, resume_from=recorder.states[-1])
    assert seen == [3, 4]
    assert second.epochs[:2] == first.epochs
    assert second.seconds > first.seconds


def _report_values(report: EpochReport) -> tuple[object, ...]:
    return (
        report.epoch,
        report.train_loss,
        report.train_accuracy,
        report.val_loss,
        report.val_accuracy,
        report.learning_rate,
    )
