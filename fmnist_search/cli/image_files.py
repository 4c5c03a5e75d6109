"""Image files as pixels for a model: grey images of 28 by 28 pixels, the item light on black.

An image file holds one image, a PNG or a JPEG; an IDX file (the format of the dataset itself) holds any number. The
content decides which of them a file is. Pillow's other formats are not read: some of them start other programs.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fmnist_search.data.own_datasets import IDX_IMAGES_MAGIC, IDX_LABELS_MAGIC
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.text import first_line

IMAGE_FORMATS = ("PNG", "JPEG")
"""Names of formats in Pillow."""
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
"""Suffixes of image files in a folder; a file that is given by name is read whatever its suffix."""

GZIP_MAGIC = b"\x1f\x8b"
MAX_PIXELS = 100_000_000
"""A header with a larger image counts as damaged."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class NamedImage:
    """One image, pixels (28, 28) uint8, and the name of its file."""

    name: str
    pixels: Pixels


def read_image_files(
    paths: Sequence[Path],
    *,
    resize: bool = False,
    invert: bool = False,
    on_message: Callable[[str], None] = lambda _: None,
) -> Iterator[NamedImage]:
    """Yield the images of image files, IDX files (`.gz` as well) and folders of image files.

    A folder yields its image files in order of their names; `on_message` is called with the files that are skipped.

    Raises:
        UserError: at once if a file does not exist or a folder has no image files; during the iteration if a file
            cannot be read, or has another size and `resize` is not set.
    """
    files = [file for path in paths for file in _list_image_files(path, on_message)]
    return (image for file in files for image in _read_images(file, resize, invert))


def read_image(path: Path, *, resize: bool = False, invert: bool = False) -> Pixels:
    """Return the pixels (28, 28) uint8 of an image file.

    Raises:
        UserError: if the file does not exist, is not an image, or has another size and `resize` is not set.
    """
    with _open_regular_file(path) as stream:
        return _read_image(path, stream, resize, invert)


def _read_image(path: Path, stream: BufferedReader, resize: bool, invert: bool) -> Pixels:
    try:
        with Image.open(stream, formats=IMAGE_FORMATS) as opened:
            if math.prod(opened.size) > MAX_PIXELS:
                raise UserError(
                    f"{path}: has {math.prod(opened.size):,} pixels; give an image of {MAX_PIXELS:,} at most"
                )
            image = _to_grayscale(ImageOps.exif_transpose(opened), _ground(invert))
    except UnidentifiedImageError:
        raise UserError(f"{path}: cannot be read as an image; give a PNG, JPEG or IDX file") from None
    except UserError:
        raise
    except Exception as error:  # Pillow raises a dozen types of errors for a damaged file
        raise UserError(f"{path}: cannot be read as an image ({first_line(error)}); give a PNG or JPEG") from None
    return _to_pixels(image, str(path), resize, invert)


def _open_regular_file(path: Path) -> BufferedReader:
    """Open a file, without waiting for the other end of a pipe.

    Raises:
        UserError: if it cannot be opened, or is a pipe, a device or a folder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(
            f"{path}: cannot be read as an image, since it is not a regular file; give a PNG, JPEG or IDX file"
        )
    return os.fdopen(descriptor, "rb")


def _list_image_files(path: Path, on_message: Callable[[str], None]) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such file; check the path")
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise UserError(f"{path}: has no image files; give a folder with PNG or JPEG files")
    if others := [file.name for file in files if file not in set(images)]:
        on_message(f"{path}: skipped, not a PNG or JPEG: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}")
    return images


def _read_images(path: Path, resize: bool, invert: bool) -> Iterator[NamedImage]:
    with _open_regular_file(path) as stream:
        start = stream.peek(2)[:2]
        if start in (b"\x00\x00", GZIP_MAGIC):
            yield from _read_idx_images(path, stream, start == GZIP_MAGIC, resize, invert)
        else:
            yield NamedImage(str(path), _read_image(path, stream, resize, invert))


# ------------------------------------------------------------------------------------- IDX files


def _read_idx_images(
    path: Path, file: BufferedReader, gzipped: bool, resize: bool, invert: bool
) -> Iterator[NamedImage]:
    """Yield the images of an IDX file, read one by one, since a file may be larger than the memory."""
    try:
        with gzip.open(file) if gzipped else contextlib.nullcontext(file) as stream:
            count, height, width = _read_idx_header(path, stream)
            for number in range(count):
                name = f"{path}[{number}]"
                content = stream.read(height * width)
                if len(content) < height * width:
                    raise UserError(f"{path}: ends within image {number} of {count:,}; download the file again")
                pixels = np.frombuffer(content, np.uint8).reshape(height, width)
                yield NamedImage(name, _to_pixels(Image.fromarray(pixels), str(path), resize, invert))
            if stream.read(1):
                raise UserError(f"{path}: is longer than its {count:,} images; download the file again")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); download the file again") from None


def _read_idx_header(path: Path, stream: BufferedIOBase) -> tuple[int, int, int]:
    header = stream.read(16)
    magic = int.from_bytes(header[:4], "big")
    if magic == IDX_LABELS_MAGIC:
        raise UserError(f"{path}: contains labels; give the file of the images, such as t10k-images-idx3-ubyte.gz")
    if magic != IDX_IMAGES_MAGIC or len(header) < 16:
        raise UserError(
            f"{path}: is not an IDX file of images (bytes in three dimensions); give a PNG, JPEG or IDX file"
        )
    count, height, width = struct.unpack(">3I", header[4:])
    if not count or not 0 < height * width <= MAX_PIXELS:
        raise UserError(
            f"{path}: has a header of {count} images of {width} by {height} pixels; download the file again"
        )
    return count, height, width


# ----------------------------------------------------------------------------------------- pixels


def _to_pixels(image: Image.Image, name: str, resize: bool, invert: bool) -> Pixels:
    """Return 8-bit grey pixels (28, 28); the aspect ratio stays, and the rest is black."""
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        if not resize:
            width, height = image.size
            raise UserError(
                f"{name}: is {width} by {height} pixels, not 28 by 28; add --resize to bring it to that size"
            )
        image = ImageOps.pad(image, (IMAGE_SIZE, IMAGE_SIZE), color=_ground(invert))
    return np.asarray(ImageOps.invert(image) if invert else image)


def _ground(invert: bool) -> int:
    """Return the grey value of the background: the one that is black once the picture is inverted, if it will be."""
    return 255 if invert else 0


def _to_grayscale(image: Image.Image, ground: int) -> Image.Image:
    """Return an 8-bit grey image, in which transparent pixels show the ground.

    Pillow would clip 16-bit values at 255 instead of scaling them, and keep the color that a transparent pixel hides.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        opaque = values != image.info.get("transparency", -1)
        return Image.fromarray(np.where(opaque, values // 256, ground).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("L")
    background = Image.new("RGBA", image.size, (ground, ground, ground, 255))
    return Image.alpha_composite(background, image.convert("RGBA")).convert("L")
