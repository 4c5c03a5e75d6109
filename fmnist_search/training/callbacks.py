"""What may go along with a training in this process: its state kept after every epoch, TensorBoard's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_search.data.images import Images
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.checkpoint import save_state
from fmnist_search.training.loop import EpochResult

if TYPE_CHECKING:
    pass
from typing import Protocol

from fmnist_search.results.training import Decision, EpochReport
from fmnist_search.training.checkpoint import CHECKPOINT_FILE, Checkpoint, _read_checkpoint


class CallbackList:
    """Several companions as one."""

    def __init__(self, callbacks: Sequence[TrainingCallback]):
        self._callbacks = callbacks

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """Told to all."""
        for companion in self._callbacks:
            companion.on_epoch_end(epoch, state)


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


def never_stop(_: EpochReport) -> Decision:
    """The observer of a trial that nobody watches."""
    return Decision.CONTINUE


class TrainingCallback(Protocol):
    """Goes along with a training in the process that trains, and sees more of it than an observer."""

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """An epoch is over; from `state`, valid until the next one starts, `run_trial` can go on."""
