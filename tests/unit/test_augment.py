"""Batched augmentation equals torchvision's, image by image, and draws for each image on its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import RandomErasing
from torchvision.transforms.v2 import functional

from fmnist_search.augment import augment, erase, flip, shift
from fmnist_search.data import Images
from fmnist_search.recipe import Augmentation

FILL = 73
BATCH = 16
whole_batch = st.lists(st.integers(-30, 30), min_size=BATCH, max_size=BATCH)
settings_of_augmentation = st.builds(
    Augmentation, shift=st.integers(0, 14), flip=st.floats(0, 1), erasing=st.floats(0, 1)
)


@pytest.fixture(scope="module")
def pixels(images: Images) -> Tensor:
    return images.train.pixels[:BATCH]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def many(pixels: Tensor, augmentation: Augmentation, seed: int = 0) -> Tensor:
    """One image, augmented as often as `pixels` has images."""
    return augment(pixels, augmentation, FILL, seeded(seed))


# ------------------------------------------------------------------------- against torchvision


@settings(max_examples=40)
@given(down=whole_batch, right=whole_batch)
def test_a_shift_is_torchvisions_crop_of_the_padded_image(pixels: Tensor, down: list[int], right: list[int]) -> None:
    shifted = shift(pixels, torch.tensor(down), torch.tensor(right))
    padded = functional.pad(pixels, [30])
    expected = [functional.crop(i, 30 - d, 30 - r, 28, 28) for i, d, r in zip(padded, down, right, strict=True)]
    assert torch.equal(shifted, torch.stack(expected))


@given(st.lists(st.booleans(), min_size=BATCH, max_size=BATCH))
def test_a_flip_is_torchvisions_horizontal_flip(pixels: Tensor, flipped: list[bool]) -> None:
    expected = [functional.horizontal_flip(i) if f else i for i, f in zip(pixels, flipped, strict=True)]
    assert torch.equal(flip(pixels, torch.tensor(flipped)), torch.stack(expected))


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.integers(0, 27)] * 2, *[st.integers(0, 28)] * 2), min_size=BATCH, max_size=BATCH))
def test_an_erased_rectangle_is_torchvisions(pixels: Tensor, rectangles: list[tuple[int, int, int, int]]) -> None:
    top, left, rows, columns = torch.tensor(rectangles).unbind(1)
    value = torch.tensor(FILL, dtype=torch.uint8)
    expected = [
        functional.erase(image[None], t, x, h, w, value)[0]
        for image, (t, x, h, w) in zip(pixels, rectangles, strict=True)
    ]
    assert torch.equal(erase(pixels, top, left, rows, columns, FILL), torch.stack(expected))


# ------------------------------------------------------------------------------------------ laws


@given(settings_of_augmentation, st.integers(0, 2**32))
def test_shape_and_type_stay_and_the_given_pixels_are_left_alone(
    pixels: Tensor, augmentation: Augmentation, seed: int
) -> None:
    before = pixels.clone()
    changed = augment(pixels, augmentation, FILL, seeded(seed))
    assert (changed.shape, changed.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(pixels, before)


@given(settings_of_augmentation, st.integers(0, 2**32))
def test_the_generator_alone_decides(pixels: Tensor, augmentation: Augmentation, seed: int) -> None:
    once = augment(pixels, augmentation, FILL, seeded(seed))
    torch.rand(1)
    assert torch.equal(augment(pixels, augmentation, FILL, seeded(seed)), once)


def test_the_global_generator_is_not_drawn_from(pixels: Tensor) -> None:
    before = torch.get_rng_state()
    augment(pixels, Augmentation(shift=3, flip=0.5, erasing=0.5), FILL, seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_asked_changes_nothing(pixels: Tensor) -> None:
    assert torch.equal(augment(pixels, Augmentation(), FILL, seeded()), pixels)


@given(st.lists(st.booleans(), min_size=BATCH, max_size=BATCH))
def test_flipping_twice_gives_the_image_back(pixels: Tensor, flipped: list[bool]) -> None:
    which = torch.tensor(flipped)
    assert torch.equal(flip(flip(pixels, which), which), pixels)


# ----------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("augmentation", [Augmentation(shift=4), Augmentation(flip=0.5), Augmentation(erasing=0.5)])
def test_each_image_of_a_batch_gets_a_change_of_its_own(pixels: Tensor, augmentation: Augmentation) -> None:
    changed = many(pixels[:1].expand(200, 28, 28), augmentation)
    kinds = len(torch.unique(changed.flatten(1), dim=0))
    assert kinds == 2 if augmentation.flip else kinds > 40


@pytest.mark.parametrize("augmentation", [Augmentation(shift=4), Augmentation(flip=0.5), Augmentation(erasing=0.5)])
def test_another_generator_gives_other_changes(pixels: Tensor, augmentation: Augmentation) -> None:
    assert not torch.equal(many(pixels, augmentation, seed=0), many(pixels, augmentation, seed=1))


def test_at_probability_one_every_image_is_flipped(pixels: Tensor) -> None:
    assert torch.equal(many(pixels, Augmentation(flip=1.0)), pixels.flip(-1))


def test_at_probability_one_every_image_loses_a_rectangle_of_the_fill() -> None:
    dark = torch.zeros(500, 28, 28, dtype=torch.uint8)
    erased = many(dark, Augmentation(erasing=1.0))
    assert erased.flatten(1).any(1).all()
    assert set(erased.unique().tolist()) == {0, FILL}
    for image in erased == FILL:
        rows, columns = image.any(1), image.any(0)
        assert torch.equal(image, rows[:, None] & columns[None, :]), "the erased pixels are no rectangle"


@pytest.mark.parametrize("name", ["flip", "erasing"])
def test_a_probability_is_the_share_of_the_images_that_change(name: str) -> None:
    lopsided = torch.zeros(4_000, 28, 28, dtype=torch.uint8)
    lopsided[:, :, 0] = 1
    lopsided[:, :, 1:] = 2
    changed = many(lopsided, Augmentation(**{name: 0.3}))
    share = (changed != lopsided).flatten(1).any(1).double().mean().item()
    assert share == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("largest", [1, 3])
def test_shifts_reach_every_place_up_to_the_largest_alike(largest: int) -> None:
    point = torch.zeros(4_000, 28, 28, dtype=torch.uint8)
    point[:, 14, 14] = 1
    moved = many(point, Augmentation(shift=largest)).long()
    down, right = moved.sum(2).argmax(1) - 14, moved.sum(1).argmax(1) - 14
    side = 2 * largest + 1
    counts = torch.bincount((down + largest) * side + right + largest, minlength=side**2)
    assert len(counts) == side**2
    expected = 4_000 / side**2
    # Pearson's statistic has as mean its degrees of freedom; six deviations above it is no accident.
    freedom = side**2 - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 6 * (2 * freedom) ** 0.5


def test_erased_rectangles_have_the_documented_area_and_both_shapes() -> None:
    erased = many(torch.zeros(4_000, 28, 28, dtype=torch.uint8), Augmentation(erasing=1.0)) > 0
    area = erased.double().mean((1, 2))
    # Sides are whole pixels, which moves an area a little past its bounds.
    assert area.min() > 0.01
    assert area.max() < 0.36
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert 0.4 < (rows > columns).double().mean() < 0.6
    assert (rows >= 2 * columns).any()
    assert (columns >= 2 * rows).any()


def test_erased_rectangles_are_on_average_as_large_as_torchvisions() -> None:
    ours = (many(torch.zeros(2_000, 28, 28, dtype=torch.uint8), Augmentation(erasing=1.0)) > 0).double().mean()
    transform = RandomErasing(p=1.0, value=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([transform(torch.zeros(1, 28, 28)) for _ in range(500)]).double().mean()
    assert abs(ours - theirs) < 0.02


def test_erasing_reaches_every_pixel() -> None:
    erased = many(torch.zeros(2_000, 28, 28, dtype=torch.uint8), Augmentation(erasing=1.0)) > 0
    assert erased.any(0).all()
