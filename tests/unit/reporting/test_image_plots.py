"""Pictures of images: the right images in the right rows, and the same ones for the same seed."""

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
from fmnist_search.reporting.image_plots import active_augmentations, augmentations_figure, samples_figure
from fmnist_search.training.augmentation import augment
from tests.support.figures import figure_texts, render_png

BORDERED_IMAGE_SIZE = 30
"""Of an image with the line around it."""


def image_rows(figure: Figure) -> dict[str, list[npt.NDArray[Any]]]:
    """The images of each row, without the lines around them, by the row's name."""
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
def labelled() -> LabelledImages:
    """Thirty images of three classes: each holds its own number."""
    numbers = torch.arange(30)
    return LabelledImages(numbers[:, None, None].expand(-1, 28, 28).to(torch.uint8), numbers % 3)


def test_samples_stand_in_the_rows_of_their_classes_and_none_comes_twice(labelled: LabelledImages) -> None:
    figure = samples_figure(labelled, ["a", "b", "c"], 10, 0, "title")
    numbers = {name: [int(cell.max()) for cell in cells] for name, cells in image_rows(figure).items()}
    assert {name: sorted(row) for name, row in numbers.items()} == {
        name: list(range(label, 30, 3)) for label, name in enumerate("abc")
    }
    render_png(figure)


def test_the_seed_chooses_the_samples(labelled: LabelledImages) -> None:
    first, again, other = (render_png(samples_figure(labelled, ["a", "b", "c"], 2, seed, "t")) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_more_samples_than_there_are_of_a_class_are_refused(labelled: LabelledImages) -> None:
    with pytest.raises(UserError, match="there are 10 of 'a'; take fewer"):
        samples_figure(labelled, ["a", "b", "c"], 11, 0, "title")


IMAGE = torch.arange(28 * 28).remainder(251).reshape(28, 28).to(torch.uint8)


def test_each_change_has_a_row_of_its_own_and_all_together_one() -> None:
    augmentation = Augmentation(shift=2, flip=1.0)
    rows = image_rows(augmentations_figure(IMAGE, augmentation, 7, 5, 3, "title"))
    assert list(rows) == ["the image", "shift = 2", "flip = 1", "all together"]
    assert np.array_equal(rows["the image"][0], IMAGE)
    assert all(np.array_equal(cell, IMAGE.flip(-1)) for cell in rows["flip = 1"])
    expected = augment(IMAGE.expand(5, -1, -1), augmentation, 7, torch.Generator().manual_seed(3))
    assert np.array_equal(rows["all together"], expected)


def test_a_single_change_is_not_drawn_twice() -> None:
    figure = augmentations_figure(IMAGE, Augmentation(erasing=1.0), 7, 2, 0, "title")
    assert list(image_rows(figure)) == ["the image", "erasing = 1"]
    assert "2 draws of each, with seed 0" in figure_texts(figure)


def test_a_recipe_that_changes_no_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"changes no image; set one of augmentation\.rotation, augmentation\.shift"):
        augmentations_figure(IMAGE, Augmentation(), 7, 2, 0, "title")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Augmentation)])
def test_every_change_of_a_single_image_is_known_by_its_field(field: str) -> None:
    (highest,) = (f.metadata["limits"]["high"] for f in dataclasses.fields(Augmentation) if f.name == field)
    augmentation = Augmentation(**{field: highest})
    mixes = field.startswith(("mixup", "cutmix"))
    assert list(active_augmentations(augmentation).values()) == ([] if mixes else [augmentation])
