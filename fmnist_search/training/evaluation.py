"""Evaluate a classifier on labelled images: loss, accuracy, confusion, calibration and mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.data.images import LabelledImages
from fmnist_search.models.classifier import Classifier, Ensemble

# Both divide the 10,848 validation images, so that all batches have one shape. On a CPU, activations of a small batch
# stay in the cache; on a GPU, a few large launches are faster.
CPU_BATCH_SIZE = 226
GPU_BATCH_SIZE = 3_616


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, accuracy in 0..1 and confusion counts, rows true and columns predicted."""

    loss: float
    accuracy: float
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CalibrationBin:
    """The images with a confidence in (`low`, `high`]: their number, mean confidence and accuracy, all in 0..1.

    `confidence` and `accuracy` are 0 if there are no images.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Confidence compared with accuracy: bins of equal width, and the expected calibration error in 0..1."""

    bins: tuple[CalibrationBin, ...]
    expected_error: float


@dataclass(frozen=True)
class Misclassification:
    """An image that was assigned to a wrong class: its index, both classes, and the probability of the wrong one."""

    index: int
    true: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class ConfusedPair:
    """A true class, the class that `count` of its images are taken for, and the most confident of these mistakes."""

    true: int
    predicted: int
    count: int
    mistakes: tuple[Misclassification, ...]


def evaluate(
    classifier: Classifier | Ensemble,
    images: LabelledImages,
    precision: str = "float32",
    *,
    batch_size: int | None = None,
) -> Evaluation:
    """Evaluate a classifier on images; synchronises once, at the end.

    Args:
        classifier: A classifier in evaluation mode, on the device of the images.
        images: N > 0 labelled images.
        precision: "float32" or "bfloat16", of the forward pass; the loss is computed in float32.
        batch_size: Images of a forward pass; `None` for what suits the device.
    """
    return evaluate_logits(predict_logits(classifier, images.pixels, precision, batch_size=batch_size), images.labels)


def evaluate_logits(logits: Tensor, labels: Tensor) -> Evaluation:
    """Evaluate logits (N, classes) against labels (N,) int64, N > 0; synchronises at the end."""
    loss = functional.cross_entropy(logits, labels)
    confusion = confusion_matrix(logits, labels)
    hits = sum(row[label] for label, row in enumerate(confusion))
    return Evaluation(loss.item(), hits / len(labels), confusion)


def mean_cross_entropy(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy of probabilities (N, classes) against labels (N,), N > 0.

    A probability that float32 rounds to 0 counts as the smallest one, so that the mean is finite.
    """
    chosen = probabilities.gather(1, labels[:, None]).clamp(min=torch.finfo(torch.float32).tiny)
    return -chosen.double().log().mean().item()


def confusion_matrix(scores: Tensor, labels: Tensor) -> tuple[tuple[int, ...], ...]:
    """Count images by true class (row) and predicted class (column), from scores (N, classes) and labels (N,) int64.

    Synchronises.
    """
    classes = scores.shape[1]
    cells = torch.bincount(labels * classes + scores.argmax(1), minlength=classes**2)
    return tuple(tuple(row) for row in cells.reshape(classes, classes).tolist())


@torch.inference_mode()
def predict_logits(
    classifier: Classifier | Ensemble, pixels: Tensor, precision: str = "float32", *, batch_size: int | None = None
) -> Tensor:
    """Return float32 logits (N, classes) of pixels (N, 28, 28) in 0..255, on their device, without gradients.

    The arguments are those of `evaluate`.
    """
    if batch_size is None:
        batch_size = CPU_BATCH_SIZE if pixels.device.type == "cpu" else GPU_BATCH_SIZE
    with autocast(pixels.device, precision):
        return torch.cat([classifier(batch).float() for batch in torch.split(pixels, batch_size)])


def calibration(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Calibration:
    """Compare confidence with accuracy, for probabilities (N, classes) and labels (N,), N > 0.

    The expected calibration error is the mean distance of the two over the bins, weighted by the images in each (Guo
    et al., On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599).
    """
    confidence, predicted = probabilities.double().cpu().max(dim=1)
    hits = (predicted == labels.cpu()).double()
    boundaries = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    bin_indices = torch.bucketize(confidence, boundaries[1:-1])
    counts = torch.bincount(bin_indices, minlength=bins)
    confidences, accuracies = (
        torch.bincount(bin_indices, weights, minlength=bins) / counts.clamp(min=1) for weights in (confidence, hits)
    )
    error = ((confidences - accuracies).abs() * counts).sum() / len(labels)
    columns = (boundaries[:-1], boundaries[1:], counts, confidences, accuracies)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return Calibration(tuple(CalibrationBin(*row) for row in rows), error.item())


def misclassifications(probabilities: Tensor, labels: Tensor, limit: int = 25) -> tuple[Misclassification, ...]:
    """Return the `limit` mistakes with the highest confidence, for probabilities (N, classes) and labels (N,).

    The most confident mistake comes first; of equally confident ones, the earlier image.
    """
    probability, predicted = probabilities.cpu().max(dim=1)
    labels = labels.cpu()
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[probability[wrong].argsort(descending=True, stable=True)][:limit]
    columns = (order, labels[order], predicted[order], probability[order])
    return tuple(Misclassification(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def confused_pairs(
    probabilities: Tensor, labels: Tensor, limit: int = 10, images: int = 12
) -> tuple[ConfusedPair, ...]:
    """Return the `limit` pairs of classes that are confused most often, with up to `images` mistakes each.

    `probabilities` are (N, classes), `labels` (N,). The most frequent pair comes first; of equally frequent ones, the
    one with the most confident mistake.
    """
    pairs: dict[tuple[int, int], list[Misclassification]] = {}
    for mistake in misclassifications(probabilities, labels, len(labels)):
        pairs.setdefault((mistake.true, mistake.predicted), []).append(mistake)
    ranked = sorted(pairs.items(), key=lambda item: -len(item[1]))[:limit]
    return tuple(ConfusedPair(*pair, len(found), tuple(found[:images])) for pair, found in ranked)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a forward pass; it does nothing for "float32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
