"""Read the images of a dataset, split them, and copy them to the device as one tensor each.

There is no DataLoader and no object per image: 70,000 images are 55 MB of uint8, which fit on every device. Searches
and trainings use `load_images`. Test images are read only by `read_test_set`; a test checks which modules call it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

from fmnist_search.data.files import (
    IMAGE_HEADER_BYTES,
    LABEL_HEADER_BYTES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    DataSource,
    read_verified_file,
)
from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.data.split import split
from fmnist_search.recipe.datasets import IMAGE_SIZE, get_dataset
from fmnist_search.recipe.groups import Data


def load_images(data: Data, source: DataSource, device: torch.device | str = "cpu") -> Images:
    """Return the training and validation images of a recipe on the device.

    Raises:
        UserError: if no intact copy of the files is found.
    """
    dataset = get_dataset(data.dataset)
    pixels, labels = _read_arrays(data.dataset, TRAIN_IMAGES, TRAIN_LABELS, source)
    training, validation = split(labels, data)
    train, held_back = (
        LabelledImages(torch.from_numpy(pixels[chosen]), torch.from_numpy(labels[chosen]))
        for chosen in (training.numpy(), validation.numpy())
    )
    as_float = train.pixels.double()
    return Images(
        train=train.to(device),
        validation=held_back.to(device),
        mean=as_float.mean().item(),
        std=as_float.std(correction=0).item(),
        digest=dataset.digest,
        split_digest=hashlib.sha256(validation.numpy().astype("<i8").tobytes()).hexdigest()[:32],
        classes=dataset.classes,
    )


def read_training_set(dataset: str, source: DataSource) -> LabelledImages:
    """Return the 60,000 images for training and validation.

    Raises:
        UserError: if no intact copy of the files is found.
    """
    return _read_labelled_images(dataset, TRAIN_IMAGES, TRAIN_LABELS, source)


def read_test_set(dataset: str, source: DataSource) -> LabelledImages:
    """Return the 10,000 test images: for finalists, `evaluate`, `predict`, plots and benchmarks, never for a search.

    Raises:
        UserError: if no intact copy of the files is found.
    """
    return _read_labelled_images(dataset, TEST_IMAGES, TEST_LABELS, source)


def _read_labelled_images(dataset: str, images: str, labels: str, source: DataSource) -> LabelledImages:
    pixels, targets = _read_arrays(dataset, images, labels, source)
    return LabelledImages(torch.from_numpy(pixels.copy()), torch.from_numpy(targets))


def _read_arrays(
    dataset: str, images: str, labels: str, source: DataSource
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the pixels of all images, which cannot be written, and their labels."""
    known = get_dataset(dataset)
    pixels = np.frombuffer(read_verified_file(known, images, source), np.uint8, offset=IMAGE_HEADER_BYTES)
    targets = np.frombuffer(read_verified_file(known, labels, source), np.uint8, offset=LABEL_HEADER_BYTES)
    return pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE), targets.astype(np.int64)
