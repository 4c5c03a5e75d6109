"""Datasets of a user's own: four IDX files and a record in the user's cache, beside those of the other datasets.

Their digests are computed when they are stored, and verified each time they are read, as those of the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write, make_private_folder
from fmnist_search.recipe.datasets import (
    DATASETS,
    FILE_NAMES,
    MAX_CLASSES,
    TEST_SET_SIZE,
    TRAINING_SET_SIZE,
    Dataset,
)
from fmnist_search.workspace import image_cache_folder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RECORD_FILE = "dataset.json"
NAME_PATTERN = re.compile("[a-z0-9][a-z0-9_-]{0,40}")
OUTPUTS_BEFORE = 10
"""Outputs of every network in earlier versions, which named those without a class `unused N`."""
MIN_TRAINING_IMAGES = 200
IDX_IMAGES_MAGIC, IDX_LABELS_MAGIC = 0x0803, 0x0801
"""First four bytes of an IDX file: two zeros, the type (8: unsigned bytes), the number of dimensions."""


@dataclass(frozen=True)
class LabelledArrays:
    """Images as arrays: pixels (N, 28, 28) uint8 and labels (N,) of the classes, from 0."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def find_dataset(name: str) -> Dataset | None:
    """Return a dataset of the user's own; None if there is none of that name."""
    if not NAME_PATTERN.fullmatch(name):
        return None
    try:
        stored = json.loads((image_cache_folder() / name / RECORD_FILE).read_text(encoding="utf-8"))
        return Dataset(**{**stored, "classes": tuple(stored["classes"])})
    except (OSError, ImportError, ValueError, TypeError, KeyError):
        return None


def save_dataset(name: str, classes: Sequence[str], training: LabelledArrays, test: LabelledArrays) -> Dataset:
    """Store a dataset of the user's own in the cache, and return it.

    A dataset never changes, since studies refer to it by its name: the same images may be stored again, no others.

    Raises:
        UserError: if the name is not valid or taken, there are too few or too many images or classes, or a class has
            no training image.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise UserError(f"dataset {name!r}: is not a valid name; use small letters, digits, - and _, at most 41")
    _check(name, classes, training, test)
    contents = dict(zip(FILE_NAMES, [part for arrays in (training, test) for part in _idx_files(arrays)], strict=True))
    dataset = Dataset(
        name=name,
        title=name,
        subject="images",
        classes=tuple(classes),
        licence="the user's own images",
        download_url="",
        digests={file: hashlib.sha256(content).hexdigest() for file, content in contents.items()},
        training_images=len(training.labels),
        test_images=len(test.labels),
    )
    if name in DATASETS:
        dataset = _as_stored(dataset, DATASETS[name])
    folder = image_cache_folder() / name
    make_private_folder(folder)
    # The record is written last: without it, the other files do not count.
    contents[RECORD_FILE] = json.dumps(dataclasses.asdict(dataset), indent=1).encode()
    for file_name, content in contents.items():
        with atomic_write(folder / file_name) as file:
            file.write(content)
    return dataset


def _as_stored(dataset: Dataset, stored: Dataset) -> Dataset:
    """Return the dataset with the classes with which an earlier version may have stored it: always ten outputs.

    Raises:
        UserError: if it is stored with other images or classes.
    """
    padded = (*dataset.classes, *(f"unused {number}" for number in range(len(dataset.classes), OUTPUTS_BEFORE)))
    for classes in (dataset.classes, padded):
        if dataclasses.replace(dataset, classes=classes) == stored:
            return stored
    raise UserError(f"dataset {dataset.name!r}: is stored with other images or classes; take another name")


def _check(name: str, classes: Sequence[str], training: LabelledArrays, test: LabelledArrays) -> None:
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise UserError(f"dataset {name!r}: has {len(classes)} classes; give 2 to {MAX_CLASSES}")
    for what, arrays, least, most in (
        ("training", training, MIN_TRAINING_IMAGES, TRAINING_SET_SIZE),
        ("test", test, 1, TEST_SET_SIZE),
    ):
        if not least <= len(arrays.labels) <= most:
            raise UserError(
                f"dataset {name!r}: has {len(arrays.labels):,} {what} images; give {least:,} to {most:,} of them"
            )
    missing = [each for label, each in enumerate(classes) if not (training.labels == label).any()]
    if missing:
        raise UserError(f"dataset {name!r}: has no training image of {', '.join(missing)}; add some, or leave it out")


def _idx_files(arrays: LabelledArrays) -> tuple[bytes, bytes]:
    """Return the content of the IDX files of images and labels."""
    images = struct.pack(">4I", IDX_IMAGES_MAGIC, *arrays.pixels.shape) + arrays.pixels.tobytes()
    return images, struct.pack(">2I", IDX_LABELS_MAGIC, len(arrays.labels)) + arrays.labels.tobytes()
