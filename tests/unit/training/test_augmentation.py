"""Batched augmentation equals torchvision's, image by image, and draws for each image on its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomErasing
from torchvision.transforms.v2 import InterpolationMode, functional

from fmnist_search.data.images import Images
from fmnist_search.recipe.groups import Augmentation
from fmnist_search.training.augmentation import augment, erase, flip, mix, rotate, shift, symmetric_beta

FILL = 73
BATCH_SIZE = 16
batch_shifts = st.lists(st.integers(-30, 30), min_size=BATCH_SIZE, max_size=BATCH_SIZE)
augmentations = st.builds(
    Augmentation,
    rotation=st.floats(0, 180),
    shift=st.integers(0, 14),
    flip=st.floats(0, 1),
    erasing=st.floats(0, 1),
)
mix_alphas = st.floats(1e-3, 100)
mix_augmentations = st.one_of(
    st.builds(Augmentation, mixup=mix_alphas),
    st.builds(Augmentation, cutmix=mix_alphas),
    st.builds(Augmentation, mixup=mix_alphas, cutmix=mix_alphas),
)


@pytest.fixture(scope="module")
def pixels(images: Images) -> Tensor:
    return images.train.pixels[:BATCH_SIZE]


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augment_batch(pixels: Tensor, augmentation: Augmentation, seed: int = 0) -> Tensor:
    """One image, augmented as often as `pixels` has images."""
    return augment(pixels, augmentation, FILL, make_generator(seed))


# ------------------------------------------------------------------------- against torchvision


@settings(max_examples=40)
@given(down=batch_shifts, right=batch_shifts)
def test_a_shift_is_torchvisions_crop_of_the_padded_image(pixels: Tensor, down: list[int], right: list[int]) -> None:
    shifted = shift(pixels, torch.tensor(down), torch.tensor(right))
    padded = functional.pad(pixels, [30])
    expected = [functional.crop(i, 30 - d, 30 - r, 28, 28) for i, d, r in zip(padded, down, right, strict=True)]
    assert torch.equal(shifted, torch.stack(expected))


@settings(max_examples=20)
@given(st.lists(st.floats(-180, 180), min_size=BATCH_SIZE, max_size=BATCH_SIZE))
def test_a_rotation_is_torchvisions(pixels: Tensor, degrees: list[float]) -> None:
    rotated = rotate(pixels, torch.tensor(degrees))
    bilinear = InterpolationMode.BILINEAR
    expected = [functional.rotate(i[None].float(), d, bilinear)[0] for i, d in zip(pixels, degrees, strict=True)]
    torch.testing.assert_close(rotated.float(), torch.stack(expected), rtol=0, atol=0.51)


@pytest.mark.parametrize("quarters", [-2, -1, 0, 1, 2])
def test_quarter_turns_only_move_pixels(pixels: Tensor, quarters: int) -> None:
    rotated = rotate(pixels, torch.full((BATCH_SIZE,), 90.0 * quarters))
    assert torch.equal(rotated, torch.rot90(pixels, quarters, (1, 2)))


@given(st.lists(st.booleans(), min_size=BATCH_SIZE, max_size=BATCH_SIZE))
def test_a_flip_is_torchvisions_horizontal_flip(pixels: Tensor, flipped: list[bool]) -> None:
    expected = [functional.horizontal_flip(i) if f else i for i, f in zip(pixels, flipped, strict=True)]
    assert torch.equal(flip(pixels, torch.tensor(flipped)), torch.stack(expected))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(*[st.integers(0, 27)] * 2, *[st.integers(0, 28)] * 2), min_size=BATCH_SIZE, max_size=BATCH_SIZE)
)
def test_an_erased_rectangle_is_torchvisions(pixels: Tensor, rectangles: list[tuple[int, int, int, int]]) -> None:
    top, left, rows, columns = torch.tensor(rectangles).unbind(1)
    value = torch.tensor(FILL, dtype=torch.uint8)
    expected = [
        functional.erase(image[None], t, x, h, w, value)[0]
        for image, (t, x, h, w) in zip(pixels, rectangles, strict=True)
    ]
    assert torch.equal(erase(pixels, top, left, rows, columns, FILL), torch.stack(expected))


# ------------------------------------------------------------------------------------------ laws


@given(augmentations, st.integers(0, 2**32))
def test_shape_and_type_stay_and_the_given_pixels_are_left_alone(
    pixels: Tensor, augmentation: Augmentation, seed: int
) -> None:
    before = pixels.clone()
    changed = augment(pixels, augmentation, FILL, make_generator(seed))
    assert (changed.shape, changed.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(pixels, before)


@given(augmentations, st.integers(0, 2**32))
def test_the_generator_alone_decides(pixels: Tensor, augmentation: Augmentation, seed: int) -> None:
    once = augment(pixels, augmentation, FILL, make_generator(seed))
    torch.rand(1)
    assert torch.equal(augment(pixels, augmentation, FILL, make_generator(seed)), once)


def test_the_global_generator_is_not_drawn_from(pixels: Tensor) -> None:
    before = torch.get_rng_state()
    augment(pixels, Augmentation(shift=3, flip=0.5, erasing=0.5), FILL, make_generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_asked_changes_nothing_and_draws_nothing(pixels: Tensor) -> None:
    generator = make_generator()
    assert torch.equal(augment(pixels, Augmentation(), FILL, generator), pixels)
    assert torch.equal(generator.get_state(), make_generator().get_state())


@given(st.lists(st.booleans(), min_size=BATCH_SIZE, max_size=BATCH_SIZE))
def test_flipping_twice_gives_the_image_back(pixels: Tensor, flipped: list[bool]) -> None:
    which = torch.tensor(flipped)
    assert torch.equal(flip(flip(pixels, which), which), pixels)


# ----------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(rotation=20), Augmentation(shift=4), Augmentation(flip=0.5), Augmentation(erasing=0.5)],
)
def test_each_image_of_a_batch_gets_a_change_of_its_own(pixels: Tensor, augmentation: Augmentation) -> None:
    changed = augment_batch(pixels[:1].expand(200, 28, 28), augmentation)
    kinds = len(torch.unique(changed.flatten(1), dim=0))
    assert kinds == 2 if augmentation.flip else kinds > 40


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(rotation=20), Augmentation(shift=4), Augmentation(flip=0.5), Augmentation(erasing=0.5)],
)
def test_another_generator_gives_other_changes(pixels: Tensor, augmentation: Augmentation) -> None:
    assert not torch.equal(augment_batch(pixels, augmentation, seed=0), augment_batch(pixels, augmentation, seed=1))


def test_at_probability_one_every_image_is_flipped(pixels: Tensor) -> None:
    assert torch.equal(augment_batch(pixels, Augmentation(flip=1.0)), pixels.flip(-1))


def test_at_probability_one_every_image_loses_a_rectangle_of_the_fill() -> None:
    dark = torch.zeros(500, 28, 28, dtype=torch.uint8)
    erased = augment_batch(dark, Augmentation(erasing=1.0))
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
    changed = augment_batch(lopsided, Augmentation(**{name: 0.3}))
    share = (changed != lopsided).flatten(1).any(1).double().mean().item()
    assert share == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("largest", [15.0, 180.0])
def test_every_angle_up_to_the_largest_is_as_likely(largest: float) -> None:
    right_of_the_centre = torch.zeros(2_000, 28, 28, dtype=torch.uint8)
    right_of_the_centre[:, 13:15, 23:25] = 255
    rotated = augment_batch(right_of_the_centre, Augmentation(rotation=largest)).double()
    places = torch.arange(28) - 13.5
    up, right = -(rotated.sum(2) * places).sum(1), (rotated.sum(1) * places).sum(1)
    angles = torch.rad2deg(torch.atan2(up, right))
    assert angles.abs().max() < largest + 1
    assert stats.kstest(angles, stats.uniform(-largest, 2 * largest).cdf).pvalue > 1e-3


@pytest.mark.parametrize("largest", [1, 3])
def test_shifts_reach_every_place_up_to_the_largest_alike(largest: int) -> None:
    point = torch.zeros(4_000, 28, 28, dtype=torch.uint8)
    point[:, 14, 14] = 1
    moved = augment_batch(point, Augmentation(shift=largest)).long()
    down, right = moved.sum(2).argmax(1) - 14, moved.sum(1).argmax(1) - 14
    side = 2 * largest + 1
    counts = torch.bincount((down + largest) * side + right + largest, minlength=side**2)
    assert len(counts) == side**2
    expected = 4_000 / side**2
    # Pearson's statistic has as mean its degrees of freedom; six deviations above it is no accident.
    freedom = side**2 - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 6 * (2 * freedom) ** 0.5


def test_erased_rectangles_have_the_documented_area_and_both_shapes() -> None:
    erased = augment_batch(torch.zeros(4_000, 28, 28, dtype=torch.uint8), Augmentation(erasing=1.0)) > 0
    area = erased.double().mean((1, 2))
    # Sides are whole pixels, which moves an area a little past its bounds.
    assert area.min() > 0.01
    assert area.max() < 0.36
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert 0.4 < (rows > columns).double().mean() < 0.6
    assert (rows >= 2 * columns).any()
    assert (columns >= 2 * rows).any()


def test_erased_rectangles_are_on_average_as_large_as_torchvisions() -> None:
    ours = (augment_batch(torch.zeros(2_000, 28, 28, dtype=torch.uint8), Augmentation(erasing=1.0)) > 0).double().mean()
    transform = RandomErasing(p=1.0, value=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([transform(torch.zeros(1, 28, 28)) for _ in range(500)]).double().mean()
    assert abs(ours - theirs) < 0.02


def test_erasing_reaches_every_pixel() -> None:
    erased = augment_batch(torch.zeros(2_000, 28, 28, dtype=torch.uint8), Augmentation(erasing=1.0)) > 0
    assert erased.any(0).all()


# ---------------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 8.0, 100.0])
def test_shares_are_drawn_from_the_symmetric_beta(alpha: float) -> None:
    shares = symmetric_beta(5_000, alpha, make_generator())
    assert shares.dtype == torch.float32
    # At the ends themselves a small alpha has more than float32 can tell apart.
    places = torch.linspace(1e-3, 1 - 1e-3, 100, dtype=torch.float64)
    found = (shares.double()[:, None] <= places).double().mean(0)
    # Kolmogorov's distance is above this once in a thousand times.
    assert (found - torch.from_numpy(stats.beta(alpha, alpha).cdf(places))).abs().max() < 1.95 / 5_000**0.5


@given(st.floats(0, 100, exclude_min=True), st.integers(0, 2**32))
def test_a_share_is_a_share_whatever_alpha(alpha: float, seed: int) -> None:
    shares = symmetric_beta(200, alpha, make_generator(seed))
    assert ((shares >= 0) & (shares <= 1)).all()


@given(mix_augmentations, st.integers(0, 2**32))
def test_images_mix_with_their_neighbours_by_their_shares(
    pixels: Tensor, augmentation: Augmentation, seed: int
) -> None:
    """Of images of one grey each, the mean of a mixture tells the shares, whatever it was mixed by."""
    greys = torch.arange(BATCH_SIZE, dtype=torch.uint8) * 16
    mixed, share = mix(greys[:, None, None].expand(BATCH_SIZE, 28, 28), augmentation, make_generator(seed))
    assert ((share >= 0) & (share <= 1)).all()
    own = greys.float()
    torch.testing.assert_close(mixed.mean((1, 2)), share * own + (1 - share) * own.roll(1), rtol=1e-4, atol=1e-3)


@given(mix_alphas, st.integers(0, 2**32))
def test_mixup_blends_every_pixel_alike(pixels: Tensor, alpha: float, seed: int) -> None:
    mixed, share = mix(pixels, Augmentation(mixup=alpha), make_generator(seed))
    kept, own = share[:, None, None], pixels.float()
    torch.testing.assert_close(mixed, kept * own + (1 - kept) * own.roll(1, 0), rtol=1e-4, atol=1e-3)


@given(mix_alphas, st.integers(0, 2**32))
def test_cutmix_puts_in_a_rectangle_and_the_share_is_that_of_the_pixels_kept(alpha: float, seed: int) -> None:
    greys = torch.arange(BATCH_SIZE)[:, None, None].expand(BATCH_SIZE, 28, 28)
    mixed, share = mix(greys.byte(), Augmentation(cutmix=alpha), make_generator(seed))
    kept = mixed == greys
    assert torch.equal(mixed, torch.where(kept, greys, greys.roll(1, 0)).float())
    torch.testing.assert_close(share, kept.float().mean((1, 2)))
    for patch in ~kept:
        assert torch.equal(patch, patch.any(1)[:, None] & patch.any(0)[None, :])


def test_patches_reach_every_pixel_and_are_on_average_as_large_as_the_authors() -> None:
    dark = torch.zeros(4_000, 28, 28, dtype=torch.uint8)
    dark[::2] = 1  # every image's neighbour is of the other grey
    mixed, share = mix(dark, Augmentation(cutmix=1.0), make_generator())
    cut = mixed != dark
    assert cut.any(0).all()
    # Theirs, with numpy: sides of sqrt(1 - lambda), centred anywhere, clipped at the edges.
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand(3, 4_000, generator=generator)
    side, row, column = (28 * draw[0].sqrt()).long(), (28 * draw[1]).long(), (28 * draw[2]).long()
    lengths = [(c + side // 2).clamp(0, 28) - (c - side // 2).clamp(0, 28) for c in (row, column)]
    assert 1 - share.mean().item() == pytest.approx((lengths[0] * lengths[1]).double().mean().item() / 784, abs=0.02)


def test_with_both_a_coin_decides_for_each_image() -> None:
    greys = (torch.arange(4_000) % 2)[:, None, None].expand(4_000, 28, 28).byte()
    mixed, _ = mix(greys, Augmentation(mixup=1.0, cutmix=1.0), make_generator())
    blended = ((mixed > 0) & (mixed < 1)).flatten(1).all(1)
    assert blended.double().mean().item() == pytest.approx(0.5, abs=0.04)
    assert set(mixed[~blended].unique().tolist()) == {0.0, 1.0}


@given(mix_augmentations, st.integers(0, 2**32))
def test_the_generator_alone_decides_a_mixture(pixels: Tensor, augmentation: Augmentation, seed: int) -> None:
    before, state = pixels.clone(), torch.get_rng_state()
    once = mix(pixels, augmentation, make_generator(seed))
    assert all(map(torch.equal, once, mix(pixels, augmentation, make_generator(seed))))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pixels, before)
