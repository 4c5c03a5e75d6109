"""Callbacks that run beside a training in its own process, such as the one that writes checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from fmnist_search.data.images import Images
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.checkpoint import CHECKPOINT_FILE, Checkpoint, read_checkpoint, write_checkpoint
from fmnist_search.training.loop import EpochResult


class TrainingCallback(Protocol):
    """Receives each epoch in the process that trains, with more of its state than a stopper gets."""

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """Handle a finished epoch; `run_trial` can resume from `state`, which is valid until the next epoch starts."""


class CallbackList:
    """Several callbacks as one, called in order."""

    def __init__(self, callbacks: Sequence[TrainingCallback]):
        self._callbacks = callbacks

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """Call each callback."""
        for callback in self._callbacks:
            callback.on_epoch_end(epoch, state)


class CheckpointWriter:
    """Writes a checkpoint to a folder after every epoch, so that a killed training loses one epoch at most."""

    def __init__(self, folder: Path, recipe: Recipe, images: Images, execution: Execution):
        self.has_checkpoint = False
        self._path = folder / CHECKPOINT_FILE
        self._recipe = recipe
        self._execution = vars(execution)
        self._image_digests = [images.digest, images.split_digest]

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """Write the checkpoint; it replaces the one before."""
        write_checkpoint(self._path, Checkpoint(self._recipe, self._execution, self._image_digests, state))
        self.has_checkpoint = True

    def last_checkpoint(self) -> Checkpoint:
        """Read the last checkpoint.

        Raises:
            FileNotFoundError: if none has been written.
        """
        return read_checkpoint(self._path)
