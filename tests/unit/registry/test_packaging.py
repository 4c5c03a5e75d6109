"""Images of any supported form become the input of a model; others are refused with their shape."""

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
def test_images_of_any_supported_form_become_the_input_of_a_model(given_as: Any, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = as_model_input(given_as)
    assert images.dtype == np.float32
    assert images.shape == (count, 28, 28)
    assert np.array_equal(images, PIXELS[:count])


def test_images_are_not_changed_in_place() -> None:
    images = PIXELS.astype(np.float32)
    as_model_input(images)[:] = 0
    assert np.array_equal(images, PIXELS)


@pytest.mark.parametrize(
    "shape", [(28,), (784,), (3, 784), (3, 3, 28, 28), (28, 28, 1), (3, 32, 32), (0, 28, 28), (1, 1, 1, 28, 28), ()]
)
def test_images_of_another_shape_are_refused_with_their_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        as_model_input(np.zeros(shape, np.uint8))
    (line,) = caught.value.lines
    assert f"shape {shape} is not (N, 28, 28)" in line
    assert "resize" in line


def test_images_that_were_divided_by_255_give_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"all pixels lie within 0\.\.1.*multiply by 255"):
        images = as_model_input(PIXELS / 255)
    # They are used as they are.
    assert images.max() == 1.0


def test_dark_integer_pixels_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_model_input(np.zeros((28, 28), np.uint8))
        as_model_input(np.ones((28, 28), np.int64))
