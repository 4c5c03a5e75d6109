"""The classifier: normalisation, test-time augmentation, and what an exported model keeps of both."""

from __future__ import annotations

import io
import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fmnist_search.data.images import Images
from fmnist_search.models.classifier import Classifier, Ensemble, augmented_views, build
from fmnist_search.models.cnn import Cnn
from fmnist_search.recipe.recipe import NORMALISATIONS, TEST_TIME_VIEWS
from fmnist_search.registry.packaging import ProbabilityModel
from fmnist_search.training.augmentation import shift

VIEW_COUNTS = {"none": 1, "flip": 2, "shift": 5, "flip+shift": 10}


def make_classifier(images: Images, test_time: str = "none", normalisation: str = "per-pixel") -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(Cnn(depth=2, width_1=8, width_2=8), *images.normalization_stats(normalisation), test_time).eval()


@pytest.fixture(scope="module")
def pixels(images: Images) -> Tensor:
    return images.validation.pixels[:7]


def test_normalised_training_pixels_have_mean_0_and_a_deviation_of_at_most_1(images: Images) -> None:
    mean, deviation = images.per_pixel_stats
    normalised = (images.train.pixels.double() - mean) / deviation
    torch.testing.assert_close(normalised.mean(0), torch.zeros(28, 28, dtype=torch.float64), atol=1e-5, rtol=0)
    assert normalised.std(0, correction=0).max() < 1 + 1e-6
    assert normalised.abs().max() < 60


@pytest.mark.parametrize(("normalisation", "bounds"), [("unit", (0.0, 1.0)), ("centred", (-0.5, 0.5))])
def test_fixed_normalisations_scale_black_and_white_to_their_bounds(
    images: Images, normalisation: str, bounds: tuple[float, float]
) -> None:
    mean, deviation = images.normalization_stats(normalisation)
    assert ((0 - mean) / deviation, (255 - mean) / deviation) == bounds


def test_a_classifier_does_not_share_memory_with_the_statistics(images: Images) -> None:
    before = images.per_pixel_stats[0].clone()
    make_classifier(images).mean.zero_()
    assert torch.equal(images.per_pixel_stats[0], before)


@pytest.mark.parametrize("test_time", TEST_TIME_VIEWS)
def test_views_are_the_image_its_mirror_image_and_its_shifts_by_one_pixel(test_time: str, pixels: Tensor) -> None:
    views = augmented_views(pixels, test_time)
    assert len(views) == VIEW_COUNTS[test_time]
    assert torch.equal(views[0], pixels)
    moves = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)] if "shift" in test_time else [(0, 0)]
    expected = [shift(pixels, *torch.tensor([[down], [right]]).expand(2, len(pixels))) for down, right in moves]
    expected += [view.flip(-1) for view in expected] if "flip" in test_time else []
    as_sets = [{tuple(view.flatten().tolist()) for view in some} for some in (views, expected)]
    assert as_sets[0] == as_sets[1]
    assert len(as_sets[0]) == len(views)


@pytest.mark.parametrize("test_time", TEST_TIME_VIEWS)
def test_probabilities_are_the_mean_over_the_views(test_time: str, images: Images, pixels: Tensor) -> None:
    plain, viewed = make_classifier(images), make_classifier(images, test_time)
    with torch.no_grad():
        expected = torch.stack([plain(view).softmax(1) for view in augmented_views(pixels, test_time)]).mean(0)
        torch.testing.assert_close(viewed(pixels).softmax(1), expected)
        viewed.train()
        plain.train()
        assert torch.equal(viewed(pixels), plain(pixels))


@pytest.mark.parametrize("test_time", ["flip", "flip+shift"])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_an_image_and_its_mirror_image_have_equal_probabilities(test_time: str, images: Images, seed: int) -> None:
    model, plain = make_classifier(images, test_time), make_classifier(images)
    noise = torch.randint(0, 256, (3, 28, 28), generator=torch.Generator().manual_seed(seed)).float()
    with torch.no_grad():
        torch.testing.assert_close(model(noise).softmax(1), model(noise.flip(-1)).softmax(1))
        assert not torch.allclose(plain(noise), plain(noise.flip(-1)))


def test_the_members_of_an_ensemble_keep_their_views(images: Images, pixels: Tensor) -> None:
    members = [make_classifier(images, "flip"), make_classifier(images, "none", "global")]
    with torch.no_grad():
        expected = torch.stack([member(pixels).softmax(1) for member in members]).mean(0)
        torch.testing.assert_close(Ensemble(members).eval()(pixels).softmax(1), expected)


def test_bfloat16_averages_in_float32(images: Images, pixels: Tensor) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = make_classifier(images, "flip+shift")(pixels)
    assert logits.dtype == torch.float32
    assert functional.softmax(logits, dim=1).sum(1).allclose(torch.ones(7))


# Views and normalisation do not affect each other: each value occurs, not each pair.
@pytest.mark.parametrize(
    ("test_time", "normalisation"),
    [
        pytest.param(views, normalisation, marks=pytest.mark.slow if views == "shift" else ())
        for views, normalisation in zip(TEST_TIME_VIEWS, itertools.cycle(NORMALISATIONS), strict=False)
    ],
)
def test_an_exported_classifier_gives_the_same_probabilities_for_any_number_of_images(
    test_time: str, normalisation: str, images: Images, pixels: Tensor
) -> None:
    model = ProbabilityModel(make_classifier(images, test_time, normalisation)).eval()
    floats = pixels.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (floats[:2],), dynamic_shapes=({0: batch},))
        file = io.BytesIO()
        torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        for count in (1, 2, 7):
            torch.testing.assert_close(loaded(floats[:count]), model(floats[:count]))
