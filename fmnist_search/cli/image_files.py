"""Image files as pixels for a model: grey images of 28 by 28 pixels, the item light on black.

An image file holds one image, an IDX file (the format of the dataset itself) any number.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import IMAGE_SIZE

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
"""Suffixes of image files in a folder; a file that is given by name is read whatever its suffix."""

IDX_IMAGES_MAGIC, IDX_LABELS_MAGIC = 0x0803, 0x0801
"""First four bytes of an IDX file: two zeros, the type (8: unsigned bytes), the number of dimensions."""
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
    try:
        with Image.open(path) as opened:
            image = _to_grayscale(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); give a PNG or JPEG") from None
    return _to_pixels(image, str(path), resize, invert)


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
        on_message(f"{path}: skipped, not an image: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}")
    return images


def _read_images(path: Path, resize: bool, invert: bool) -> Iterator[NamedImage]:
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if start in (b"\x00\x00", GZIP_MAGIC):
        yield from _read_idx_images(path, start == GZIP_MAGIC, resize, invert)
    else:
        yield NamedImage(str(path), read_image(path, resize=resize, invert=invert))


# ------------------------------------------------------------------------------------- IDX files


def _read_idx_images(path: Path, gzipped: bool, resize: bool, invert: bool) -> Iterator[NamedImage]:
    """Yield the images of an IDX file, read one by one, since a file may be larger than the memory."""
    opened = gzip.open if gzipped else open
    try:
        with opened(path, "rb") as stream:
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
        image = ImageOps.pad(image, (IMAGE_SIZE, IMAGE_SIZE), color=255 if invert else 0)
    return np.asarray(ImageOps.invert(image) if invert else image)


def _to_grayscale(image: Image.Image) -> Image.Image:
    """Return an 8-bit grey image; Pillow would clip 16-bit values at 255 instead of scaling them."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    return image.convert("L")
