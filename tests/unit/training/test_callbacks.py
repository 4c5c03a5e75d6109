"""Tests of `training.callbacks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmnist_search.data.images import Images
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.callbacks import CallbackList, CheckpointWriter
from fmnist_search.training.checkpoint import load_checkpoint
from fmnist_search.training.loop import EpochResult
from fmnist_search.training.trial import run_trial

RECIPE = Recipe(model=Mlp(depth=1, width=16), data=Data(train_images=500, validation=500), epochs=3, batch_size=250)


class EpochRecorder:
    def __init__(self, order: list[str], name: str):
        self.order, self.name = order, name

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        self.order.append(f"{self.name} {epoch.report.epoch} of {len(state['epochs'])}")


def test_callbacks_of_a_list_are_called_in_order(images: Images, execution: Execution) -> None:
    order: list[str] = []
    callbacks = CallbackList([EpochRecorder(order, "first"), EpochRecorder(order, "second")])
    run_trial(RECIPE.replace({"epochs": 2}), images, execution, training_callback=callbacks)
    assert order == ["first 1 of 1", "second 1 of 1", "first 2 of 2", "second 2 of 2"]


def test_training_resumes_from_a_checkpoint_file(tmp_path: Path, images: Images, execution: Execution) -> None:
    writer = CheckpointWriter(tmp_path, RECIPE, images, execution)
    assert not writer.has_checkpoint
    uninterrupted = run_trial(RECIPE, images, execution)
    run_trial(RECIPE.replace({"epochs": 2}), images, execution, training_callback=writer)
    assert writer.has_checkpoint
    checkpoint = load_checkpoint(tmp_path, "abc")
    assert (checkpoint.recipe, checkpoint.execution, checkpoint.epochs_done) == (RECIPE, vars(execution), 2)
    assert checkpoint.image_digests == [images.digest, images.split_digest]
    assert writer.last_checkpoint().recipe == RECIPE
    resumed = run_trial(RECIPE, images, execution, resume_from=checkpoint.state)
    assert [epoch.val_loss for epoch in resumed.epochs] == [epoch.val_loss for epoch in uninterrupted.epochs]
