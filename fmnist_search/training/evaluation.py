"""How good a network is on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.data.images import LabelledImages
from fmnist_search.models.classifier import Classifier, Ensemble

# Both divide the 10,848 validation images, so that a chunk has one static shape. On a CPU activations stay in the
# cache, on a GPU a few large launches win.
CPU_BATCH_SIZE = 226
GPU_BATCH_SIZE = 3_616


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, accuracy in 0..1 and confusion counts, rows true and columns predicted."""

    loss: float
    accuracy: float
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ClassScore:
    """How well one class is told, in 0..1, and of how many images (`support`); what is undefined is 0.

    `precision` is undefined for a class that is never predicted, `recall` for one of which there are no images.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence lies above `low` and not above `high`: how many, their means of both.

    `confidence` and `accuracy` are 0 where there are no images.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether confidence is what it says: bins of equal width, and the expected calibration error in 0..1."""

    bins: tuple[CalibrationBin, ...]
    expected_error: float


@dataclass(frozen=True)
class Misclassification:
    """An image, by its place, that was taken for another class, and the probability that class was given."""

    index: int
    true: int
    predicted: int
    probability: float


def evaluate(classifier: Classifier | Ensemble, images: LabelledImages, precision: str = "float32") -> Evaluation:
    """Judge a classifier that is in evaluation mode on images of its own device; synchronises at the end alone."""
    return evaluate_logits(predict_logits(classifier, images.pixels, precision), images.labels)


def evaluate_logits(logits: Tensor, labels: Tensor) -> Evaluation:
    """How good such logits (N, classes) are for these labels (N,); synchronises at the end alone."""
    loss = functional.cross_entropy(logits, labels)
    confusion = confusion_matrix(logits, labels)
    hits = sum(row[label] for label, row in enumerate(confusion))
    return Evaluation(loss.item(), hits / len(labels), confusion)


def confusion_matrix(scores: Tensor, labels: Tensor) -> tuple[tuple[int, ...], ...]:
    """Counts of images, rows true and columns predicted, of scores (N, classes); synchronises."""
    classes = scores.shape[1]
    cells = torch.bincount(labels * classes + scores.argmax(1), minlength=classes**2)
    return tuple(tuple(row) for row in cells.reshape(classes, classes).tolist())


@torch.inference_mode()
def predict_logits(classifier: Classifier | Ensemble, pixels: Tensor, precision: str = "float32") -> Tensor:
    """Float32 logits (N, classes) of (N, 28, 28) pixels, chunk by chunk."""
    chunk = CPU_BATCH_SIZE if pixels.device.type == "cpu" else GPU_BATCH_SIZE
    with autocast(pixels.device, precision):
        return torch.cat([classifier(part).float() for part in torch.split(pixels, chunk)])


def class_scores(confusion: Sequence[Sequence[int]]) -> tuple[ClassScore, ...]:
    """Precision, recall and F1 of each class of a confusion matrix, rows true and columns predicted."""
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    return tuple(
        ClassScore(
            precision=_ratio(row[label], predicted[label]),
            recall=_ratio(row[label], sum(row)),
            f1=_ratio(2 * row[label], sum(row) + predicted[label]),
            support=sum(row),
        )
        for label, row in enumerate(confusion)
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def calibration(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Calibration:
    """Confidence against accuracy, of (N, classes) probabilities and (N,) labels, N > 0.

    Guo et al., On Calibration of Modern Neural Networks (2017), arXiv 1706.04599: the error is the mean distance of
    the two over the bins, each weighted by its images.
    """
    confidence, predicted = probabilities.double().cpu().max(dim=1)
    hits = (predicted == labels.cpu()).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    places = torch.bucketize(confidence, edges[1:-1])
    counts = torch.bincount(places, minlength=bins)
    confidences, accuracies = (
        torch.bincount(places, weights, minlength=bins) / counts.clamp(min=1) for weights in (confidence, hits)
    )
    error = ((confidences - accuracies).abs() * counts).sum() / len(labels)
    columns = (edges[:-1], edges[1:], counts, confidences, accuracies)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return Calibration(tuple(CalibrationBin(*row) for row in rows), error.item())


def misclassifications(probabilities: Tensor, labels: Tensor, limit: int = 25) -> tuple[Misclassification, ...]:
    """The mistakes made with the most confidence, of (N, classes) probabilities and (N,) labels.

    The most confident comes first; of equal ones the earlier image.
    """
    probability, predicted = probabilities.cpu().max(dim=1)
    labels = labels.cpu()
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[probability[wrong].argsort(descending=True, stable=True)][:limit]
    columns = (order, labels[order], predicted[order], probability[order])
    return tuple(Misclassification(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a recipe's forward pass runs."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
