"""Tests of `training.cuda_graph` without a GPU: `DeviceLoop`, whose steps a GPU captures, equals the eager loop."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.models.cnn import Cnn
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Augmentation, Averaging, Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.cuda_graph import DeviceLoop
from fmnist_search.training.eager import EagerLoop
from fmnist_search.training.runtime import torch_settings
from fmnist_search.training.state import TrainingState

DATA_CONFIG = Data(train_images=300, validation=100)
CNN_RECIPE = Recipe(
    model=Cnn(depth=2, width_1=4, width_2=8, dropout=0.3),
    augmentation=Augmentation(shift=2, flip=0.5, erasing=0.5),
    averaging=Averaging(horizon=1.0),
    data=DATA_CONFIG,
    epochs=3,
    batch_size=50,
)


@pytest.fixture(scope="module")
def small_images(source: DataSource) -> Images:
    return load_images(DATA_CONFIG, source)


def train(
    recipe: Recipe, images: Images, execution: Execution, loop: Any
) -> tuple[TrainingState, list[tuple[float, float]]]:
    with torch_settings(execution):
        training = TrainingState(recipe, images, execution)
        steps = loop(training)
        epochs = [training.train_epoch(number, steps) for number in range(1, recipe.epochs + 1)]
        steps.close()
    return training, epochs


def assert_device_matches_eager(recipe: Recipe, images: Images, execution: Execution) -> None:
    eager, expected = train(recipe, images, execution, EagerLoop)
    device, epochs = train(recipe, images, execution, DeviceLoop)
    for (loss, accuracy), (expected_loss, expected_accuracy) in zip(epochs, expected, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        assert accuracy == pytest.approx(expected_accuracy, abs=1.5 / 300)  # two classes may have nearly equal logits
    pairs = [(eager.model, device.model), (eager.averaged.model, device.averaged.model)]
    for one_model, other_model in pairs:
        for name, tensor in one_model.state_dict().items():
            torch.testing.assert_close(other_model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert torch.equal(eager.generator.get_state(), device.generator.get_state())


@pytest.mark.parametrize("batch_size", [50, 64, 299, 300, 23, 7])
def test_each_size_of_the_last_batch(batch_size: int, small_images: Images, execution: Execution) -> None:
    assert_device_matches_eager(CNN_RECIPE.replace({"batch_size": batch_size, "epochs": 2}), small_images, execution)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.learning_rate": 0.1},
        {"optimizer.name": "sgd", "optimizer.nesterov": True, "schedule.name": "one-cycle"},
        {"optimizer.name": "adam", "schedule.name": "cosine"},
        {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1, "schedule.name": "one-cycle"},
        {"optimizer.name": "muon", "optimizer.weight_decay": 0.1},
    ],
    ids=["sgd constant", "nesterov one-cycle", "adam cosine", "adamw one-cycle", "muon"],
)
def test_each_optimizer_and_each_schedule(
    changes: dict[str, object], small_images: Images, execution: Execution
) -> None:
    # Rates are read by step for every optimizer alike, so not all pairs are needed.
    recipe = CNN_RECIPE.replace({"schedule.name": "constant", **changes, "epochs": 2})
    assert_device_matches_eager(recipe, small_images, execution)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.clip_norm": 0.1},
        {"label_smoothing": 0.2},
        {"averaging.horizon": 0.0},
        {"model.dropout": 0.0},
        {"augmentation.shift": 0, "augmentation.flip": 0.0, "augmentation.erasing": 0.0},
        {"model.norm": "group", "model.convolutions": 2, "optimizer.name": "sgd"},
        {"model.norm": "none", "model.activation": "prelu", "model.pool": "average"},
        {"model.hidden": 16},
        {"augmentation.rotation": 10.0},
        {"augmentation.mixup": 0.2},
        {"augmentation.cutmix": 1.0, "label_smoothing": 0.1},
        {"augmentation.mixup": 1.0, "augmentation.cutmix": 1.0, "precision": "bfloat16"},
        {"optimizer.penalty": 1e-3, "optimizer.clip_norm": 1.0},
        {"normalisation": "per-pixel"},
        {"test_time": "flip+shift"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_hyperparameters(changes: dict[str, object], small_images: Images, execution: Execution) -> None:
    assert_device_matches_eager(CNN_RECIPE.replace({**changes, "epochs": 2}), small_images, execution)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_resumed_training(name: str, small_images: Images, execution: Execution) -> None:
    recipe = CNN_RECIPE.replace({"optimizer.name": name, "optimizer.learning_rate": 0.01})
    with torch_settings(execution):
        uninterrupted, _ = train(recipe, small_images, execution, DeviceLoop)
        first = TrainingState(recipe, small_images, execution)
        first.train_epoch(1, DeviceLoop(first))
        second = TrainingState(recipe, small_images, execution, copy.deepcopy(first.state_dict()))
        steps = DeviceLoop(second)
        for number in (2, 3):
            second.train_epoch(number, steps)
    for key, tensor in uninterrupted.averaged.model.state_dict().items():
        assert torch.equal(second.averaged.model.state_dict()[key], tensor), key


def test_other_family(small_images: Images, execution: Execution) -> None:
    assert_device_matches_eager(
        dataclasses.replace(CNN_RECIPE, model=Mlp(depth=2, width=16, dropout=0.2)), small_images, execution
    )


def test_each_step_has_its_own_learning_rate(small_images: Images, execution: Execution) -> None:
    """Rates are read by the number of the step, across epochs and with a last batch of another size."""

    class RecordingLoop(DeviceLoop):
        def _train_step(self, indices: Tensor) -> None:
            super()._train_step(indices)
            rates.extend({float(group["lr"]) for group in self.training.optimizer.param_groups})
            batches.append(indices.clone())

    rates: list[float] = []
    batches: list[Tensor] = []
    recipe = CNN_RECIPE.replace({"schedule.name": "one-cycle", "batch_size": 64})
    training, _ = train(recipe, small_images, execution, RecordingLoop)
    assert rates == pytest.approx(training.learning_rates)
    assert [len(indices) for indices in batches] == training.batch_sizes * recipe.epochs
    count = len(training.batch_sizes)
    for epoch in range(recipe.epochs):
        assert torch.equal(torch.cat(batches[epoch * count :][:count]).sort().values, torch.arange(300))
