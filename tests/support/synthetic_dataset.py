"""Synthetic datasets in the format of MNIST: the class of an image is the position of a bright square."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fmnist_search.recipe.datasets import FILE_NAMES, IMAGE_SIZE, Dataset

CLASS_NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")
SQUARE_SIZE = 6


def make_dataset_files(
    train_count: int = 3_000, test_count: int = 300, seed: int = 0, classes: int = len(CLASS_NAMES)
) -> dict[str, bytes]:
    """Return the content of the four files, uncompressed, by name; the classes, at most 12, have equal shares."""
    generator = np.random.default_rng(seed)
    contents: list[bytes] = []
    for count in (train_count, test_count):
        labels = generator.permutation(np.arange(count, dtype=np.uint8) % classes)
        pixels = generator.integers(0, 60, (count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[row * 9 : row * 9 + SQUARE_SIZE, column * 7 : column * 7 + SQUARE_SIZE] = 255
        contents.append(struct.pack(">4I", 0x0803, *pixels.shape) + pixels.tobytes())
        contents.append(struct.pack(">2I", 0x0801, count) + labels.tobytes())
    return dict(zip(FILE_NAMES, contents, strict=True))


def gzip_files(files: Mapping[str, bytes], level: int = 9) -> dict[str, bytes]:
    """Return the files compressed with gzip, as they would be published, at this compression level."""
    return {f"{name}.gz": gzip.compress(content, level, mtime=0) for name, content in files.items()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files into a folder, which is created, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def make_dataset(files: Mapping[str, bytes], name: str = "made") -> Dataset:
    """Return the entry of the table of datasets for these files, compressed or not."""
    is_packed = all(file.endswith(".gz") for file in files)
    return Dataset(
        name=name,
        title=name.title(),
        subject="animals",
        classes=CLASS_NAMES,
        licence="none",
        torchvision_class="KMNIST",
        download_url=f"https://example.org/{name}/",
        digests={file.removesuffix(".gz"): hashlib.sha256(content).hexdigest() for file, content in files.items()},
        compressed=is_packed,
    )
