"""Tests of `training.checkpoint`: state files are read back unchanged, and a bad file is one line of error."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import build
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import NORMALISATIONS, Recipe
from fmnist_search.training.callbacks import CheckpointWriter
from fmnist_search.training.checkpoint import (
    CHECKPOINT_FILE,
    classifier_from_weights,
    load_checkpoint,
    read_checkpoint,
    save_state,
    state_from_bytes,
)
from fmnist_search.training.evaluation import evaluate
from fmnist_search.training.trial import run_trial


class MaliciousPickle:
    """A pickle that runs a command when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_weights_are_read_back_unchanged(tmp_path: Path) -> None:
    recipe = Recipe().replace({"model.depth": 3})
    classifier = build(recipe.model, mean=73.0, std=90.0).eval()
    save_state(tmp_path / "new" / "weights.pt", classifier.state_dict())
    content = (tmp_path / "new" / "weights.pt").read_bytes()
    found = classifier_from_weights(recipe, state_from_bytes(content, "weights.pt"))
    pixels = torch.arange(2 * 28 * 28, dtype=torch.float32).reshape(2, 28, 28) % 256
    assert torch.equal(found(pixels), classifier(pixels))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_normalisation_and_test_time_augmentation_are_read_back(
    normalisation: str, images: Images, execution: Execution
) -> None:
    recipe = Recipe(model=Mlp(depth=1, width=16), data=Data(train_images=500, validation=500), epochs=1).replace(
        {"normalisation": normalisation, "test_time": "flip+shift"}
    )
    result = run_trial(recipe, images, execution)
    assert result.last_weights is not None
    found = evaluate(classifier_from_weights(recipe, result.last_weights), images.validation)
    assert (found.accuracy, found.loss) == (result.value, pytest.approx(result.epochs[-1].val_loss, rel=1e-6))
    other = "global" if normalisation == "per-pixel" else "per-pixel"
    with pytest.raises(UserError, match=r"another network \(mean is "):
        classifier_from_weights(recipe.replace({"normalisation": other}), result.last_weights)


def test_code_in_a_file_never_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({"network": MaliciousPickle(ran)}, tmp_path / "hostile.pt")
    for content in ((tmp_path / "hostile.pt").read_bytes(), pickle.dumps(MaliciousPickle(ran))):
        with pytest.raises(UserError, match=r"hostile\.pt: is damaged or not a state file"):
            state_from_bytes(content, "hostile.pt")
    assert not ran.exists()


@pytest.mark.parametrize("size", [0, 1, 100, 2_000])
def test_damaged_file_is_one_line(tmp_path: Path, size: int) -> None:
    path = tmp_path / "weights.pt"
    save_state(path, build(Recipe().model).state_dict())
    with pytest.raises(UserError, match="is damaged or not a state file") as caught:
        state_from_bytes(path.read_bytes()[:size], "weights.pt")
    assert len(caught.value.lines) == 1


def test_file_of_another_type_is_one_line(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="holds a Tensor, not a state"):
        state_from_bytes((tmp_path / "tensor.pt").read_bytes(), "tensor.pt")


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"model.depth": 4}, "10x128 there and 128x128x3x3 in cnn 32-64-128-128"),
        ({"model.width_1": 8}, "8x1x3x3 in cnn 8-"),
        ({"model.family": "mlp"}, "in mlp 256-256"),
    ],
)
def test_weights_of_another_network_are_one_line(changes: dict[str, object], detail: str) -> None:
    weights = build(Recipe().model).state_dict()
    with pytest.raises(UserError, match=r"weights\.pt: are the weights of another network") as caught:
        classifier_from_weights(Recipe().replace(changes), weights, "weights.pt")
    assert detail in str(caught.value)


def test_missing_checkpoint_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run 'abc': .* does not exist.* --from-run abc") as caught:
        load_checkpoint(tmp_path, "abc")
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize("content", [{}, {"recipe": {}, "execution": {}, "images": [], "state": {"epochs": []}}])
def test_state_file_that_is_no_checkpoint_is_one_line(tmp_path: Path, content: dict[str, object]) -> None:
    save_state(tmp_path / CHECKPOINT_FILE, content)
    with pytest.raises(UserError, match="is not the checkpoint of a training"):
        read_checkpoint(tmp_path / CHECKPOINT_FILE)


def test_checkpoint_without_one_of_its_parts_is_one_line(tmp_path: Path, images: Images, execution: Execution) -> None:
    recipe = Recipe(model=Mlp(depth=1, width=16), data=Data(train_images=500, validation=500), epochs=1)
    run_trial(recipe, images, execution, training_callback=CheckpointWriter(tmp_path, recipe, images, execution))
    path = tmp_path / CHECKPOINT_FILE
    written = state_from_bytes(path.read_bytes(), path.name)
    state, training = written["state"], written["state"]["training"]
    contents = [{**written, "state": _without(state, name)} for name in state]
    contents += [{**written, "state": {**state, "training": _without(training, name)}} for name in training]
    contents += [{**written, "state": {**state, name: value}} for name in state for value in ([], None)]
    for content in contents:
        save_state(path, content)
        with pytest.raises(UserError, match="is not the checkpoint of a training"):
            read_checkpoint(path)


def _without(table: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in table.items() if key != name}
