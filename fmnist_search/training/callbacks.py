"""What may go along with a training in this process: its state kept after every epoch, TensorBoard's files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fmnist_search.data.loading import IMAGE_SIZE, Images
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.reporting.training_plots import confusion_figure
from fmnist_search.training.checkpoint import classifier_from_weights, save_state, state_from_bytes
from fmnist_search.training.engine import EpochResult
from fmnist_search.training.trial import TrainingCallback

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

CHECKPOINT_FILE = "state.pt"


class CallbackList:
    """Several companions as one."""

    def __init__(self, callbacks: Sequence[TrainingCallback]):
        self._callbacks = callbacks

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """Told to all."""
        for companion in self._callbacks:
            companion.on_epoch_end(epoch, state)


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


class CheckpointWriter:
    """Writes a training's state to a folder after every epoch: a killed one has lost the epoch it was in."""

    def __init__(self, folder: Path, recipe: Recipe, images: Images, execution: Execution):
        self.has_checkpoint = False
        self._path = folder / CHECKPOINT_FILE
        digests = [images.digest, images.split_digest]
        self._metadata = {"recipe": recipe.to_flat_dict(), "execution": vars(execution), "images": digests}

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """Keep it."""
        save_state(self._path, {**self._metadata, "state": state})
        self.has_checkpoint = True

    def last_checkpoint(self) -> Checkpoint:
        """What was kept last."""
        return _read_checkpoint(self._path)


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


# --------------------------------------------------------------------------------------- TensorBoard


class TensorBoardWriter:
    """TensorBoard's files of a training: scalars and the confusion matrix of every epoch, and the network's graph."""

    def __init__(self, folder: Path, classes: Sequence[str]):
        """Begin to write.

        Raises:
            UserError: the extra is not installed, or the folder cannot be written.
        """
        self._classes = classes
        self._writer = _open_summary_writer(folder)
        self._has_graph = False

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """Write what is known of it."""
        report = epoch.report
        figures = {
            "train/loss": report.train_loss,
            "train/accuracy": report.train_accuracy,
            "val/loss": report.val_loss,
            "val/accuracy": report.val_accuracy,
            "optimizer/learning_rate": report.learning_rate,
            "time/epoch_seconds": report.seconds,
        }
        for name, value in figures.items():
            if value is not None:
                self._writer.add_scalar(name, value, report.epoch)
        if epoch.evaluation:
            title = f"epoch {report.epoch}: {report.val_accuracy:.2%} on validation"
            figure = confusion_figure(epoch.evaluation.confusion, self._classes, title)
            self._writer.add_figure("val/confusion_matrix", figure, report.epoch)
        if not self._has_graph:
            self._has_graph = True
            device = next(epoch.classifier.parameters()).device
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TensorBoard's graphs rest on torch.jit.trace, which is deprecated
                self._writer.add_graph(epoch.classifier, torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, device=device))
        self._writer.flush()


def _open_summary_writer(folder: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter  # an extra, and a second to load
    except ImportError:
        raise UserError(
            "--tensorboard: needs the package tensorboard; pip install 'fmnist-search[tensorboard]'"
        ) from None
    try:
        return SummaryWriter(str(folder))
    except OSError as error:
        raise UserError(f"--tensorboard {folder}: cannot be written ({error.strerror}); name another folder") from None
