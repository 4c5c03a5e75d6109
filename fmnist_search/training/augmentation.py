"""Augmentation on the device, batched, each image with random parameters of its own.

torchvision's batched transforms draw one parameter for a whole batch; these draw one an image. Shapes are
static and nothing depends on the values drawn, so that a step that augments can be captured in a graph.
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
    """Changed copies of (N, H, W) uint8 pixels; erased rectangles get `fill_value`, the mean of the training pixels."""
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
    """Images (N, H, W) mixed with their neighbours in the batch, and the share (N,) of each that is still its own.

    The neighbour is the image before, for the first the last one (`roll` by one): batches are in random order already.
    Mixup (Zhang et al., arXiv 1710.09412) blends the two, CutMix (Yun et al., arXiv 1905.04899) puts a patch of the one
    into the other; where a recipe has both, a fair coin an image decides. Labels are to be mixed by the same shares.
    """
    if not augmentation.cutmix:
        kept = _mixup_weights(pixels, augmentation.mixup, generator)
    elif not augmentation.mixup:
        kept = _cutmix_weights(pixels, augmentation.cutmix, generator)
    else:
        blended = _random_bools(len(pixels), 0.5, generator)[:, None, None]
        blends = _mixup_weights(pixels, augmentation.mixup, generator)
        kept = torch.where(blended, blends, _cutmix_weights(pixels, augmentation.cutmix, generator))
    own = pixels.float()
    return torch.lerp(own.roll(1, 0), own, kept), kept.mean((1, 2))


def rotate(pixels: Tensor, degrees: Tensor) -> Tensor:
    """Each uint8 image turned counter-clockwise about its centre by an angle (N,); bilinear, what is uncovered is 0."""
    _, height, width = pixels.shape
    angle = torch.deg2rad(degrees)[:, None, None]
    y = torch.arange(height, device=pixels.device) - (height - 1) / 2
    x = torch.arange(width, device=pixels.device) - (width - 1) / 2
    across = torch.cos(angle) * x - torch.sin(angle) * y[:, None]
    down = torch.sin(angle) * x + torch.cos(angle) * y[:, None]
    places = torch.stack([across * (2 / width), down * (2 / height)], dim=-1)  # -1 and 1 are the image's edges
    turned = functional.grid_sample(pixels[:, None].float(), places, align_corners=False).squeeze(1)
    return turned.round().to(pixels.dtype)


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
    """The images for which `flip_bit` (N,) bool is true, mirrored left to right."""
    return torch.where(flipped[:, None, None], pixels.flip(-1), pixels)


def erase(pixels: Tensor, top: Tensor, left: Tensor, rows: Tensor, columns: Tensor, fill_value: int) -> Tensor:
    """Each image with one rectangle, given by (N,) int64 each, set to `fill_value`; no rows erase nothing."""
    return pixels.masked_fill(_rectangle_masks(top, left, rows, columns, *pixels.shape[1:]), fill_value)


def symmetric_beta(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """So many draws (N,) from Beta(alpha, alpha), in 0..1 and finite for every alpha above 0.

    From Student's t with 2 alpha degrees of freedom, which takes two uniform numbers and no rejection (Bailey,
    Mathematics of Computation 62, 1994): t / sqrt(2 alpha + t^2) is the symmetric Beta on -1..1 (Devroye, Random
    Variate Generation in One Line of Code, 1996).
    """
    log_radius = torch.log(_uniform(count, generator).clamp(min=2.0**-25)) / alpha
    cosine = torch.cos(2 * math.pi * _uniform(count, generator))
    reach = -torch.expm1(log_radius)
    return (1 + torch.sqrt(reach) * cosine / torch.sqrt(torch.exp(log_radius) + reach * cosine**2)) / 2


def _rectangle_masks(top: Tensor, left: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Which pixels (N, height, width) lie in the rectangles."""
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
    both = torch.randint(-limit, limit + 1, (2, count), generator=generator, device=generator.device)
    return both[0], both[1]


def _random_rectangles(count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Top, left, rows, columns: area uniform, ratio log-uniform, cut where they would leave the image.

    torchvision draws again until a rectangle fits; that depends on values, so ours are shortened instead.
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
    """How much of each image mixup keeps, (N, 1, 1)."""
    return symmetric_beta(len(pixels), alpha, generator)[:, None, None]


def _cutmix_weights(pixels: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """1 where CutMix keeps an image's own pixels and 0 in its patch, (N, H, W).

    Patches have the image's ratio and an area from Beta(alpha, alpha), and are centred anywhere; one that would leave
    the image is cut at its edge, as the authors do.
    """
    count, height, width = pixels.shape
    side = torch.sqrt(symmetric_beta(count, alpha, generator))
    rows, columns = (side * height).long(), (side * width).long()
    top = (_uniform(count, generator) * height).long() - rows // 2
    left = (_uniform(count, generator) * width).long() - columns // 2
    return (~_rectangle_masks(top, left, rows, columns, height, width)).float()
