"""Folders of a user's own images: read as training and test images with their classes."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fmnist_search.cli.image_files import read_image_files
from fmnist_search.data.own_datasets import IDX_IMAGES_MAGIC, IDX_LABELS_MAGIC, LabelledArrays
from fmnist_search.data.split import stratified_sample
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import FILE_NAMES, IMAGE_SIZE

TEST_SHARE = 7
"""One of so many images is a test image if the folder does not say which are."""
CLASSES_FILE = "classes.txt"

OnMessage = Callable[[str], None]


@dataclass(frozen=True)
class OwnImages:
    """Training and test images, and the names of their classes by label."""

    classes: tuple[str, ...]
    training: LabelledArrays
    test: LabelledArrays

    @property
    def repeated(self) -> int:
        """The number of test images that equal a training image."""
        training = {image.tobytes() for image in self.training.pixels}
        return sum(image.tobytes() in training for image in self.test.pixels)


def read_own_images(folder: Path, *, resize: bool, invert: bool, on_message: OnMessage) -> OwnImages:
    """Return the images of a folder.

    It has the four IDX files, or a folder of image files for each class, or two such folders, `train` and `test`. With
    class folders alone, a stratified seventh of the images are the test images.

    Raises:
        UserError: if it is no such folder, or a file cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--from {folder}: is no folder; name one with IDX files or with a folder for each class")
    if any(_idx_path(folder, name) for name in FILE_NAMES):
        return _read_idx_folder(folder)

    def read(parent: Path, classes: tuple[str, ...]) -> LabelledArrays:
        return _read_classes(parent, classes, resize=resize, invert=invert, on_message=on_message)

    if (folder / "train").is_dir() and (folder / "test").is_dir():
        classes = _class_names(folder / "train")
        if others := set(_class_names(folder / "test")) - {*classes}:
            raise UserError(f"{folder / 'test'}: has classes that train has not: {', '.join(sorted(others))}")
        return OwnImages(classes, read(folder / "train", classes), read(folder / "test", classes))
    classes = _class_names(folder)
    every = read(folder, classes)
    indices = np.arange(len(every.labels))
    labels, count = every.labels.astype(np.int64), len(indices) // TEST_SHARE
    test = stratified_sample(labels, indices, count, np.random.default_rng(0))
    training = np.setdiff1d(indices, test)
    return OwnImages(
        classes,
        LabelledArrays(every.pixels[training], every.labels[training]),
        LabelledArrays(every.pixels[test], every.labels[test]),
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{folder}: has neither IDX files nor folders of image files, one for each class")
    return tuple(names)


def _read_classes(
    folder: Path, classes: tuple[str, ...], *, resize: bool, invert: bool, on_message: OnMessage
) -> LabelledArrays:
    pixels, labels = list[npt.NDArray[np.uint8]](), list[int]()
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            found = read_image_files([folder / name], resize=resize, invert=invert, on_message=on_message)
            pixels += [image.pixels for image in found]
            labels += [label] * (len(pixels) - len(labels))
    return LabelledArrays(np.stack(pixels), np.array(labels, np.uint8))


# ------------------------------------------------------------------------------------- IDX files


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx_folder(folder: Path) -> OwnImages:
    training, test = (_read_idx_pair(folder, *names) for names in (FILE_NAMES[:2], FILE_NAMES[2:]))
    count = int(max(training.labels.max(initial=0), test.labels.max(initial=0))) + 1
    classes = tuple(map(str, range(count)))
    if (names_file := folder / CLASSES_FILE).is_file():
        classes = tuple(names_file.read_text(encoding="utf-8").split("\n"))
        classes = tuple(name.strip() for name in classes if name.strip())
        if len(classes) < count:
            raise UserError(f"{names_file}: names {len(classes)} classes, and the labels are 0 to {count - 1}")
    return OwnImages(classes, training, test)


def _read_idx_pair(folder: Path, images: str, labels: str) -> LabelledArrays:
    pixels = _read_idx(folder, images, IDX_IMAGES_MAGIC, 3)
    targets = _read_idx(folder, labels, IDX_LABELS_MAGIC, 1)
    if pixels.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        raise UserError(f"{folder}: {images} has images of {pixels.shape[2]} by {pixels.shape[1]} pixels, not 28 by 28")
    if len(pixels) != len(targets):
        raise UserError(f"{folder}: {images} has {len(pixels):,} images, and {labels} has {len(targets):,} labels")
    return LabelledArrays(pixels, targets)


def _read_idx(folder: Path, name: str, magic: int, dimensions: int) -> npt.NDArray[np.uint8]:
    path = _idx_path(folder, name)
    if path is None:
        raise UserError(f"{folder}: has no {name} or {name}.gz beside the other IDX files; add it")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); write it again") from None
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start]) if len(content) >= start else ()
    if content[:4] != magic.to_bytes(4, "big") or len(content) - start != np.prod(shape, dtype=object):
        raise UserError(f"{path}: is not a whole IDX file of bytes in {dimensions} dimensions; write it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
