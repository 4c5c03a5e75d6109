"""How good a network is on labelled images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.data import Labelled
from fmnist_search.models import Classifier, Ensemble
from fmnist_search.results import Accuracy

# Both divide the 10,848 validation images, so that a chunk has one static shape. On a CPU activations stay in the
# cache, on a GPU a few large launches win.
CPU_CHUNK = 226
GPU_CHUNK = 3_616


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, accuracy in 0..1 and confusion counts, rows true and columns predicted."""

    loss: float
    accuracy: float
    confusion: tuple[tuple[int, ...], ...]


def evaluate(classifier: Classifier | Ensemble, images: Labelled, precision: str = "float32") -> Evaluation:
    """Judge a classifier that is in evaluation mode on images of its own device; synchronises at the end alone."""
    logits = predict_logits(classifier, images.pixels, precision)
    loss = functional.cross_entropy(logits, images.labels)
    classes = logits.shape[1]
    cells = torch.bincount(images.labels * classes + logits.argmax(1), minlength=classes**2)
    counts = cells.cpu().reshape(classes, classes)
    return Evaluation(
        loss=loss.item(),
        accuracy=counts.trace().item() / len(images),
        confusion=tuple(tuple(row) for row in counts.tolist()),
    )


@torch.inference_mode()
def predict_logits(classifier: Classifier | Ensemble, pixels: Tensor, precision: str = "float32") -> Tensor:
    """Float32 logits (N, classes) of (N, 28, 28) pixels, chunk by chunk."""
    chunk = CPU_CHUNK if pixels.device.type == "cpu" else GPU_CHUNK
    with autocast(pixels.device, precision):
        return torch.cat([classifier(part).float() for part in torch.split(pixels, chunk)])


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a recipe's forward pass runs."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def wilson(hits: int, images: int) -> Accuracy:
    """An accuracy with the 95 % score interval of Wilson (JASA 22, 1927)."""
    z = 1.959963984540054
    share = hits / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    reach = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return Accuracy(hits, images, max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)))
