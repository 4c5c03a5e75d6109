"""State files: weights and checkpoints, written atomically and read without running code from the file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write, make_private_folder
from fmnist_search.models.classifier import Classifier, build, global_rng_lock
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import EpochReport
from fmnist_search.text import first_line
from fmnist_search.training.optim import parameter_groups

CHECKPOINT_FILE = "state.pt"

# ---------------------------------------------------------------------------------- state files


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write weights, or any dictionary of tensors and plain values, to `path`; create its folder if it is missing.

    Raises:
        OSError: with the name of the file, if it cannot be written; an earlier file is unchanged then.
    """
    make_private_folder(path.parent)
    content = state_to_bytes(state)  # torch hides why it cannot write to a file, such as a full disk
    with atomic_write(path) as file:
        file.write(content)


def state_to_bytes(state: Mapping[str, Any]) -> bytes:
    """Return what `save_state` would write."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def state_from_bytes(content: bytes, name: str) -> dict[str, Any]:
    """Return the state in `content`, with all tensors on the CPU; `name` stands for the file in error messages.

    Only tensors and plain values are read (`weights_only` of torch.load), so that no code in a file runs.

    Raises:
        UserError: if the content is damaged, or is not a state.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types of errors for a bad file
        detail = first_line(error)[:120]
        raise UserError(f"{name}: is damaged or not a state file ({detail}); use another copy of it") from None
    if not isinstance(state, dict):
        raise UserError(f"{name}: holds a {type(state).__name__}, not a state; use a file that a training has written")
    return state


def classifier_from_weights(recipe: Recipe, weights: Mapping[str, Tensor], name: str = "weights") -> Classifier:
    """Return a recipe's network with these weights, in evaluation mode on the CPU.

    The weights contain the normalisation; `name` stands for them in error messages.

    Raises:
        UserError: if the weights belong to another network.
    """
    statistics_shape = (IMAGE_SIZE, IMAGE_SIZE) if recipe.normalisation == "per-pixel" else ()
    with global_rng_lock, torch.random.fork_rng(devices=[]):  # the weights that it draws are replaced
        mean, std = torch.zeros(statistics_shape), torch.ones(statistics_shape)
        classifier = build(recipe.model, mean, std, recipe.test_time, recipe.data.num_classes)
    expected = {key: tuple(tensor.shape) for key, tensor in classifier.state_dict().items()}
    found = {key: tuple(getattr(tensor, "shape", ())) for key, tensor in weights.items()}
    if found != expected:
        key = next(key for key in [*expected, *found] if expected.get(key) != found.get(key))
        shapes = (
            f"{key} is {_format_shape(found.get(key))} there and {_format_shape(expected.get(key))} in {recipe.label}"
        )
        raise UserError(f"{name}: are the weights of another network ({shapes}); give the recipe they belong to")
    classifier.load_state_dict(weights)
    return classifier.eval()


def _format_shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"


# ---------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of a single training.

    `state` is what `run_trial` resumes from; `execution` holds the fields of `Execution`; `image_digests` are the
    digests of the data and of the split.
    """

    recipe: Recipe
    execution: Mapping[str, Any]
    image_digests: list[str]
    state: Mapping[str, Any]

    @property
    def epochs_done(self) -> int:
        """The number of finished epochs."""
        return len(self.state["epochs"])


def load_checkpoint(folder: Path, run_id: str) -> Checkpoint:
    """Read the checkpoint of the run `run_id` from its folder.

    Raises:
        UserError: if there is no checkpoint, or if it is damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        raise UserError(
            f"run {run_id!r}: {path} does not exist, so the run cannot be resumed; only single trainings can, on the "
            f"machine that trained them: use `fmnist-search train --from-run {run_id}` to train its recipe again"
        )
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, with all tensors on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if it is damaged, or is not a checkpoint.
    """
    return checkpoint_from_dict(state_from_bytes(path.read_bytes(), str(path)), str(path))


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint that `read_checkpoint` can read."""
    save_state(path, checkpoint_to_dict(checkpoint))


def checkpoint_to_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint as tensors and plain values."""
    return {
        "recipe": checkpoint.recipe.to_flat_dict(),
        "execution": checkpoint.execution,
        "images": checkpoint.image_digests,
        "state": checkpoint.state,
    }


def checkpoint_from_dict(content: Mapping[str, Any], name: str) -> Checkpoint:
    """Return the checkpoint that `checkpoint_to_dict` has described; `name` stands for its file in error messages.

    Raises:
        UserError: if it is not a checkpoint that `run_trial` can resume from.
    """
    try:
        recipe = Recipe().replace(content["recipe"])
        checkpoint = Checkpoint(recipe, dict(content["execution"]), list(content["images"]), dict(content["state"]))
        _check_progress(checkpoint)
        weights: Mapping[str, Tensor] = checkpoint.state["training"]["averaged"]
        weights.items()
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{name}: is not the checkpoint of a training; use another copy of it") from None
    classifier = classifier_from_weights(recipe, weights, name)
    try:
        _check_training_state(checkpoint, classifier)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        raise UserError(f"{name}: is not the checkpoint of a training; use another copy of it") from None
    return checkpoint


def _check_progress(checkpoint: Checkpoint) -> None:
    """Raise an error unless the epochs are those of a training that `run_trial` has begun."""
    state = checkpoint.state
    reports = [EpochReport(**report) for report in state["epochs"]]
    epochs = list(range(1, len(reports) + 1))
    values = [value for report in reports for value in vars(report).values() if value is not None]
    if not all(isinstance(value, int | float) for value in [*values, state["seconds"]]):
        raise ValueError("a value is no number")
    if [report.epoch for report in reports] != epochs or state["training"]["epochs"] != len(epochs):
        raise ValueError("the number of epochs is another")
    if state["best_epoch"] not in epochs or len(epochs) > checkpoint.recipe.epochs:
        raise ValueError("an epoch is out of range")


def _check_training_state(checkpoint: Checkpoint, classifier: Classifier) -> None:
    """Raise an error unless the state can be loaded into a training of this classifier."""
    training = checkpoint.state["training"]
    expected = {key: tensor.shape for key, tensor in classifier.state_dict().items()}
    for weights in (training["network"], checkpoint.state["weights"]):
        if {key: tensor.shape for key, tensor in weights.items()} != expected:
            raise ValueError("the weights are those of another network")
    groups = parameter_groups(classifier, checkpoint.recipe.optimizer)
    _check_optimizer_state(training["optimizer"], [group["params"] for group in groups])
    generator: Tensor = training["generator"]
    if torch.device(checkpoint.execution["device"]).type == "cpu":
        torch.Generator().set_state(generator)


def _check_optimizer_state(state: Mapping[str, Any], groups: Sequence[Sequence[Tensor]]) -> None:
    """Raise an error unless the state is that of an optimizer of these groups of parameters.

    No optimizer is made: the first one of a process imports torch's compiler, which takes seconds.
    """
    indices = iter(range(sum(map(len, groups))))
    if [group["params"] for group in state["param_groups"]] != [[next(indices) for _ in group] for group in groups]:
        raise ValueError("the groups of parameters are others")
    parameters = [parameter for group in groups for parameter in group]
    for index, values in state["state"].items():
        shapes = [value.shape for value in values.values() if isinstance(value, Tensor)]
        if any(shape not in ((), (1,), parameters[index].shape) for shape in shapes):
            raise ValueError("the state of a parameter has another shape")
