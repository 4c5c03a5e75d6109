"""Image files and IDX files are read as pixels for a model, or refused with a remedy."""

from __future__ import annotations

import contextlib
import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fmnist_search.cli.image_files import read_image, read_image_files
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import read_test_set, read_training_set
from fmnist_search.errors import UserError

Pixels = npt.NDArray[np.uint8]

PIXELS: Pixels = (np.arange(28 * 28) % 256).astype(np.uint8).reshape(28, 28)


def save_image(folder: Path, image: Image.Image, name: str = "picture.png") -> Path:
    image.save(folder / name)
    return folder / name


def read_image_error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_image(path)
    (line,) = caught.value.lines
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_a_test_image_saved_as_a_file_is_read_unchanged(source: DataSource, tmp_path: Path) -> None:
    boot = read_test_set("fashion-mnist", source).pixels[0].numpy()
    read = read_image(save_image(tmp_path, Image.fromarray(boot)))
    assert read.dtype == np.uint8
    assert np.array_equal(read, boot)


def transparent(item: Pixels, mode: str) -> tuple[Image.Image, dict[str, int]]:
    """Return a picture whose background is transparent and hides another color, and how to save it as PNG.

    `item` has 0 for the background. A palette, one grey value and one 16-bit value can each be transparent as well.
    """
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(np.where(item > 0, item, 90)), Image.fromarray(to_alpha(item))]), {}
    if mode == "RGBA":
        grey = Image.fromarray(np.where(item > 0, item, 90))
        return Image.merge("RGBA", [grey, grey, grey, Image.fromarray(to_alpha(item))]), {}
    hidden = next(value for value in range(256) if value not in item)
    filled = Image.fromarray(np.where(item > 0, item, hidden).astype(np.uint8))
    if mode == "I;16":
        wide = np.asarray(filled).astype(np.uint16) * 257
        return Image.fromarray(wide), {"transparency": hidden * 257}
    if mode == "P":
        filled.putpalette([grey for value in range(256) for grey in (value,) * 3])
    return filled, {"transparency": hidden}


def to_alpha(item: Pixels) -> Pixels:
    return np.where(item > 0, 255, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def real_images(source: DataSource) -> list[Pixels]:
    pixels = read_test_set("fashion-mnist", source).pixels.numpy()
    return [image for image in pixels[:100] if len(np.unique(image)) < 200][:4]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16", "1"])
@pytest.mark.parametrize("invert", [False, True])
def test_a_grey_image_is_read_the_same_in_every_mode(mode: str, invert: bool, tmp_path: Path) -> None:
    expected = PIXELS if mode != "1" else np.where(PIXELS > 127, 255, 0).astype(np.uint8)
    drawn = 255 - expected if invert else expected
    image = Image.fromarray(drawn.astype(np.uint16) * 257 if mode == "I;16" else drawn)
    path = save_image(tmp_path, image if mode == "I;16" else image.convert(mode))
    assert np.array_equal(read_image(path, invert=invert), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("invert", [False, True])
def test_what_is_transparent_is_background(mode: str, invert: bool, real_images: list[Pixels], tmp_path: Path) -> None:
    for number, image in enumerate(real_images):
        drawn = np.where(image > 0, 255 - image if invert else image, 0).astype(np.uint8)
        drawn[(image > 0) & (drawn == 0)] = 1  # black, and not background
        expected = np.where(image > 0, 255 - drawn if invert else drawn, 0)
        picture, options = transparent(drawn, mode)
        picture.save(path := tmp_path / f"{number}.png", **options)
        assert np.array_equal(read_image(path, invert=invert), expected)


def test_a_half_transparent_pixel_is_mixed_with_the_background(tmp_path: Path) -> None:
    path = save_image(tmp_path, Image.new("RGBA", (28, 28), (200, 200, 200, 128)))
    assert (read_image(path) == 100).all()
    assert (read_image(path, invert=True) == 28).all()  # 255 - (200 + 255) / 2


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(28), np.arange(28)).astype(np.uint8)
    read = read_image(save_image(tmp_path, Image.fromarray(smooth), "picture.jpg"))
    assert np.abs(read.astype(int) - smooth).max() <= 4


def test_a_dark_item_on_a_light_background_is_inverted(tmp_path: Path) -> None:
    path = save_image(tmp_path, Image.fromarray(255 - PIXELS))
    assert np.array_equal(read_image(path, invert=True), PIXELS)


def test_an_image_of_another_size_is_refused_unless_resized(tmp_path: Path) -> None:
    large = Image.fromarray(PIXELS).resize((112, 112), Image.Resampling.NEAREST)
    path = save_image(tmp_path, large)
    assert read_image_error(path) == "is 112 by 112 pixels, not 28 by 28; add --resize to bring it to that size"
    smooth = save_image(tmp_path, Image.new("L", (112, 112), 90))
    assert (read_image(smooth, resize=True) == 90).all()


@pytest.mark.parametrize("size", [(56, 28), (28, 56), (300, 200), (2, 3)])
@pytest.mark.parametrize("invert", [False, True])
def test_the_aspect_ratio_is_kept(size: tuple[int, int], invert: bool, tmp_path: Path) -> None:
    path = save_image(tmp_path, Image.new("L", size, 55 if invert else 200))
    read = read_image(path, resize=True, invert=invert)
    assert read.shape == (28, 28)
    assert set(np.unique(read)) == {0, 200}
    width, height = (read == 200).any(0).sum(), (read == 200).any(1).sum()
    assert max(width, height) == 28
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)


def test_a_photograph_is_rotated_as_its_exif_tag_says(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # rotate by 90 degrees: the left side becomes the top
    image = Image.new("L", (280, 280))
    image.paste(255, (0, 0, 140, 280))
    image.save(tmp_path / "photograph.jpg", exif=turned)
    read = read_image(tmp_path / "photograph.jpg", resize=True)
    assert read[:10].min() > 200
    assert read[-10:].max() < 50


# -------------------------------------------------------------------------------- unreadable files


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert read_image_error(tmp_path / "shoe.png") == "no such file; check the path"


def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    valid = save_image(tmp_path, Image.fromarray(PIXELS)).read_bytes()
    for content in (b"", b"I am a shoe", valid[: len(valid) // 2], valid[:60] + b"?" + valid[61:]):
        (tmp_path / "damaged.png").write_bytes(content)
        assert "cannot be read as an image" in read_image_error(tmp_path / "damaged.png")
    assert "cannot be read as an image" in read_image_error(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    (tmp_path / "bomb.png").write_bytes(content)
    assert "decompression bomb" in read_image_error(tmp_path / "bomb.png")


@pytest.mark.parametrize("format_", ["EPS", "BMP", "GIF", "TIFF", "WEBP", "PPM", "PDF"])
def test_only_png_and_jpeg_are_read_whatever_a_file_is_called(format_: str, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "picture.png", format=format_)
    assert read_image_error(tmp_path / "picture.png") == "cannot be read as an image; give a PNG, JPEG or IDX file"
    Image.fromarray(PIXELS).save(tmp_path / "picture.eps", format="PNG")
    assert np.array_equal(read_image(tmp_path / "picture.eps"), PIXELS)


@pytest.mark.parametrize("read", [read_image, lambda path: list(read_image_files([path]))])
def test_a_pipe_and_a_device_are_refused_at_once(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.png", tmp_path / "link.png", Path("/dev/zero")):
        with pytest.raises(UserError, match="is not a regular file"):
            read(path)
    assert "has no image files" in read_image_files_error(tmp_path)


@given(noise=st.binary(max_size=200), at=st.integers(0, 300), is_jpeg=st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_image_is_read_or_refused(noise: bytes, at: int, is_jpeg: bool, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "valid", format="JPEG" if is_jpeg else "PNG", exif=turned)
    content = (tmp_path / "valid").read_bytes()
    (tmp_path / "damaged").write_bytes(content[:at] + noise + content[at + len(noise) :])
    with contextlib.suppress(UserError):
        read_image(tmp_path / "damaged", resize=True)


# ---------------------------------------------------------------------------------- IDX and folders


def to_idx_bytes(images: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(">4I", 0x0803, *images.shape) + images.tobytes()


IMAGE_BATCH = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)


def read_all_images(*paths: Path, **settings: bool) -> tuple[list[str], npt.NDArray[np.uint8]]:
    images = list(read_image_files(paths, **settings))
    return [image.name for image in images], np.stack([image.pixels for image in images])


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_yields_its_images_in_order(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "anything"
    path.write_bytes(gzip.compress(to_idx_bytes(IMAGE_BATCH)) if packed else to_idx_bytes(IMAGE_BATCH))
    names, pixels = read_all_images(path)
    assert names == [f"{path}[{number}]" for number in range(5)]
    assert np.array_equal(pixels, IMAGE_BATCH)
    assert np.array_equal(read_all_images(path, invert=True)[1], 255 - IMAGE_BATCH)


def test_the_file_of_the_dataset_is_read(source: DataSource) -> None:
    images = read_image_files([source.cache / "fashion-mnist" / "train-images-idx3-ubyte"])
    pool = read_training_set("fashion-mnist", source).pixels
    for pixels in pool[:3]:
        assert np.array_equal(next(images).pixels, pixels.numpy())


def test_an_idx_file_of_larger_images_is_resized_on_request(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(to_idx_bytes(np.full((2, 56, 56), 90, np.uint8)))
    assert read_image_files_error(path) == "is 56 by 56 pixels, not 28 by 28; add --resize to bring it to that size"
    assert (read_all_images(path, resize=True)[1] == 90).all()


def read_image_files_error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_image_files([path]))
    (line,) = caught.value.lines
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (to_idx_bytes(IMAGE_BATCH)[:-1], "ends within image 4 of 5"),
        (to_idx_bytes(IMAGE_BATCH) + b"?", "is longer than its 5 images"),
        (gzip.compress(to_idx_bytes(IMAGE_BATCH))[:-9], "cannot be read"),
        (gzip.compress(b"hello", mtime=0), "is not an IDX file of images"),
        (to_idx_bytes(IMAGE_BATCH)[:11], "is not an IDX file of images"),
        (struct.pack(">2I", 0x0801, 3) + b"123", "contains labels"),
        (struct.pack(">4I", 0x0D03, 1, 28, 28) + bytes(4 * 784), "is not an IDX file of images"),
        (struct.pack(">4I", 0x0803, 0, 28, 28), "has a header of 0 images"),
        (struct.pack(">4I", 0x0803, 1, 2**31, 2**31), "has a header of 1 images"),
    ],
)
def test_a_damaged_idx_file_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "file-idx3-ubyte"
    path.write_bytes(content)
    assert expected in read_image_files_error(path)


def test_a_folder_yields_its_images_in_order_and_reports_skipped_files(tmp_path: Path) -> None:
    for name, number in (("b.png", 1), ("a.PNG", 0), ("c.jpeg", 2)):
        Image.fromarray(IMAGE_BATCH[number]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("a list")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / "below").mkdir()
    messages: list[str] = []
    images = list(read_image_files([tmp_path], on_message=messages.append))
    assert [Path(image.name).name for image in images] == ["a.PNG", "b.png", "c.jpeg"]
    assert np.array_equal(np.stack([image.pixels for image in images[:2]]), IMAGE_BATCH[:2])
    assert messages == [f"{tmp_path}: skipped, not a PNG or JPEG: notes.txt"]


def test_a_folder_without_images_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    assert "has no image files" in read_image_files_error(tmp_path)
    (tmp_path / "damaged.png").write_text("I am a shoe")
    with pytest.raises(UserError, match=r"damaged\.png: cannot be read as an image"):
        list(read_image_files([tmp_path]))


def test_a_missing_file_is_reported_before_any_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.png: no such file"):
        read_image_files([tmp_path / "none.png"])
