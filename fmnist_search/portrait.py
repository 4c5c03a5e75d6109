"""What the run of a finalist or champion shows of its network: curves, confusion, calibration, its surest mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from torch import Tensor

from fmnist_search.canvas import as_png
from fmnist_search.data import Labelled
from fmnist_search.evaluate import calibration, confusion_of, mistakes
from fmnist_search.network_figures import (
    calibration_figure,
    confusion_figure,
    mistakes_figure,
    predictions_figure,
    training_figure,
)
from fmnist_search.record import Run
from fmnist_search.results import EpochReport

GRID = 25
"""Images of the grid of predictions: the first, whatever they are."""


def show_training(run: Run, epochs: Sequence[EpochReport], title: str) -> None:
    """The curves of a training."""
    run.file("curves.png", as_png(training_figure(epochs, title)))


def show_network(
    run: Run, probabilities: Tensor, images: Labelled, classes: Sequence[str], part: str, title: str
) -> None:
    """How a network does on a part of the images, `val` or `test`: its pictures below that name, and its calibration.

    `probabilities` (N, classes) are of the images (N, 28, 28), on any device.
    """
    probabilities, images = probabilities.cpu(), images.to("cpu")
    calibrated = calibration(probabilities, images.labels)
    confusion = confusion_of(probabilities, images.labels)
    first = slice(GRID)
    pixels, labels = images.pixels, images.labels
    figures = {
        "confusion_normalised": confusion_figure(confusion, classes, title, normalised=True),
        "mistakes": mistakes_figure(pixels, mistakes(probabilities, labels), classes, f"{title}: surest mistakes"),
        "predictions": predictions_figure(pixels[first], probabilities[first], labels[first], classes, title),
        "calibration": calibration_figure(calibrated, title),
    }
    for name, figure in figures.items():
        run.file(f"{part}/{name}.png", as_png(figure))
    matrix = {"classes": list(classes), "rows_true_columns_predicted": confusion}
    run.text(f"{part}/confusion_matrix.json", json.dumps(matrix))
    run.metrics({f"{part}/calibration_error": calibrated.error})
