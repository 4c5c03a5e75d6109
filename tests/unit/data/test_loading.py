"""The images that are read from the files, and the training and validation images of a recipe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.data.loading import load_images, read_test_set
from fmnist_search.data.split import split
from fmnist_search.recipe.datasets import FASHION_MNIST
from fmnist_search.recipe.groups import Data

DEFAULT_SPLIT_DIGEST = "a5d87e4a195ff65558ca9144bdb7e538"


def test_the_training_set_has_sixty_thousand_images_six_thousand_per_class(training_images: LabelledImages) -> None:
    assert (training_images.pixels.shape, training_images.pixels.dtype) == ((60_000, 28, 28), torch.uint8)
    assert (training_images.labels.shape, training_images.labels.dtype) == ((60_000,), torch.int64)
    assert torch.bincount(training_images.labels).tolist() == [6_000] * 10


def test_the_training_set_has_the_published_mean_and_standard_deviation(training_images: LabelledImages) -> None:
    as_float = training_images.pixels.float() / 255
    assert as_float.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert as_float.std().item() == pytest.approx(0.3530, abs=1e-4)


def test_the_test_set_has_ten_thousand_images_a_thousand_per_class(source: DataSource) -> None:
    found = read_test_set("fashion-mnist", source)
    assert (found.pixels.shape, found.pixels.dtype) == ((10_000, 28, 28), torch.uint8)
    assert torch.bincount(found.labels).tolist() == [1_000] * 10


def nearest_centroid_accuracy(train: LabelledImages, test: LabelledImages) -> float:
    """Return the accuracy of a classifier that takes the nearest of the ten mean images."""
    means = torch.stack([train.pixels[train.labels == label].double().mean(0).flatten() for label in range(10)])
    guesses = torch.cdist(test.pixels.double().flatten(1), means).argmin(1)
    return (guesses == test.labels).double().mean().item()


def test_labels_belong_to_their_images(images: Images, source: DataSource) -> None:
    # If images and labels did not match, the accuracy would be 0.1.
    assert nearest_centroid_accuracy(images.train, images.validation) > 0.6
    assert nearest_centroid_accuracy(images.validation, images.train) > 0.6
    assert nearest_centroid_accuracy(images.train, read_test_set("fashion-mnist", source)) > 0.6


def test_the_default_split_never_changes(source: DataSource) -> None:
    # With another digest, earlier accuracies would no longer be comparable with new ones.
    assert load_images(Data(train_images=100), source).split_digest == DEFAULT_SPLIT_DIGEST


def test_the_split_digest_identifies_the_validation_images_only(source: DataSource) -> None:
    assert load_images(Data(train_images=200), source).split_digest == DEFAULT_SPLIT_DIGEST
    assert load_images(Data(train_images=100, seed=1), source).split_digest != DEFAULT_SPLIT_DIGEST
    assert load_images(Data(train_images=100, validation=10_849), source).split_digest != DEFAULT_SPLIT_DIGEST


def test_loaded_images_are_those_of_the_split(training_images: LabelledImages, source: DataSource) -> None:
    wanted = Data(train_images=500, validation=700, seed=3)
    found = load_images(wanted, source)
    for part, indices in zip(
        (found.train, found.validation), split(training_images.labels.numpy(), wanted), strict=True
    ):
        assert torch.equal(part.pixels, training_images.pixels[indices])
        assert torch.equal(part.labels, training_images.labels[indices])
    assert (found.digest, found.classes) == (FASHION_MNIST.digest, FASHION_MNIST.classes)


@given(st.integers(100, 300), st.integers(0, 1_000))
@settings(max_examples=4)
def test_mean_and_standard_deviation_are_those_of_the_training_images(
    source: DataSource, count: int, seed: int
) -> None:
    found = load_images(Data(train_images=count, seed=seed), source)
    pixels = found.train.pixels.numpy().astype(np.float64)
    assert found.mean == pytest.approx(pixels.mean())
    assert found.std == pytest.approx(pixels.std())


def test_no_validation_images_are_an_empty_tensor(source: DataSource) -> None:
    found = load_images(Data(train_images=100, validation=0), source)
    assert (len(found.train), len(found.validation)) == (100, 0)
