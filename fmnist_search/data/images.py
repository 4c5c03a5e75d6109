"""Images with their labels, as tensors on a device."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_PIXEL_STD_FRACTION = 0.1
"""Smallest standard deviation of a pixel, as a share of that of all pixels. Pixels at the border are nearly always
black: divided by their own deviation, a rare grey one would become several hundred."""


@dataclass(frozen=True)
class LabelledImages:
    """Pixels (N, 28, 28) uint8 and labels (N,) int64, on one device."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> LabelledImages:
        """Return a copy on another device."""
        return LabelledImages(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Images:
    """The images of one training, with the mean and standard deviation (0..255) of its training images.

    `split_digest` identifies the validation images: two accuracies are comparable only if it is the same.
    """

    train: LabelledImages
    validation: LabelledImages
    mean: float
    std: float
    digest: str
    split_digest: str
    classes: tuple[str, ...]

    def normalization_stats(self, normalisation: str) -> tuple[float | Tensor, float | Tensor]:
        """Return the mean to subtract from pixels of 0..255, and the deviation to divide them by afterwards.

        `normalisation` is that of a recipe; "per-pixel" gives tensors (28, 28), the others give floats.
        """
        match normalisation:
            case "unit":
                return 0.0, 255.0
            case "centred":
                return 127.5, 255.0
            case "per-pixel":
                return self.per_pixel_stats
            case _:
                return self.mean, self.std

    @functools.cached_property
    def per_pixel_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each pixel over the training images, each (28, 28) float32 on the CPU.

        No deviation is below `MIN_PIXEL_STD_FRACTION` of that of all pixels.
        """
        values = self.train.pixels.cpu().double()
        deviation = values.std(0, correction=0).clamp(min=MIN_PIXEL_STD_FRACTION * self.std)
        return values.mean(0).float(), deviation.float()

    def to(self, device: torch.device | str) -> Images:
        """Return a copy on another device."""
        return dataclasses.replace(self, train=self.train.to(device), validation=self.validation.to(device))
