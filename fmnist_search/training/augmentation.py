"""Batched augmentation on the device, with random parameters for each image.

torchvision's batched transforms draw one parameter for a batch; these draw one for each image. Shapes are static and
no control flow depends on random values, so that a step with augmentation can be captured in a CUDA graph.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fmnist_search.recipe.groups import Augmentation

# Random erasing after Zhong et al. (arXiv 1708.04896), with the defaults of torchvision.transforms.RandomErasing.
ERASING_AREA_RANGE = (0.02, 0.33)
ERASING_RATIO_RANGE = (0.3, 3.3)


def augment(pixels: Tensor, augmentation: Augmentation, fill_value: int, generator: torch.Generator) -> Tensor:
    """Return augmented copies of pixels (N, H, W) uint8.

    Args:
        pixels: The images; they are not changed.
        augmentation: Which changes to make, and how strong; without any, nothing is drawn from `generator`.
        fill_value: The value of erased pixels, 0..255.
        generator: The only source of random numbers, on the device of the pixels.
    """
    count, height, width = pixels.shape
    if augmentation.rotation:
        pixels = rotate(pixels, augmentation.rotation * (2 * _uniform(count, generator) - 1))
    if augmentation.shift:
        down, right = _random_offsets(count, augmentation.shift, generator)
        pixels = shift(pixels, down, right)
    if augmentation.flip:
        pixels = flip(pixels, _random_bools(count, augmentation.flip, generator))
    if augmentation.erasing:
        erased = _random_bools(count, augmentation.erasing, generator)
        top, left, rows, columns = _random_rectangles(count, height, width, generator)
        pixels = erase(pixels, top, left, rows * erased, columns * erased, fill_value)
    return pixels


def mix(pixels: Tensor, augmentation: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix each image of pixels (N, H, W) with the image before it in the batch, the first with the last (`roll` by 1).

    A random partner would add nothing, because batches are in random order. Mixup (Zhang et al., arXiv 1710.09412)
    blends the two images, CutMix (Yun et al., arXiv 1905.04899) copies a patch of one into the other; with both in the
    recipe, each image draws one of them with equal probability.

    Returns:
        The mixed images (N, H, W) float32, and the fraction (N,) float32 of each image that is its own, by which its
        label is to be mixed as well.
    """
    if not augmentation.cutmix:
        own_weights = _mixup_weights(pixels, augmentation.mixup, generator)
    elif not augmentation.mixup:
        own_weights = _cutmix_weights(pixels, augmentation.cutmix, generator)
    else:
        uses_mixup = _random_bools(len(pixels), 0.5, generator)[:, None, None]
        mixup_weights = _mixup_weights(pixels, augmentation.mixup, generator)
        own_weights = torch.where(uses_mixup, mixup_weights, _cutmix_weights(pixels, augmentation.cutmix, generator))
    own = pixels.float()
    return torch.lerp(own.roll(1, 0), own, own_weights), own_weights.mean((1, 2))


def rotate(pixels: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image (N, H, W) uint8 counter-clockwise about its centre by `degrees` (N,).

    Interpolation is bilinear; pixels from outside the image are 0.
    """
    _, height, width = pixels.shape
    angle = torch.deg2rad(degrees)[:, None, None]
    y = torch.arange(height, device=pixels.device) - (height - 1) / 2
    x = torch.arange(width, device=pixels.device) - (width - 1) / 2
    source_x = torch.cos(angle) * x - torch.sin(angle) * y[:, None]
    source_y = torch.sin(angle) * x + torch.cos(angle) * y[:, None]
    # In grid_sample's coordinates -1 and 1 are the borders of the image.
    grid = torch.stack([source_x * (2 / width), source_y * (2 / height)], dim=-1)
    rotated = functional.grid_sample(pixels[:, None].float(), grid, align_corners=False).squeeze(1)
    return rotated.round().to(pixels.dtype)


def shift(pixels: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move each image (N, H, W) by whole pixels, `down` and `right` (N,) int64; pixels from outside are 0."""
    count, height, width = pixels.shape
    device = pixels.device
    rows = torch.arange(height, device=device) - down[:, None]
    columns = torch.arange(width, device=device) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    moved = pixels.reshape(count, -1).gather(1, source.reshape(count, -1)).reshape_as(pixels)
    return moved * inside


def flip(pixels: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images (N, H, W) for which `flipped` (N,) bool is true left to right."""
    return torch.where(flipped[:, None, None], pixels.flip(-1), pixels)


def erase(pixels: Tensor, top: Tensor, left: Tensor, rows: Tensor, columns: Tensor, fill_value: int) -> Tensor:
    """Set one rectangle of each image (N, H, W) to `fill_value`; its position and size are (N,) int64 each.

    A rectangle without rows or columns erases nothing.
    """
    return pixels.masked_fill(_rectangle_masks(top, left, rows, columns, *pixels.shape[1:]), fill_value)


def symmetric_beta(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw `count` values (count,) float32 from Beta(alpha, alpha), in 0..1 and finite for every alpha above 0.

    The values come from Student's t with 2 alpha degrees of freedom, which needs two uniform numbers and no rejection
    (Bailey, Mathematics of Computation 62, 1994): t / sqrt(2 alpha + t^2) has the symmetric Beta distribution on -1..1
    (Devroye, Random Variate Generation in One Line of Code, 1996).
    """
    log_radius = torch.log(_uniform(count, generator).clamp(min=2.0**-25)) / alpha
    cosine = torch.cos(2 * math.pi * _uniform(count, generator))
    complement = -torch.expm1(log_radius)
    return (1 + torch.sqrt(complement) * cosine / torch.sqrt(torch.exp(log_radius) + complement * cosine**2)) / 2


def _rectangle_masks(top: Tensor, left: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Return a mask (N, height, width) of the pixels inside the rectangles."""
    y = torch.arange(height, device=top.device)
    x = torch.arange(width, device=top.device)
    in_rows = (y >= top[:, None]) & (y < (top + rows)[:, None])
    in_columns = (x >= left[:, None]) & (x < (left + columns)[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _random_bools(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return _uniform(count, generator) < probability


def _random_offsets(count: int, limit: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    offsets = torch.randint(-limit, limit + 1, (2, count), generator=generator, device=generator.device)
    return offsets[0], offsets[1]


def _random_rectangles(count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return top, left, rows and columns, (N,) int64 each: the area is uniform, the aspect ratio log-uniform.

    torchvision draws again until a rectangle fits. A loop on random values cannot be captured, so a side that is too
    long is shortened here.
    """
    low, high = ERASING_AREA_RANGE
    area = (low + (high - low) * _uniform(count, generator)) * height * width
    narrow, wide = map(math.log, ERASING_RATIO_RANGE)
    ratio = torch.exp(narrow + (wide - narrow) * _uniform(count, generator))
    rows = torch.sqrt(area * ratio).round().long().clamp(1, height - 1)
    columns = torch.sqrt(area / ratio).round().long().clamp(1, width - 1)
    top = (_uniform(count, generator) * (height - rows + 1)).long()
    left = (_uniform(count, generator) * (width - columns + 1)).long()
    return top, left, rows, columns


def _mixup_weights(pixels: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Return the weight (N, 1, 1) of each image's own pixels."""
    return symmetric_beta(len(pixels), alpha, generator)[:, None, None]


def _cutmix_weights(pixels: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Return the weight (N, H, W) of each image's own pixels: 0 inside the patch, 1 outside.

    A patch has the aspect ratio of the image and an area from Beta(alpha, alpha). Its centre is uniform, and it is
    clipped to the image, as in the authors' code.
    """
    count, height, width = pixels.shape
    side = torch.sqrt(symmetric_beta(count, alpha, generator))
    rows, columns = (side * height).long(), (side * width).long()
    top = (_uniform(count, generator) * height).long() - rows // 2
    left = (_uniform(count, generator) * width).long() - columns // 2
    return (~_rectangle_masks(top, left, rows, columns, height, width)).float()
