"""A network's weights as a plain state file: written whole, and read without running anything that stands in it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write
from fmnist_search.models.classifier import Classifier, build
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.recipe import Recipe


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Keep weights, or whatever a training goes on from, for `torch.load`; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save(state, file)


def state_to_bytes(state: Mapping[str, Any]) -> bytes:
    """The same as bytes."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def state_from_bytes(content: bytes, name: str) -> dict[str, Any]:
    """What `save_state` kept, on the CPU; `name` is what an error calls it.

    Tensors and plain values alone are read (`weights_only` of torch.load): no code in a file ever runs.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch says in a dozen ways that a file is not what it should be
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{name}: is damaged or no state file ({first[:120]}); take another copy of it") from None
    if not isinstance(state, dict):
        raise UserError(f"{name}: holds a {type(state).__name__} and no state; take a file that a training has kept")
    return state


def classifier_from_weights(recipe: Recipe, weights: Mapping[str, Tensor], name: str = "weights") -> Classifier:
    """A recipe's network with such weights, in evaluation mode on the CPU; its normalisation is among them.

    Raises:
        UserError: they are another network's.
    """
    each_pixel = (IMAGE_SIZE, IMAGE_SIZE) if recipe.normalisation == "per-pixel" else ()
    classifier = build(recipe.model, torch.zeros(each_pixel), torch.ones(each_pixel), recipe.test_time)
    ours = {key: tuple(tensor.shape) for key, tensor in classifier.state_dict().items()}
    theirs = {key: tuple(getattr(tensor, "shape", ())) for key, tensor in weights.items()}
    if ours != theirs:
        off = next(key for key in [*ours, *theirs] if ours.get(key) != theirs.get(key))
        shapes = f"{off} is {_format_shape(theirs.get(off))} there and {_format_shape(ours.get(off))} in {recipe.label}"
        raise UserError(f"{name}: are the weights of another network ({shapes}); give the recipe they belong to")
    classifier.load_state_dict(weights)
    return classifier.eval()


def _format_shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"


CHECKPOINT_FILE = "state.pt"


# -------------------------------------------------------------------------------------- what is kept


@dataclass(frozen=True)
class Checkpoint:
    """A training as it was kept: `state` is what `run_trial` goes on from, `image_digests` are their two digests."""

    recipe: Recipe
    execution: Mapping[str, Any]
    image_digests: list[str]
    state: Mapping[str, Any]

    @property
    def epochs_done(self) -> int:
        """How many it has had."""
        return len(self.state["epochs"])


def load_checkpoint(folder: Path, run_id: str) -> Checkpoint:
    """What a training has kept.

    Raises:
        UserError: nothing is kept of it here, or it is damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        raise UserError(
            f"run {run_id!r}: {path} is not there, so it cannot go on; only single trainings can, and where they were "
            f"trained: take `fmnist-search train --from-run {run_id}` to train its recipe anew"
        )
    return _read_checkpoint(path)


def _read_checkpoint(path: Path) -> Checkpoint:
    found = state_from_bytes(path.read_bytes(), str(path))
    try:
        recipe = Recipe().replace(found["recipe"])
        kept = Checkpoint(recipe, dict(found["execution"]), list(found["images"]), dict(found["state"]))
        weights = kept.state["training"]["averaged"]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: is no state of a training; take another copy of it") from None
    classifier_from_weights(recipe, weights, str(path))
    return kept
