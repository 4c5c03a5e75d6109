"""Picture files as the model's pixels: grey images of 28 by 28, the thing itself light on black.

A picture file holds one, an IDX file (the form in which the dataset itself comes) any number.
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
"""What counts as a picture in a folder; a file that is named itself is looked into."""

IDX_IMAGES_MAGIC, IDX_LABELS_MAGIC = 0x0803, 0x0801
"""How an IDX file begins: two zeros, the type (8: unsigned bytes), the number of dimensions."""
GZIP_MAGIC = b"\x1f\x8b"
MAX_PIXELS = 100_000_000
"""A larger image is taken for a damaged header."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class NamedImage:
    """One image, pixels (28, 28) uint8, and where it comes from."""

    name: str
    pixels: Pixels


def read_image_files(
    paths: Sequence[Path],
    *,
    resize: bool = False,
    invert: bool = False,
    on_message: Callable[[str], None] = lambda _: None,
) -> Iterator[NamedImage]:
    """The images of picture files, IDX files (`.gz` as well) and folders of pictures, one after the other.

    A folder gives its pictures in the order of their names; what is no picture by its name is passed over, which
    `on_message` hears.

    Raises:
        UserError: no such file, or an empty folder: at once. A file that cannot be read, or images of another size and
            no `resize`: when it is its turn.
    """
    files = [file for path in paths for file in _list_image_files(path, on_message)]
    return (picture for file in files for picture in _read_images(file, resize, invert))


def read_image(path: Path, *, resize: bool = False, invert: bool = False) -> Pixels:
    """The pixels (28, 28) uint8 of a picture file.

    Raises:
        UserError: no such file, no picture, or another size and no `resize`.
    """
    try:
        with Image.open(path) as opened:
            picture = _to_grayscale(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: is no picture that can be read ({error}); give a PNG or JPEG") from None
    return _to_pixels(picture, str(path), resize, invert)


def _list_image_files(path: Path, on_message: Callable[[str], None]) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such file; check the path")
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    pictures = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not pictures:
        raise UserError(f"{path}: holds no picture; give a folder with PNG or JPEG files in it")
    if others := [file.name for file in files if file not in set(pictures)]:
        on_message(f"{path}: skipped what is no picture: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}")
    return pictures


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
    """The images of an IDX file, read one by one: a file may be larger than the memory."""
    opened = gzip.open if gzipped else open
    try:
        with opened(path, "rb") as stream:
            count, height, width = _read_idx_header(path, stream)
            for number in range(count):
                name = f"{path}[{number}]"
                content = stream.read(height * width)
                if len(content) < height * width:
                    raise UserError(f"{path}: ends within image {number} of {count:,}; fetch the file again")
                pixels = np.frombuffer(content, np.uint8).reshape(height, width)
                yield NamedImage(name, _to_pixels(Image.fromarray(pixels), str(path), resize, invert))
            if stream.read(1):
                raise UserError(f"{path}: is longer than its {count:,} images; fetch the file again")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the file again") from None


def _read_idx_header(path: Path, stream: BufferedIOBase) -> tuple[int, int, int]:
    header = stream.read(16)
    magic = int.from_bytes(header[:4], "big")
    if magic == IDX_LABELS_MAGIC:
        raise UserError(f"{path}: holds labels; give the file of the images, such as t10k-images-idx3-ubyte.gz")
    if magic != IDX_IMAGES_MAGIC or len(header) < 16:
        raise UserError(f"{path}: is no IDX file of images (bytes in three dimensions); give a PNG, JPEG or IDX file")
    count, height, width = struct.unpack(">3I", header[4:])
    if not count or not 0 < height * width <= MAX_PIXELS:
        raise UserError(f"{path}: says that it holds {count} images of {width} by {height} pixels; fetch it again")
    return count, height, width


# ----------------------------------------------------------------------------------------- pixels


def _to_pixels(image: Image.Image, name: str, resize: bool, invert: bool) -> Pixels:
    """Eight-bit grey pixels in the model's size, the shape of the picture kept on black ground."""
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        if not resize:
            width, height = image.size
            raise UserError(
                f"{name}: is {width} by {height} pixels, not 28 by 28; add --resize to bring it to that size"
            )
        image = ImageOps.pad(image, (IMAGE_SIZE, IMAGE_SIZE), color=255 if invert else 0)
    return np.asarray(ImageOps.invert(image) if invert else image)


def _to_grayscale(image: Image.Image) -> Image.Image:
    """Eight bits of grey; Pillow would cut sixteen off at 255 instead of scaling them."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    return image.convert("L")
