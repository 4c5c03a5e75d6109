"""The split: stratified, seeded, and the same in every trial of a study."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.data.images import LabelledImages
from fmnist_search.data.split import split, stratified_sample
from fmnist_search.recipe.groups import Data

Indices = npt.NDArray[np.int64]


def quotas_by_largest_remainder(sizes: list[int], count: int) -> list[int]:
    """Return the quotas by the largest remainder method in exact fractions; ties go to the lower class."""
    shares = [Fraction(count * size, max(sum(sizes), 1)) for size in sizes]
    quotas = [int(share) for share in shares]
    neediest = sorted(range(len(sizes)), key=lambda label: (quotas[label] - shares[label], label))
    for label in neediest[: count - sum(quotas)]:
        quotas[label] += 1
    return quotas


class_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=10).filter(lambda sizes: sum(sizes) > 0)


@settings(max_examples=200)
@given(class_sizes, st.data())
def test_a_stratified_sample_has_the_quota_of_each_class(sizes: list[int], data: st.DataObject) -> None:
    sizes[-1] = max(sizes[-1], 1)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(data.draw(st.integers(0, 99))).shuffle(labels)
    count = data.draw(st.integers(0, len(labels)))
    drawn = stratified_sample(labels, np.arange(len(labels)), count, np.random.default_rng(0))
    assert len(drawn) == count
    assert np.bincount(labels[drawn], minlength=len(sizes)).tolist() == quotas_by_largest_remainder(sizes, count)
    assert (np.diff(drawn) > 0).all(), "the indices are not sorted, or one is drawn twice"


@given(st.integers(0, 30), st.integers(0, 5))
def test_a_stratified_sample_contains_only_candidates_and_depends_only_on_the_generator(count: int, seed: int) -> None:
    labels = np.tile(np.arange(3), 20)
    candidates = np.arange(0, 60, 2)

    def draw() -> Indices:
        return stratified_sample(labels, candidates, count, np.random.default_rng(seed))

    assert set(draw()) <= set(candidates)
    assert (draw() == draw()).all()


def test_all_images_of_a_class_are_equally_likely() -> None:
    labels = np.repeat(np.arange(2), [10, 20])
    counts: Counter[int] = Counter()
    for seed in range(600):
        counts.update(stratified_sample(labels, np.arange(30), 15, np.random.default_rng(seed)).tolist())
    assert set(counts) == set(range(30))
    assert all(240 < count < 360 for count in counts.values())


@settings(max_examples=25)
@given(st.integers(0, 59_900), st.data())
def test_training_and_validation_images_are_disjoint_and_complete(
    training_images: LabelledImages, validation: int, data: st.DataObject
) -> None:
    count = data.draw(st.just(0) | st.integers(100, 60_000 - validation))
    wanted = Data(validation=validation, train_images=count, seed=data.draw(st.integers(0, 2**31)))
    labels = training_images.labels.numpy()
    training, held_back = split(labels, wanted)
    assert (len(training), len(held_back)) == (wanted.training_count, validation)
    assert (training.dtype, held_back.dtype) == (torch.int64, torch.int64)
    assert np.intersect1d(training, held_back).size == 0
    assert (training.diff() > 0).all()
    assert (held_back.diff() > 0).all()
    again = split(labels, wanted)
    assert torch.equal(training, again[0])
    assert torch.equal(held_back, again[1])
    assert torch.bincount(training_images.labels[held_back], minlength=10).tolist() == quotas_by_largest_remainder(
        [6_000] * 10, validation
    )
    left = torch.bincount(training_images.labels, minlength=10) - torch.bincount(
        training_images.labels[held_back], minlength=10
    )
    assert torch.bincount(training_images.labels[training], minlength=10).tolist() == quotas_by_largest_remainder(
        left.tolist(), wanted.training_count
    )


def test_the_default_split_has_49152_training_and_10848_validation_images(training_images: LabelledImages) -> None:
    training, validation = split(training_images.labels.numpy(), Data())
    assert (len(training), len(validation)) == (49_152, 10_848)
    assert len(training) == 3 * 2**14


@pytest.mark.parametrize(("share", "count"), [(0.2, 12_000), (0.5, 30_000), (0, 0)])
def test_a_share_of_validation_images_is_a_share_of_all_sixty_thousand(
    share: float, count: int, training_images: LabelledImages
) -> None:
    training, validation = split(training_images.labels.numpy(), Data(validation=share))  # type: ignore[arg-type]
    assert (len(training), len(validation)) == (60_000 - count, count)


def test_a_subset_of_the_training_images_does_not_change_the_validation_images(training_images: LabelledImages) -> None:
    labels = training_images.labels.numpy()
    training, validation = split(labels, Data())
    sliced, same = split(labels, Data(train_images=1_003))
    assert torch.equal(same, validation)
    assert set(sliced.tolist()) <= set(training.tolist())


def test_another_seed_gives_other_images(training_images: LabelledImages) -> None:
    labels = training_images.labels.numpy()
    assert not torch.equal(split(labels, Data())[1], split(labels, Data(seed=1))[1])
