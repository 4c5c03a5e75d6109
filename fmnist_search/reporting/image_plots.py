"""Pictures of the images themselves: samples of each class, and what a recipe's augmentation makes of one."""

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
"""Inches of an image, and of the name of a row."""
FRAME_GREY = 40
"""Grey of the line around an image: what was moved out of it is seen to be cut off."""
MIXING_PREFIXES = ("mixup", "cutmix")
"""What blends the images of a batch, with their labels, and changes no image by itself."""


def samples_figure(images: LabelledImages, classes: Sequence[str], count: int, seed: int, title: str) -> Figure:
    """So many images of each class, a row for each; the same for the same seed.

    Raises:
        UserError: there are not so many of a class.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for label, name in enumerate(classes):
        own = (images.labels == label).nonzero().flatten().numpy()
        if len(own) < count:
            raise UserError(f"{count} images of each class: there are {len(own)} of {name!r}; take fewer")
        rows.append((name, images.pixels[generator.permutation(own)[:count]]))
    return _image_rows_figure(rows, title, f"{count} of each class, drawn with seed {seed}")


def augmentations_figure(
    image: Tensor, augmentation: Augmentation, fill: int, count: int, seed: int, title: str
) -> Figure:
    """What an augmentation makes of an image (28, 28) uint8: each change by itself, then all together.

    `fill` is what erased rectangles get, the mean of the training pixels. Every row has so many draws, the same for
    the same seed.

    Raises:
        UserError: the augmentation changes no image.
    """
    changes = active_augmentations(augmentation)
    if not changes:
        names = ", ".join(f"augmentation.{field.name}" for field in _single_image_fields())
        raise UserError(
            f"augmentation: this recipe changes no image; set one of {names}, such as --set augmentation.shift=2"
        )
    together = {"all together": augmentation} if len(changes) > 1 else {}
    copies = image.expand(count, -1, -1)
    rows = [("the image", image[None])]
    for name, change in {**changes, **together}.items():
        generator = torch.Generator(image.device).manual_seed(seed)
        rows.append((name, augment(copies, change, fill, generator)))
    return _image_rows_figure(rows, title, f"{count} draws of each, with seed {seed}")


def active_augmentations(augmentation: Augmentation) -> dict[str, Augmentation]:
    """The changes of single images that are switched on, each alone, by what is set."""
    usual = Augmentation()
    values = {field.name: getattr(augmentation, field.name) for field in _single_image_fields()}
    return {
        f"{name} = {format_value_short(value)}": dataclasses.replace(usual, **{name: value})
        for name, value in values.items()
        if value != getattr(usual, name)
    }


def _single_image_fields() -> list[dataclasses.Field[object]]:
    return [field for field in dataclasses.fields(Augmentation) if not field.name.startswith(MIXING_PREFIXES)]


def _image_rows_figure(rows: Sequence[tuple[str, Tensor]], title: str, note: str) -> Figure:
    """Rows of images, each with its name at the left: one picture of pixels a row, which draws much the fastest."""
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
