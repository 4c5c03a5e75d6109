"""Picture files as the model's pixels: one grey image of 28 by 28, the garment light on black."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fmnist_search.errors import UserError

SIDE = 28


def read_picture(path: Path, *, resize: bool = False, invert: bool = False) -> npt.NDArray[np.uint8]:
    """The pixels (28, 28) uint8 of a picture file.

    Raises:
        UserError: no such file, no picture, or another size and no `resize`.
    """
    try:
        with Image.open(path) as opened:
            picture = _grey(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: is no picture that can be read ({error}); give a PNG or JPEG") from None
    if picture.size != (SIDE, SIDE):
        if not resize:
            width, height = picture.size
            raise UserError(
                f"{path}: is {width} by {height} pixels, not 28 by 28; add --resize to bring it to that size"
            )
        picture = ImageOps.pad(picture, (SIDE, SIDE), color=255 if invert else 0)
    return np.asarray(ImageOps.invert(picture) if invert else picture)


def _grey(picture: Image.Image) -> Image.Image:
    """Eight bits of grey; Pillow would cut sixteen off at 255 instead of scaling them."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    return picture.convert("L")
