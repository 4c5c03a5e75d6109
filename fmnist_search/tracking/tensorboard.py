"""TensorBoard files of a training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import build, global_rng_lock
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import summarize
from fmnist_search.reporting.training_plots import confusion_figure
from fmnist_search.results.training import EpochReport
from fmnist_search.tracking import metric_names
from fmnist_search.tracking.provenance import command_line
from fmnist_search.training.loop import EpochResult

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

Confusion = Sequence[Sequence[int]]


class TensorBoardWriter:
    """Training callback that writes scalars and the confusion matrix of every epoch.

    At the start it writes the graph of the network, and a text with the command, the network and the recipe.
    """

    def __init__(self, folder: Path, recipe: Recipe, classes: Sequence[str]):
        """Open the files in `folder`.

        Raises:
            UserError: if the extra `tensorboard` is not installed, or the folder cannot be written.
        """
        self._classes = classes
        self._writer = _open_summary_writer(folder)
        # A network that is only drawn must not advance the generator of the caller, or of a training beside it.
        with global_rng_lock, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorBoard uses torch.jit.trace, which is deprecated
            self._writer.add_text("training", _describe(recipe))
            classifier = build(recipe.model, num_classes=recipe.data.num_classes).eval()
            self._writer.add_graph(classifier, torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE))
        self._writer.flush()

    def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
        """Write the metrics of an epoch."""
        self.log_epoch(epoch.report)
        if epoch.evaluation:
            self.log_confusion(epoch.report, epoch.evaluation.confusion)

    def log_epoch(self, report: EpochReport) -> None:
        """Write the scalars of an epoch."""
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
        self._writer.flush()

    def log_confusion(self, report: EpochReport, confusion: Confusion) -> None:
        """Write the confusion matrix of an epoch on the validation images, rows true and columns predicted."""
        title = f"epoch {report.epoch}: {report.val_accuracy:.2%} on validation"
        figure = confusion_figure(confusion, self._classes, title)
        self._writer.add_figure("val/confusion_matrix", figure, report.epoch)
        self._writer.flush()


def _describe(recipe: Recipe) -> str:
    """Return the command, the network and the recipe as Markdown; TensorBoard shows indented lines as they are."""
    network = summarize(recipe.model, recipe.data.num_classes).text
    sections = {"Command": command_line(), "Network": network, "Recipe": recipe_to_toml(recipe)}
    indented = {title: "\n".join(f"    {line}" for line in text.splitlines()) for title, text in sections.items()}
    return "\n\n".join(f"# {title}\n\n{text}" for title, text in indented.items())


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
