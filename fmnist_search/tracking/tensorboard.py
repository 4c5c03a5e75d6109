"""TensorBoard files of a training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.reporting.training_plots import confusion_figure
from fmnist_search.training.loop import EpochResult

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


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
