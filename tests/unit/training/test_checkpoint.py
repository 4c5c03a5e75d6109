"""Weights as plain state files: what is kept comes back, and nothing else is ever let in."""

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
from fmnist_search.training.checkpoint import classifier_from_weights, save_state, state_from_bytes
from fmnist_search.training.evaluation import evaluate
from fmnist_search.training.trial import run_trial


class MaliciousPickle:
    """What a pickle can be: a command that runs when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    recipe = Recipe().replace({"model.depth": 3})
    classifier = build(recipe.model, mean=73.0, std=90.0).eval()
    save_state(tmp_path / "new" / "weights.pt", classifier.state_dict())
    found = classifier_from_weights(
        recipe, state_from_bytes((tmp_path / "new" / "weights.pt").read_bytes(), "weights.pt")
    )
    pixels = torch.arange(2 * 28 * 28, dtype=torch.float32).reshape(2, 28, 28) % 256
    assert torch.equal(found(pixels), classifier(pixels))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_recipe_s_normalisation_and_views_come_back_too(
    normalisation: str, images: Images, execution: Execution
) -> None:
    recipe = Recipe(model=Mlp(depth=1, width=16), data=Data(train_images=1_000, validation=1_000), epochs=1).replace(
        {"normalisation": normalisation, "test_time": "flip+shift"}
    )
    result = run_trial(recipe, images, execution)
    assert result.last_weights is not None
    found = evaluate(classifier_from_weights(recipe, result.last_weights), images.validation)
    assert (found.accuracy, found.loss) == (result.value, pytest.approx(result.epochs[-1].val_loss, rel=1e-6))
    other = "global" if normalisation == "per-pixel" else "per-pixel"
    with pytest.raises(UserError, match=r"another network \(mean is "):
        classifier_from_weights(recipe.replace({"normalisation": other}), result.last_weights)


def test_no_code_in_a_file_ever_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({"network": MaliciousPickle(ran)}, tmp_path / "hostile.pt")
    for content in ((tmp_path / "hostile.pt").read_bytes(), pickle.dumps(MaliciousPickle(ran))):
        with pytest.raises(UserError, match=r"hostile\.pt: is damaged or no state file"):
            state_from_bytes(content, "hostile.pt")
    assert not ran.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 2_000])
def test_a_damaged_file_is_one_line(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "weights.pt"
    save_state(path, build(Recipe().model).state_dict())
    with pytest.raises(UserError, match="is damaged or no state file") as caught:
        state_from_bytes(path.read_bytes()[:keep], "weights.pt")
    assert len(caught.value.lines) == 1


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="holds a Tensor and no state"):
        state_from_bytes((tmp_path / "tensor.pt").read_bytes(), "tensor.pt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.depth": 4}, "10x128 there and 128x128x3x3 in cnn 32-64-128-128"),
        ({"model.width_1": 8}, "8x1x3x3 in cnn 8-"),
        ({"model.family": "mlp"}, "in mlp 256-256"),
    ],
)
def test_weights_of_another_network_are_one_line(changes: dict[str, object], said: str) -> None:
    weights = build(Recipe().model).state_dict()
    with pytest.raises(UserError, match=r"weights\.pt: are the weights of another network") as caught:
        classifier_from_weights(Recipe().replace(changes), weights, "weights.pt")
    assert said in str(caught.value)
