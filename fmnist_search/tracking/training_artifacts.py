"""Figures of a trained network in its run: curves, filters, confusion, predictions, mistakes and calibration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import Tensor

from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.confusion_page import confusion_page
from fmnist_search.reporting.style import figure_to_png
from fmnist_search.reporting.training_plots import (
    calibration_figure,
    confusion_figure,
    filters_figure,
    mistakes_figure,
    predictions_figure,
    training_figure,
)
from fmnist_search.results.training import EpochReport
from fmnist_search.tracking import metric_names
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.training.checkpoint import classifier_from_weights
from fmnist_search.training.evaluation import (
    calibration,
    confused_pairs,
    confusion_matrix,
    misclassifications,
    predict_logits,
)

GRID_IMAGES = 25
"""Number of images in the grid of predictions, the first of the split."""


def log_training_plots(
    run: RunLogger,
    title: str,
    recipe: Recipe,
    epochs: Sequence[EpochReport],
    weights: Mapping[str, Tensor],
    images: Images,
) -> None:
    """Log the curves of a training, its filters, and the evaluation of `weights` on its validation images."""
    run.log_artifact("curves.png", figure_to_png(training_figure(epochs, title)))
    classifier = classifier_from_weights(recipe, weights)
    run.log_artifact("filters.png", figure_to_png(filters_figure(classifier.network.state_dict(), title)))
    if validation := images.validation:
        logits = predict_logits(classifier.to(validation.pixels.device), validation.pixels)
        log_evaluation_plots(run, logits.softmax(1), validation, images.classes, "val", title)


def log_evaluation_plots(
    run: RunLogger, probabilities: Tensor, images: LabelledImages, classes: Sequence[str], split: str, title: str
) -> None:
    """Log figures and the calibration error of a network on a split, "val" or "test", below the name of the split.

    `probabilities` float32 (N, classes) belong to the N images, on any device.
    """
    probabilities, images = probabilities.cpu(), images.to("cpu")
    calibrated = calibration(probabilities, images.labels)
    confusion = confusion_matrix(probabilities, images.labels)
    first = slice(GRID_IMAGES)
    pixels, labels = images.pixels, images.labels
    figures = {
        "confusion_normalised": confusion_figure(confusion, classes, title, normalised=True),
        "mistakes": mistakes_figure(
            pixels, misclassifications(probabilities, labels), classes, f"{title}: most confident mistakes"
        ),
        "predictions": predictions_figure(pixels[first], probabilities[first], labels[first], classes, title),
        "calibration": calibration_figure(calibrated, title),
    }
    for name, figure in figures.items():
        run.log_artifact(f"{split}/{name}.png", figure_to_png(figure))
    matrix = {"classes": list(classes), "rows_true_columns_predicted": confusion}
    run.log_text(f"{split}/confusion_matrix.json", json.dumps(matrix))
    pairs = confused_pairs(probabilities, labels)
    run.log_text(f"{split}/confusion.html", confusion_page(title, confusion, classes, pairs, pixels))
    run.log_metrics({metric_names.calibration_error(split): calibrated.expected_error})
