"""Tests of `training.augmentation` against torchvision for each image, and of the random numbers of each image."""

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
    """Return augmented copies of the pixels, with a generator seeded by `seed`."""
    return augment(pixels, augmentation, FILL, make_generator(seed))


# ------------------------------------------------------------------------- against torchvision


@settings(max_examples=40)
@given(down=batch_shifts, right=batch_shifts)
def test_shift_equals_the_crop_of_a_padded_image(pixels: Tensor, down: list[int], right: list[int]) -> None:
    shifted = shift(pixels, torch.tensor(down), torch.tensor(right))
    padded = functional.pad(pixels, [30])
    expected = [functional.crop(i, 30 - d, 30 - r, 28, 28) for i, d, r in zip(padded, down, right, strict=True)]
    assert torch.equal(shifted, torch.stack(expected))


@settings(max_examples=20)
@given(st.lists(st.floats(-180, 180), min_size=BATCH_SIZE, max_size=BATCH_SIZE))
def test_rotation_equals_that_of_torchvision(pixels: Tensor, degrees: list[float]) -> None:
    rotated = rotate(pixels, torch.tensor(degrees))
    bilinear = InterpolationMode.BILINEAR
    expected = [functional.rotate(i[None].float(), d, bilinear)[0] for i, d in zip(pixels, degrees, strict=True)]
    torch.testing.assert_close(rotated.float(), torch.stack(expected), rtol=0, atol=0.51)


@pytest.mark.parametrize("quarters", [-2, -1, 0, 1, 2])
def test_rotation_by_90_degrees_moves_pixels_only(pixels: Tensor, quarters: int) -> None:
    rotated = rotate(pixels, torch.full((BATCH_SIZE,), 90.0 * quarters))
    assert torch.equal(rotated, torch.rot90(pixels, quarters, (1, 2)))


@given(st.lists(st.booleans(), min_size=BATCH_SIZE, max_size=BATCH_SIZE))
def test_flip_equals_that_of_torchvision(pixels: Tensor, flipped: list[bool]) -> None:
    expected = [functional.horizontal_flip(i) if f else i for i, f in zip(pixels, flipped, strict=True)]
    assert torch.equal(flip(pixels, torch.tensor(flipped)), torch.stack(expected))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(*[st.integers(0, 27)] * 2, *[st.integers(0, 28)] * 2), min_size=BATCH_SIZE, max_size=BATCH_SIZE)
)
def test_erased_rectangle_equals_that_of_torchvision(
    pixels: Tensor, rectangles: list[tuple[int, int, int, int]]
) -> None:
    top, left, rows, columns = torch.tensor(rectangles).unbind(1)
    value = torch.tensor(FILL, dtype=torch.uint8)
    expected = [
        functional.erase(image[None], t, x, h, w, value)[0]
        for image, (t, x, h, w) in zip(pixels, rectangles, strict=True)
    ]
    assert torch.equal(erase(pixels, top, left, rows, columns, FILL), torch.stack(expected))


# ----------------------------------------------------------------------------------------- properties


@given(augmentations, st.integers(0, 2**32))
def test_shape_dtype_and_input_stay_unchanged(pixels: Tensor, augmentation: Augmentation, seed: int) -> None:
    before = pixels.clone()
    changed = augment(pixels, augmentation, FILL, make_generator(seed))
    assert (changed.shape, changed.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(pixels, before)


@given(augmentations, st.integers(0, 2**32))
def test_result_depends_on_the_generator_only(pixels: Tensor, augmentation: Augmentation, seed: int) -> None:
    once = augment(pixels, augmentation, FILL, make_generator(seed))
    torch.rand(1)
    assert torch.equal(augment(pixels, augmentation, FILL, make_generator(seed)), once)


def test_global_generator_is_not_used(pixels: Tensor) -> None:
    before = torch.get_rng_state()
    augment(pixels, Augmentation(shift=3, flip=0.5, erasing=0.5), FILL, make_generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_no_augmentation_changes_and_draws_nothing(pixels: Tensor) -> None:
    generator = make_generator()
    assert torch.equal(augment(pixels, Augmentation(), FILL, generator), pixels)
    assert torch.equal(generator.get_state(), make_generator().get_state())


@given(st.lists(st.booleans(), min_size=BATCH_SIZE, max_size=BATCH_SIZE))
def test_flipping_twice_restores_the_image(pixels: Tensor, flipped: list[bool]) -> None:
    which = torch.tensor(flipped)
    assert torch.equal(flip(flip(pixels, which), which), pixels)


# ----------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(rotation=20), Augmentation(shift=4), Augmentation(flip=0.5), Augmentation(erasing=0.5)],
)
def test_each_image_has_its_own_random_parameters(pixels: Tensor, augmentation: Augmentation) -> None:
    changed = augment_batch(pixels[:1].expand(200, 28, 28), augmentation)
    kinds = len(torch.unique(changed.flatten(1), dim=0))
    assert kinds == 2 if augmentation.flip else kinds > 40


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(rotation=20), Augmentation(shift=4), Augmentation(flip=0.5), Augmentation(erasing=0.5)],
)
def test_another_seed_gives_another_result(pixels: Tensor, augmentation: Augmentation) -> None:
    assert not torch.equal(augment_batch(pixels, augmentation, seed=0), augment_batch(pixels, augmentation, seed=1))


def test_each_image_is_flipped_at_probability_1(pixels: Tensor) -> None:
    assert torch.equal(augment_batch(pixels, Augmentation(flip=1.0)), pixels.flip(-1))


def test_each_image_is_erased_at_probability_1() -> None:
    dark = torch.zeros(500, 28, 28, dtype=torch.uint8)
    erased = augment_batch(dark, Augmentation(erasing=1.0))
    assert erased.flatten(1).any(1).all()
    assert set(erased.unique().tolist()) == {0, FILL}
    for image in erased == FILL:
        rows, columns = image.any(1), image.any(0)
        assert torch.equal(image, rows[:, None] & columns[None, :]), "the erased pixels are not a rectangle"


@pytest.mark.parametrize("name", ["flip", "erasing"])
def test_probability_is_the_fraction_of_changed_images(name: str) -> None:
    asymmetric = torch.zeros(4_000, 28, 28, dtype=torch.uint8)
    asymmetric[:, :, 0] = 1
    asymmetric[:, :, 1:] = 2
    changed = augment_batch(asymmetric, Augmentation(**{name: 0.3}))
    fraction = (changed != asymmetric).flatten(1).any(1).double().mean().item()
    assert fraction == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("largest", [15.0, 180.0])
def test_angles_are_uniform(largest: float) -> None:
    bar_right_of_centre = torch.zeros(2_000, 28, 28, dtype=torch.uint8)
    bar_right_of_centre[:, 13:15, 23:25] = 255
    rotated = augment_batch(bar_right_of_centre, Augmentation(rotation=largest)).double()
    offsets = torch.arange(28) - 13.5
    up, right = -(rotated.sum(2) * offsets).sum(1), (rotated.sum(1) * offsets).sum(1)
    angles = torch.rad2deg(torch.atan2(up, right))
    assert angles.abs().max() < largest + 1
    assert stats.kstest(angles, stats.uniform(-largest, 2 * largest).cdf).pvalue > 1e-3


@pytest.mark.parametrize("largest", [1, 3])
def test_shifts_are_uniform(largest: int) -> None:
    point = torch.zeros(4_000, 28, 28, dtype=torch.uint8)
    point[:, 14, 14] = 1
    moved = augment_batch(point, Augmentation(shift=largest)).long()
    down, right = moved.sum(2).argmax(1) - 14, moved.sum(1).argmax(1) - 14
    side = 2 * largest + 1
    counts = torch.bincount((down + largest) * side + right + largest, minlength=side**2)
    assert len(counts) == side**2
    expected = 4_000 / side**2
    # The mean of Pearson's statistic is its degrees of freedom; the limit is six standard deviations above.
    freedom = side**2 - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 6 * (2 * freedom) ** 0.5


def test_erased_rectangles_have_the_documented_area_and_ratio() -> None:
    erased = augment_batch(torch.zeros(4_000, 28, 28, dtype=torch.uint8), Augmentation(erasing=1.0)) > 0
    area = erased.double().mean((1, 2))
    # Sides are whole pixels, so an area can lie slightly outside its bounds.
    assert area.min() > 0.01
    assert area.max() < 0.36
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert 0.4 < (rows > columns).double().mean() < 0.6
    assert (rows >= 2 * columns).any()
    assert (columns >= 2 * rows).any()


def test_mean_erased_area_equals_that_of_torchvision() -> None:
    ours = (augment_batch(torch.zeros(2_000, 28, 28, dtype=torch.uint8), Augmentation(erasing=1.0)) > 0).double().mean()
    transform = RandomErasing(p=1.0, value=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([transform(torch.zeros(1, 28, 28)) for _ in range(500)]).double().mean()
    assert abs(ours - theirs) < 0.02


def test_erasing_reaches_every_pixel() -> None:
    erased = augment_batch(torch.zeros(2_000, 28, 28, dtype=torch.uint8), Augmentation(erasing=1.0)) > 0
    assert erased.any(0).all()


# -------------------------------------------------------------------------------------------------- mix


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 8.0, 100.0])
def test_draws_follow_the_symmetric_beta_distribution(alpha: float) -> None:
    draws = symmetric_beta(5_000, alpha, make_generator())
    assert draws.dtype == torch.float32
    # Very close to 0 and 1, a small alpha has more mass than float32 can resolve.
    thresholds = torch.linspace(1e-3, 1 - 1e-3, 100, dtype=torch.float64)
    found = (draws.double()[:, None] <= thresholds).double().mean(0)
    # Kolmogorov's distance exceeds this with a probability of 0.001.
    assert (found - torch.from_numpy(stats.beta(alpha, alpha).cdf(thresholds))).abs().max() < 1.95 / 5_000**0.5


@given(st.floats(0, 100, exclude_min=True), st.integers(0, 2**32))
def test_draws_are_in_range_for_every_alpha(alpha: float, seed: int) -> None:
    draws = symmetric_beta(200, alpha, make_generator(seed))
    assert ((draws >= 0) & (draws <= 1)).all()


@given(mix_augmentations, st.integers(0, 2**32))
def test_mixed_images_contain_the_returned_fraction_of_each(
    pixels: Tensor, augmentation: Augmentation, seed: int
) -> None:
    """With images of one grey each, the mean of a mixed image reveals the fractions for both methods."""
    greys = torch.arange(BATCH_SIZE, dtype=torch.uint8) * 16
    mixed, own_fraction = mix(greys[:, None, None].expand(BATCH_SIZE, 28, 28), augmentation, make_generator(seed))
    assert ((own_fraction >= 0) & (own_fraction <= 1)).all()
    own = greys.float()
    torch.testing.assert_close(
        mixed.mean((1, 2)), own_fraction * own + (1 - own_fraction) * own.roll(1), rtol=1e-4, atol=1e-3
    )


@given(mix_alphas, st.integers(0, 2**32))
def test_mixup_blends_all_pixels_equally(pixels: Tensor, alpha: float, seed: int) -> None:
    mixed, own_fraction = mix(pixels, Augmentation(mixup=alpha), make_generator(seed))
    own_weight, own = own_fraction[:, None, None], pixels.float()
    torch.testing.assert_close(mixed, own_weight * own + (1 - own_weight) * own.roll(1, 0), rtol=1e-4, atol=1e-3)


@given(mix_alphas, st.integers(0, 2**32))
def test_cutmix_replaces_a_rectangle_of_the_returned_fraction(alpha: float, seed: int) -> None:
    greys = torch.arange(BATCH_SIZE)[:, None, None].expand(BATCH_SIZE, 28, 28)
    mixed, own_fraction = mix(greys.byte(), Augmentation(cutmix=alpha), make_generator(seed))
    unchanged = mixed == greys
    assert torch.equal(mixed, torch.where(unchanged, greys, greys.roll(1, 0)).float())
    torch.testing.assert_close(own_fraction, unchanged.float().mean((1, 2)))
    for patch in ~unchanged:
        assert torch.equal(patch, patch.any(1)[:, None] & patch.any(0)[None, :])


def test_cutmix_patches_reach_every_pixel_and_have_the_mean_area() -> None:
    dark = torch.zeros(4_000, 28, 28, dtype=torch.uint8)
    dark[::2] = 1  # the neighbour of each image has the other grey
    mixed, own_fraction = mix(dark, Augmentation(cutmix=1.0), make_generator())
    cut = mixed != dark
    assert cut.any(0).all()
    # The authors' method: sides of sqrt(1 - lambda), a uniform centre, clipped at the borders.
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand(3, 4_000, generator=generator)
    side, row, column = (28 * draw[0].sqrt()).long(), (28 * draw[1]).long(), (28 * draw[2]).long()
    lengths = [(c + side // 2).clamp(0, 28) - (c - side // 2).clamp(0, 28) for c in (row, column)]
    assert 1 - own_fraction.mean().item() == pytest.approx(
        (lengths[0] * lengths[1]).double().mean().item() / 784, abs=0.02
    )


def test_each_image_is_mixed_by_one_of_both_methods() -> None:
    greys = (torch.arange(4_000) % 2)[:, None, None].expand(4_000, 28, 28).byte()
    mixed, _ = mix(greys, Augmentation(mixup=1.0, cutmix=1.0), make_generator())
    blended = ((mixed > 0) & (mixed < 1)).flatten(1).all(1)
    assert blended.double().mean().item() == pytest.approx(0.5, abs=0.04)
    assert set(mixed[~blended].unique().tolist()) == {0.0, 1.0}


@given(mix_augmentations, st.integers(0, 2**32))
def test_mix_depends_on_the_generator_only(pixels: Tensor, augmentation: Augmentation, seed: int) -> None:
    before, state = pixels.clone(), torch.get_rng_state()
    once = mix(pixels, augmentation, make_generator(seed))
    assert all(map(torch.equal, once, mix(pixels, augmentation, make_generator(seed))))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pixels, before)
