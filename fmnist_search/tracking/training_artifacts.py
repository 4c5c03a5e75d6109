"""What a run shows of the network it trained: curves, filters, confusion, calibration, its surest mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import Tensor

from fmnist_search.data.loading import Images, Labelled
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.style import as_png
from fmnist_search.reporting.training_plots import (
    calibration_figure,
    confusion_figure,
    filters_figure,
    mistakes_figure,
    predictions_figure,
    training_figure,
)
from fmnist_search.results.study import EpochReport
from fmnist_search.tracking.run_logger import Run
from fmnist_search.training.checkpoint import classifier_with
from fmnist_search.training.evaluation import calibration, confusion_of, mistakes, predict_logits

GRID = 25
"""Images of the grid of predictions: the first, whatever they are."""


def show_training(
    run: Run, title: str, recipe: Recipe, epochs: Sequence[EpochReport], weights: Mapping[str, Tensor], images: Images
) -> None:
    """A training's curves, the filters that it learned, and how these weights of it do on its validation images."""
    run.file("curves.png", as_png(training_figure(epochs, title)))
    classifier = classifier_with(recipe, weights)
    run.file("filters.png", as_png(filters_figure(classifier.network.state_dict(), title)))
    if validation := images.validation:
        logits = predict_logits(classifier.to(validation.pixels.device), validation.pixels)
        show_network(run, logits.softmax(1), validation, images.classes, "val", title)


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
