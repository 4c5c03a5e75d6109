"""Pictures become the model's pixels as they are meant, or are refused with what to do."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fmnist_search.data import Source, read_test_set
from fmnist_search.errors import UserError
from fmnist_search.pictures import read_picture

PIXELS: npt.NDArray[np.uint8] = (np.arange(28 * 28) % 256).astype(np.uint8).reshape(28, 28)


def saved(folder: Path, picture: Image.Image, name: str = "picture.png") -> Path:
    picture.save(folder / name)
    return folder / name


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_picture(path)
    (line,) = caught.value.lines
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_a_test_image_saved_as_a_picture_comes_back_as_its_pixels(source: Source, tmp_path: Path) -> None:
    boot = read_test_set("fashion-mnist", source).pixels[0].numpy()
    read = read_picture(saved(tmp_path, Image.fromarray(boot)))
    assert read.dtype == np.uint8
    assert np.array_equal(read, boot)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_a_grey_picture_is_the_same_however_it_is_stored(mode: str, tmp_path: Path) -> None:
    assert np.array_equal(read_picture(saved(tmp_path, Image.fromarray(PIXELS).convert(mode))), PIXELS)


def test_a_picture_of_sixteen_bits_keeps_its_shades(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(PIXELS.astype(np.uint16) * 257))
    with Image.open(path) as stored:
        assert stored.mode.startswith("I")
    assert np.array_equal(read_picture(path), PIXELS)


def test_a_jpeg_is_read_as_well(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(28), np.arange(28)).astype(np.uint8)
    read = read_picture(saved(tmp_path, Image.fromarray(smooth), "picture.jpg"))
    assert np.abs(read.astype(int) - smooth).max() <= 4


def test_a_dark_garment_on_a_light_ground_is_inverted(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(255 - PIXELS))
    assert np.array_equal(read_picture(path, invert=True), PIXELS)


def test_a_picture_of_another_size_is_refused_and_resized_on_request(tmp_path: Path) -> None:
    large = Image.fromarray(PIXELS).resize((112, 112), Image.Resampling.NEAREST)
    path = saved(tmp_path, large)
    assert refusal(path) == "is 112 by 112 pixels, not 28 by 28; add --resize to bring it to that size"
    smooth = saved(tmp_path, Image.new("L", (112, 112), 90))
    assert (read_picture(smooth, resize=True) == 90).all()


@pytest.mark.parametrize("size", [(56, 28), (28, 56), (300, 200), (2, 3)])
@pytest.mark.parametrize("invert", [False, True])
def test_a_picture_that_is_not_square_keeps_its_shape_on_black_ground(
    size: tuple[int, int], invert: bool, tmp_path: Path
) -> None:
    path = saved(tmp_path, Image.new("L", size, 55 if invert else 200))
    read = read_picture(path, resize=True, invert=invert)
    assert read.shape == (28, 28)
    assert set(np.unique(read)) == {0, 200}
    width, height = (read == 200).any(0).sum(), (read == 200).any(1).sum()
    assert max(width, height) == 28
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera stood on its side: what is stored at the left belongs at the top
    picture = Image.new("L", (280, 280))
    picture.paste(255, (0, 0, 140, 280))
    picture.save(tmp_path / "photograph.jpg", exif=turned)
    read = read_picture(tmp_path / "photograph.jpg", resize=True)
    assert read[:10].min() > 200
    assert read[-10:].max() < 50


# ------------------------------------------------------------------------------- what is no picture


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "shoe.png") == "no such file; check the path"


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, Image.fromarray(PIXELS)).read_bytes()
    for content in (b"", b"I am a shoe", whole[: len(whole) // 2], whole[:60] + b"?" + whole[61:]):
        (tmp_path / "broken.png").write_bytes(content)
        assert "is no picture that can be read" in refusal(tmp_path / "broken.png")
    assert "is no picture that can be read" in refusal(tmp_path)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    (tmp_path / "bomb.png").write_bytes(content)
    assert "decompression bomb" in refusal(tmp_path / "bomb.png")
