"""Plots of images: samples of each class, and images with the augmentations of a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from fmnist_search.data.images import LabelledImages
from fmnist_search.errors import UserError
from fmnist_search.recipe.formatting import format_value_short
from fmnist_search.recipe.groups import Augmentation
from fmnist_search.reporting.colors import TEXT_COLOR
from fmnist_search.reporting.style import manual_layout, titled_figure
from fmnist_search.training.augmentation import augment

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

IMAGE_INCHES, ROW_NAME_INCHES = 0.8, 1.5
"""Width and height of an image, and width of the names of the rows, in inches."""
FRAME_GREY = 40
"""Grey level of the frame of an image, which shows where a shifted image is cut off."""
MIXING_PREFIXES = ("mixup", "cutmix")
"""Augmentations that blend two images of a batch and their labels; they cannot be shown on one image."""


def samples_figure(images: LabelledImages, classes: Sequence[str], count: int, seed: int, title: str) -> Figure:
    """Return a figure of `count` random images of each class, a row for each class.

    Raises:
        UserError: if a class has fewer images.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for label, name in enumerate(classes):
        indices = (images.labels == label).nonzero().flatten().numpy()
        if len(indices) < count:
            raise UserError(
                f"{count} images of each class: the class {name!r} has {len(indices)}; choose a smaller number"
            )
        rows.append((name, images.pixels[generator.permutation(indices)[:count]]))
    return _image_rows_figure(rows, title, f"{count} random images of each class, seed {seed}")


def augmentations_figure(
    originals: Tensor, augmentation: Augmentation, fill: int, count: int, seed: int, title: str
) -> Figure:
    """Return a figure of images (N, 28, 28) uint8, augmented: each augmentation alone, then all together.

    Each row shows `count` random results, of the images in turn. `fill` is the pixel value of erased rectangles, the
    mean of the training pixels.

    Raises:
        UserError: if the recipe has no augmentation of single images.
    """
    changes = active_augmentations(augmentation)
    if not changes:
        names = ", ".join(f"augmentation.{field.name}" for field in _single_image_fields())
        raise UserError(
            f"augmentation: this recipe changes no image; set one of {names}, for example --set augmentation.shift=2"
        )
    combined = {"all together": augmentation} if len(changes) > 1 else {}
    copies = originals[torch.arange(count) % len(originals)]
    rows = [("original", originals[:count])]
    for name, change in {**changes, **combined}.items():
        generator = torch.Generator(originals.device).manual_seed(seed)
        rows.append((name, augment(copies, change, fill, generator)))
    return _image_rows_figure(rows, title, f"{count} random results of each, seed {seed}")


def images_of_all_classes(images: LabelledImages, classes: int, seed: int) -> Tensor:
    """Return a random image (28, 28) of each class that has one, stacked, in the order of the classes."""
    generator = np.random.default_rng(seed)
    indices = [(images.labels == label).nonzero().flatten().numpy() for label in range(classes)]
    return images.pixels[[int(generator.choice(found)) for found in indices if len(found)]]


def active_augmentations(augmentation: Augmentation) -> dict[str, Augmentation]:
    """Return the active augmentations of single images, each alone, by name and value such as "shift = 2"."""
    default = Augmentation()
    values = {field.name: getattr(augmentation, field.name) for field in _single_image_fields()}
    return {
        f"{name} = {format_value_short(value)}": dataclasses.replace(default, **{name: value})
        for name, value in values.items()
        if value != getattr(default, name)
    }


def _single_image_fields() -> list[dataclasses.Field[object]]:
    return [field for field in dataclasses.fields(Augmentation) if not field.name.startswith(MIXING_PREFIXES)]


def _image_rows_figure(rows: Sequence[tuple[str, Tensor]], title: str, note: str) -> Figure:
    """Return a figure with rows of images and their names at the left. Drawing a row as one array is fastest."""
    columns = max(len(images) for _, images in rows)
    figure = titled_figure(title, note, ROW_NAME_INCHES + IMAGE_INCHES * columns, IMAGE_INCHES * len(rows))
    width, top = figure.get_figwidth(), manual_layout(figure)
    grid = {"left": ROW_NAME_INCHES / width, "right": 1 - 0.08 / width, "bottom": 0.02, "top": top, "hspace": 0.06}
    panels = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw=grid)[:, 0]
    for panel, (name, images) in zip(panels, rows, strict=True):
        framed = functional.pad(images.cpu(), (1, 1, 1, 1), value=FRAME_GREY)
        count, height, side = framed.shape
        strip = torch.zeros(height, columns * side, dtype=framed.dtype)
        strip[:, : count * side] = torch.cat([*framed], dim=1)
        panel.imshow(strip.numpy(), cmap="gray_r", vmin=0, vmax=255)
        panel.text(-0.1 * side, height / 2, name, ha="right", va="center", fontsize=9, color=TEXT_COLOR)
        panel.set_axis_off()
    return figure
