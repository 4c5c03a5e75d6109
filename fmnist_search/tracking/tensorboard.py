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
from fmnist_search.tracking import metric_names
from fmnist_search.training.loop import EpochResult

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class TensorBoardWriter:
    """Training callback that writes scalars and the confusion matrix of every epoch, and the graph of the network."""

    def __init__(self, folder: Path, classes: Sequence[str]):
        """Open the files in `folder`.

        Raises:
            UserError: if the extra `tensorboard` is not installed, or the folder cannot be written.
        """
        self._classes = classes
        self._writer = _open_summary_writer(folder)
        self._has_graph = False

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """Write the metrics of an epoch; on the first call the graph as well."""
        report = epoch.report
        values = {
            metric_names.TRAIN_LOSS: report.train_loss,
            metric_names.TRAIN_ACCURACY: report.train_accuracy,
            metric_names.VAL_LOSS: report.val_loss,
            metric_names.VAL_ACCURACY: report.val_accuracy,
            metric_names.LEARNING_RATE: report.learning_rate,
            metric_names.EPOCH_SECONDS: report.seconds,
        }
        for name, value in values.items():
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
                warnings.simplefilter("ignore")  # TensorBoard uses torch.jit.trace, which is deprecated
                self._writer.add_graph(epoch.classifier, torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, device=device))
        self._writer.flush()


def _open_summary_writer(folder: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter  # an optional dependency that takes a second to import
    except ImportError:
        raise UserError(
            "--tensorboard: needs the package tensorboard; pip install 'fmnist-search[tensorboard]'"
        ) from None
    try:
        return SummaryWriter(str(folder))
    except OSError as error:
        raise UserError(f"--tensorboard {folder}: cannot be written ({error.strerror}); name another folder") from None
