"""Images of whatever form become the model's, or are refused with theirs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from fmnist_search.errors import UserError
from fmnist_search.registry.packaging import as_model_input

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)


@pytest.mark.parametrize(
    ("given_as", "count"),
    [
        (PIXELS, 3),
        (PIXELS[:, None], 3),
        (PIXELS[0], 1),
        (PIXELS[:1], 1),
        (PIXELS[:1, None], 1),
        (PIXELS.astype(np.float64), 3),
        (PIXELS.astype(np.float32), 3),
        (PIXELS.astype(np.int64), 3),
        (PIXELS.tolist(), 3),
        (torch.from_numpy(PIXELS), 3),
        (torch.from_numpy(PIXELS).float().unsqueeze(1), 3),
        (PIXELS[:, ::-1][:, ::-1], 3),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')} {np.shape(value)}",
)
def test_images_of_any_form_become_the_models(given_as: Any, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = as_model_input(given_as)
    assert images.dtype == np.float32
    assert images.shape == (count, 28, 28)
    assert np.array_equal(images, PIXELS[:count])


def test_images_are_not_changed_where_they_stand() -> None:
    mine = PIXELS.astype(np.float32)
    as_model_input(mine)[:] = 0
    assert np.array_equal(mine, PIXELS)


@pytest.mark.parametrize(
    "shape", [(28,), (784,), (3, 784), (3, 3, 28, 28), (28, 28, 1), (3, 32, 32), (0, 28, 28), (1, 1, 1, 28, 28), ()]
)
def test_images_of_another_shape_are_refused_with_theirs(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        as_model_input(np.zeros(shape, np.uint8))
    (line,) = caught.value.lines
    assert f"shape {shape} is not (N, 28, 28)" in line
    assert "resize" in line


def test_images_that_were_divided_by_255_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"all pixels lie within 0\.\.1.*multiply by 255"):
        images = as_model_input(PIXELS / 255)
    # Warned of, and taken as they are.
    assert images.max() == 1.0


def test_dark_pixels_that_are_whole_numbers_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_model_input(np.zeros((28, 28), np.uint8))
        as_model_input(np.ones((28, 28), np.int64))
