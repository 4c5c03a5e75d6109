"""Augmentation on the device, batched, each image with random parameters of its own.

torchvision's batched transforms draw one parameter for a whole batch; these draw one an image. Shapes are
static and nothing depends on the values drawn, so that a step that augments can be captured in a graph.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmnist_search.recipe import Augmentation

# Random erasing after Zhong et al. (arXiv 1708.04896), with the defaults of torchvision.transforms.RandomErasing.
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


def augment(pixels: Tensor, augmentation: Augmentation, fill: int, generator: torch.Generator) -> Tensor:
    """Changed copies of (N, H, W) uint8 pixels; erased rectangles get `fill`, the mean of the training pixels."""
    count, height, width = pixels.shape
    if augmentation.shift:
        down, right = _offsets(count, augmentation.shift, generator)
        pixels = shift(pixels, down, right)
    if augmentation.flip:
        pixels = flip(pixels, _coins(count, augmentation.flip, generator))
    if augmentation.erasing:
        erased = _coins(count, augmentation.erasing, generator)
        top, left, rows, columns = _rectangles(count, height, width, generator)
        pixels = erase(pixels, top, left, rows * erased, columns * erased, fill)
    return pixels


def shift(pixels: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image moved by whole pixels (N,) each, negative ones up and left; what is uncovered is 0."""
    count, height, width = pixels.shape
    device = pixels.device
    rows = torch.arange(height, device=device) - down[:, None]
    columns = torch.arange(width, device=device) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    moved = pixels.reshape(count, -1).gather(1, source.reshape(count, -1)).reshape_as(pixels)
    return moved * inside


def flip(pixels: Tensor, flipped: Tensor) -> Tensor:
    """The images for which `flipped` (N,) bool is true, mirrored left to right."""
    return torch.where(flipped[:, None, None], pixels.flip(-1), pixels)


def erase(pixels: Tensor, top: Tensor, left: Tensor, rows: Tensor, columns: Tensor, fill: int) -> Tensor:
    """Each image with one rectangle, given by (N,) int64 each, set to `fill`; no rows erase nothing."""
    _, height, width = pixels.shape
    y = torch.arange(height, device=pixels.device)
    x = torch.arange(width, device=pixels.device)
    in_rows = (y >= top[:, None]) & (y < (top + rows)[:, None])
    in_columns = (x >= left[:, None]) & (x < (left + columns)[:, None])
    return pixels.masked_fill(in_rows[:, :, None] & in_columns[:, None, :], fill)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _coins(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return _uniform(count, generator) < probability


def _offsets(count: int, largest: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    both = torch.randint(-largest, largest + 1, (2, count), generator=generator, device=generator.device)
    return both[0], both[1]


def _rectangles(count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Top, left, rows, columns: area uniform, ratio log-uniform, cut where they would leave the image.

    torchvision draws again until a rectangle fits; that depends on values, so ours are shortened instead.
    """
    low, high = ERASED_AREA
    area = (low + (high - low) * _uniform(count, generator)) * height * width
    narrow, wide = map(math.log, ERASED_RATIO)
    ratio = torch.exp(narrow + (wide - narrow) * _uniform(count, generator))
    rows = torch.sqrt(area * ratio).round().long().clamp(1, height - 1)
    columns = torch.sqrt(area / ratio).round().long().clamp(1, width - 1)
    top = (_uniform(count, generator) * (height - rows + 1)).long()
    left = (_uniform(count, generator) * (width - columns + 1)).long()
    return top, left, rows, columns
