"""Tests of `reporting.image_plots`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib.figure import Figure

from fmnist_search.data.images import LabelledImages
from fmnist_search.errors import UserError
from fmnist_search.recipe.groups import Augmentation
from fmnist_search.reporting.image_plots import (
    active_augmentations,
    augmentations_figure,
    images_of_all_classes,
    samples_figure,
)
from fmnist_search.training.augmentation import augment
from tests.support.figures import figure_texts, render_png

BORDERED_IMAGE_SIZE = 30
"""Size of an image with its frame."""


def image_rows(figure: Figure) -> dict[str, list[npt.NDArray[Any]]]:
    """Return the images of each row, without their frames, by the row's name."""
    found = {}
    for axes in figure.axes:
        (picture,), (name,) = axes.images, axes.texts
        strip = np.asarray(picture.get_array())
        cells = [
            strip[1:-1, at + 1 : at + BORDERED_IMAGE_SIZE - 1] for at in range(0, strip.shape[1], BORDERED_IMAGE_SIZE)
        ]
        found[name.get_text()] = cells
    return found


@pytest.fixture
def labelled_images() -> LabelledImages:
    """Return thirty images of three classes; the pixels of each are its index."""
    numbers = torch.arange(30)
    return LabelledImages(numbers[:, None, None].expand(-1, 28, 28).to(torch.uint8), numbers % 3)


def test_samples_are_in_the_rows_of_their_classes_without_repetition(labelled_images: LabelledImages) -> None:
    figure = samples_figure(labelled_images, ["a", "b", "c"], 10, 0, "title")
    numbers = {name: [int(cell.max()) for cell in cells] for name, cells in image_rows(figure).items()}
    assert {name: sorted(row) for name, row in numbers.items()} == {
        name: list(range(label, 30, 3)) for label, name in enumerate("abc")
    }
    render_png(figure)


def test_the_seed_determines_the_samples(labelled_images: LabelledImages) -> None:
    first, again, other = (
        render_png(samples_figure(labelled_images, ["a", "b", "c"], 2, seed, "t")) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_more_samples_than_a_class_has_are_an_error(labelled_images: LabelledImages) -> None:
    with pytest.raises(UserError, match="the class 'a' has 10; choose a smaller number"):
        samples_figure(labelled_images, ["a", "b", "c"], 11, 0, "title")


IMAGE = torch.arange(28 * 28).remainder(251).reshape(28, 28).to(torch.uint8)


def test_each_augmentation_has_a_row_and_so_has_their_combination() -> None:
    augmentation = Augmentation(shift=2, flip=1.0)
    rows = image_rows(augmentations_figure(IMAGE[None], augmentation, 7, 5, 3, "title"))
    assert list(rows) == ["original", "shift = 2", "flip = 1", "all together"]
    assert np.array_equal(rows["original"][0], IMAGE)
    assert all(np.array_equal(cell, IMAGE.flip(-1)) for cell in rows["flip = 1"])
    expected = augment(IMAGE.expand(5, -1, -1), augmentation, 7, torch.Generator().manual_seed(3))
    assert np.array_equal(rows["all together"], expected)


def test_several_images_are_shown_in_turn() -> None:
    labels = torch.tensor([1, 1, 0, 2])
    pixels = torch.stack([IMAGE, IMAGE + 1, IMAGE + 2, IMAGE + 3])
    originals = images_of_all_classes(LabelledImages(pixels, labels), 10, seed=0)
    assert [int(image[0, 0]) for image in originals] in ([2, 0, 3], [2, 1, 3])
    rows = image_rows(augmentations_figure(originals, Augmentation(flip=1.0), 7, 5, 3, "title"))
    assert np.array_equal(rows["original"][:3], originals)
    assert np.array_equal(rows["flip = 1"], originals[[0, 1, 2, 0, 1]].flip(-1))


def test_a_single_augmentation_has_no_row_of_the_combination() -> None:
    figure = augmentations_figure(IMAGE[None], Augmentation(erasing=1.0), 7, 2, 0, "title")
    assert list(image_rows(figure)) == ["original", "erasing = 1"]
    assert "2 random results of each, seed 0" in figure_texts(figure)


def test_a_recipe_without_augmentation_is_an_error() -> None:
    with pytest.raises(UserError, match=r"changes no image; set one of augmentation\.rotation, augmentation\.shift"):
        augmentations_figure(IMAGE[None], Augmentation(), 7, 2, 0, "title")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Augmentation)])
def test_every_field_is_an_augmentation_of_one_image_or_mixes_images(field: str) -> None:
    (highest,) = (f.metadata["limits"]["high"] for f in dataclasses.fields(Augmentation) if f.name == field)
    augmentation = Augmentation(**{field: highest})
    mixes = field.startswith(("mixup", "cutmix"))
    assert list(active_augmentations(augmentation).values()) == ([] if mixes else [augmentation])
