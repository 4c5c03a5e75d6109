"""The rule for a new champion: better by more than the noise, image by image if both have a record."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fmnist_search.registry.champion_rule import CorrectnessRecord, ValidationScore, compare_with_champion

IMAGE_COUNT = 10_848
DIGESTS = {"dataset_digest": "d", "split_digest": "s"}


def make_score(*accuracies: float, correctness: CorrectnessRecord | None = None) -> ValidationScore:
    std = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return ValidationScore(
        statistics.fmean(accuracies), std, len(accuracies), IMAGE_COUNT, **DIGESTS, correctness=correctness
    )


def score_with_std(mean: float, std: float, count: int) -> ValidationScore:
    """Return the score of an even number of seeds with exactly this mean and standard deviation."""
    offset = std * math.sqrt((count - 1) / count)
    return make_score(*[mean + offset, mean - offset] * (count // 2))


def score_with_record(correct: npt.NDArray[np.bool_]) -> ValidationScore:
    """Return the score of a correctness record, with the record."""
    record = CorrectnessRecord(correct, **DIGESTS)
    return make_score(*record.accuracies, correctness=record)


def random_correctness(accuracies: Sequence[float], images: int = IMAGE_COUNT, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Return bool (seeds, images) whose mistakes are mostly on the same difficult images, as those of real networks."""
    difficulty = np.random.default_rng(seed).random(images)
    noise = np.random.default_rng(seed + 1).normal(0, 0.02, (len(accuracies), images))
    ranks = (difficulty + noise).argsort(1).argsort(1)
    return ranks < np.round(np.asarray(accuracies) * images)[:, None]


correctness_pairs = st.integers(1, 40).flatmap(
    lambda images: st.tuples(
        *[arrays.arrays(np.bool_, st.tuples(st.integers(1, 4), st.just(images))) for _ in range(2)],
    )
)


# ------------------------------------------------------------------------------- image by image


def test_the_difference_must_exceed_twice_its_standard_error() -> None:
    # By hand: five images, two seeds against one.
    ours = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 1]], np.bool_)
    theirs = np.array([[1, 1, 0, 0, 0]], np.bool_)
    result = compare_with_champion(score_with_record(ours), score_with_record(theirs))
    differences = np.array([0, 0, 1, 0.5, 0.5])
    # Both seeds reach 0.8, so only the single seed of the other contributes: 0.4 · 0.6 / 5.
    error = math.sqrt(differences.var(ddof=1) / 5 + 0 / 2 + 0.4 * 0.6 / 5 / 1)
    assert (result.method, result.difference, result.standard_error) == (
        "paired",
        pytest.approx(0.4),
        pytest.approx(error),
    )
    assert result.is_better is (2 * error < 0.4)
    assert "40.00 points above the champion, image by image on the same 5 validation images" in result.reason
    assert f"{2 * error * 100:.2f}" in result.reason


def test_pairing_finds_a_difference_that_the_means_do_not_show() -> None:
    # With mistakes on the same images a third of a point is enough, though each mean is uncertain by more.
    one, other = (
        score_with_record(random_correctness([0.9036, 0.9034, 0.9035])),
        score_with_record(random_correctness([0.9001, 0.8999, 0.9000])),
    )
    paired = compare_with_champion(one, other)
    unpaired = compare_with_champion(*(dataclasses.replace(side, correctness=None) for side in (one, other)))
    assert (paired.method, paired.is_better) == ("paired", True)
    assert (unpaired.method, unpaired.is_better) == ("unpaired", False)
    assert paired.standard_error is not None
    assert unpaired.standard_error is not None
    assert paired.standard_error < unpaired.standard_error


def test_the_rule_rarely_prefers_an_equal_model_and_often_a_better_one() -> None:
    rng = np.random.default_rng(7)
    equals = betters = 0
    for _ in range(300):
        probabilities = rng.beta(6, 0.6, 2_000)
        better = np.minimum(1, probabilities + 0.03)
        ours, theirs, improved = (rng.random((2, 2_000)) < p for p in (probabilities, probabilities, better))
        equals += compare_with_champion(score_with_record(ours), score_with_record(theirs)).is_better
        betters += compare_with_champion(score_with_record(improved), score_with_record(theirs)).is_better
    # One side beyond two standard errors is 2.3 %; the seeds are counted twice, so it is less.
    assert equals <= 300 * 0.023
    assert betters > 300 * 0.5


@given(correctness_pairs)
def test_at_most_one_of_two_models_beats_the_other_and_none_beats_itself(
    both: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
) -> None:
    first, second = (score_with_record(correct) for correct in both)
    there, back = compare_with_champion(first, second), compare_with_champion(second, first)
    assert not (there.is_better and back.is_better)
    assert there.difference == pytest.approx(-back.difference if back.difference is not None else None)
    assert there.standard_error == pytest.approx(back.standard_error)
    assert not there.is_better or both[0].mean() > both[1].mean()
    assert not compare_with_champion(first, first).is_better


@given(correctness_pairs)
def test_a_record_is_read_back_unchanged(both: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]) -> None:
    for correct in both:
        again = CorrectnessRecord.from_json(CorrectnessRecord(correct, "data", "split").to_json())
        assert np.array_equal(again.correct, correct)
        assert (again.dataset_digest, again.split_digest) == ("data", "split")
        assert again.accuracies == pytest.approx(correct.mean(1))


def test_a_record_is_small() -> None:
    assert len(CorrectnessRecord(random_correctness([0.9] * 3), "d" * 64, "s" * 32).to_json()) < 6_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"dataset_digest": "d", "split_digest": "s", "images": 8, "right": []}',
        '{"dataset_digest": "d", "split_digest": "s", "images": 9, "right": ["/w=="]}',
        '{"dataset_digest": "d", "split_digest": "s", "images": 8, "right": ["?"]}',
        '{"dataset_digest": "d", "split_digest": "s", "images": 8, "right": [5]}',
        '{"dataset_digest": "d", "split_digest": "s", "images": "many", "right": ["/w=="]}',
    ],
)
def test_a_damaged_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is not shown to users
        CorrectnessRecord.from_json(text)


# ------------------------------------------------------------------------------- by the means


@pytest.mark.parametrize(
    ("count", "std", "champion_count", "champion_std"),
    [(4, 0.01, 4, 0.01), (2, 0.02, 6, 0.005), (2, 0.005, 2, 0.02)],
)
def test_without_a_record_the_means_must_differ_by_two_standard_errors_of_their_difference(
    count: int, std: float, champion_count: int, champion_std: float
) -> None:
    champion = score_with_std(0.9, champion_std, champion_count)
    two_errors = 2 * math.sqrt(std**2 / count + champion_std**2 / champion_count)
    for share, expected in ((1.001, True), (0.999, False), (0.0, False), (-2.0, False)):
        result = compare_with_champion(score_with_std(0.9 + share * two_errors, std, count), champion)
        assert (result.method, result.is_better) == ("unpaired", expected)


@pytest.mark.parametrize("accuracies", [(0.9,), (0.9, 0.9), (0.9, 0.9, 0.9, 0.9)], ids=len)
def test_seeds_that_agree_by_chance_have_the_error_of_independent_images(accuracies: Sequence[float]) -> None:
    # An accuracy over this number of images has a standard error of 0.29 points for one seed.
    error = math.sqrt(0.9 * 0.1 / IMAGE_COUNT / len(accuracies))
    for share, expected in ((1.1, True), (0.9, False)):
        ours = make_score(*(value + share * 2 * math.sqrt(2) * error for value in accuracies))
        assert compare_with_champion(ours, make_score(*accuracies)).is_better is expected


def test_a_record_of_only_one_of_the_two_is_not_used() -> None:
    ours = score_with_record(random_correctness([0.95, 0.95]))
    assert compare_with_champion(ours, make_score(0.9, 0.9)).method == "unpaired"
    assert (
        compare_with_champion(make_score(0.95, 0.95), score_with_record(random_correctness([0.9, 0.9]))).method
        == "unpaired"
    )
    assert compare_with_champion(ours, score_with_record(random_correctness([0.9], images=100))).method == "unpaired"


# ------------------------------------------------------------------------------- not comparable


@pytest.mark.parametrize(("key", "what"), [("dataset_digest", "data"), ("split_digest", "validation images")])
def test_scores_on_other_images_are_not_compared(key: str, what: str) -> None:
    poor, ours = make_score(0.5, 0.5), make_score(0.9, 0.9)
    assert compare_with_champion(ours, poor).is_better
    result = compare_with_champion(ours, dataclasses.replace(poor, **{key: "another"}))
    assert (result.is_better, result.method, result.difference) == (False, "none", None)
    assert f"evaluated on other {what}" in result.reason


def test_a_champion_without_a_validation_score_is_not_replaced() -> None:
    result = compare_with_champion(make_score(0.9, 0.9), None)
    assert (result.is_better, result.method) == (False, "none")
    assert "no confirmed validation score" in result.reason
