"""The rule for a new champion: past the noise, image by image where both have a record."""

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
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return ValidationScore(
        statistics.fmean(accuracies), deviation, len(accuracies), IMAGE_COUNT, **DIGESTS, correctness=correctness
    )


def score_with_std(mean: float, std: float, count: int) -> ValidationScore:
    """Figures of an even number of seeds with exactly this mean and this deviation."""
    reach = std * math.sqrt((count - 1) / count)
    return make_score(*[mean + reach, mean - reach] * (count // 2))


def score_with_record(correct: npt.NDArray[np.bool_]) -> ValidationScore:
    """Figures with their record."""
    hits = CorrectnessRecord(correct, **DIGESTS)
    return make_score(*hits.accuracies, correctness=hits)


def random_correctness(accuracies: Sequence[float], images: int = IMAGE_COUNT, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Records whose mistakes fall on the hard images first, as those of real networks do."""
    hardness = np.random.default_rng(seed).random(images)
    noise = np.random.default_rng(seed + 1).normal(0, 0.02, (len(accuracies), images))
    ranks = (hardness + noise).argsort(1).argsort(1)
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
    verdict = compare_with_champion(score_with_record(ours), score_with_record(theirs))
    differences = np.array([0, 0, 1, 0.5, 0.5])
    # Both seeds reached 0.8, so only the single one adds: 0.4 · 0.6 / 5.
    error = math.sqrt(differences.var(ddof=1) / 5 + 0 / 2 + 0.4 * 0.6 / 5 / 1)
    assert (verdict.method, verdict.difference, verdict.standard_error) == (
        "paired",
        pytest.approx(0.4),
        pytest.approx(error),
    )
    assert verdict.is_better is (2 * error < 0.4)
    assert "40.00 points above it, image by image on the same 5 validation images" in verdict.reason
    assert f"{2 * error * 100:.2f}" in verdict.reason


def test_pairing_sees_what_the_figures_alone_cannot() -> None:
    # Mistakes on the same hard images: a third of a point tells, though each figure alone is uncertain by more.
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


def test_the_rule_is_rarely_wrong_about_equals_and_often_right_about_betters() -> None:
    rng = np.random.default_rng(7)
    equals = betters = 0
    for _ in range(300):
        probabilities = rng.beta(6, 0.6, 2_000)
        better = np.minimum(1, probabilities + 0.03)
        ours, theirs, improved = (rng.random((2, 2_000)) < p for p in (probabilities, probabilities, better))
        equals += compare_with_champion(score_with_record(ours), score_with_record(theirs)).is_better
        betters += compare_with_champion(score_with_record(improved), score_with_record(theirs)).is_better
    # Two standard errors on one side are 2.3 %; the seeds count twice, so it is less.
    assert equals <= 300 * 0.023
    assert betters > 300 * 0.5


@given(correctness_pairs)
def test_of_two_at_most_one_beats_the_other_and_nobody_beats_an_equal(
    both: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
) -> None:
    mine, yours = (score_with_record(right) for right in both)
    there, back = compare_with_champion(mine, yours), compare_with_champion(yours, mine)
    assert not (there.is_better and back.is_better)
    assert there.difference == pytest.approx(-back.difference if back.difference is not None else None)
    assert there.standard_error == pytest.approx(back.standard_error)
    assert not there.is_better or both[0].mean() > both[1].mean()
    assert not compare_with_champion(mine, mine).is_better


@given(correctness_pairs)
def test_a_record_comes_back_as_it_was(both: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]) -> None:
    for right in both:
        again = CorrectnessRecord.from_json(CorrectnessRecord(right, "data", "split").to_json())
        assert np.array_equal(again.correct, right)
        assert (again.dataset_digest, again.split_digest) == ("data", "split")
        assert again.accuracies == pytest.approx(right.mean(1))


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
    with pytest.raises(ValueError):  # noqa: PT011 - what is wrong is for nobody to read
        CorrectnessRecord.from_json(text)


# ------------------------------------------------------------------------------ by the means alone


@pytest.mark.parametrize(
    ("count", "deviation", "holders_count", "holders_deviation"),
    [(4, 0.01, 4, 0.01), (2, 0.02, 6, 0.005), (2, 0.005, 2, 0.02)],
)
def test_without_a_record_the_means_compare_by_two_standard_errors_of_their_difference(
    count: int, deviation: float, holders_count: int, holders_deviation: float
) -> None:
    holder = score_with_std(0.9, holders_deviation, holders_count)
    two_errors = 2 * math.sqrt(deviation**2 / count + holders_deviation**2 / holders_count)
    for share, expected in ((1.001, True), (0.999, False), (0.0, False), (-2.0, False)):
        verdict = compare_with_champion(score_with_std(0.9 + share * two_errors, deviation, count), holder)
        assert (verdict.method, verdict.is_better) == ("unpaired", expected)


@pytest.mark.parametrize("accuracies", [(0.9,), (0.9, 0.9), (0.9, 0.9, 0.9, 0.9)], ids=len)
def test_seeds_that_agree_by_chance_claim_no_certainty(accuracies: Sequence[float]) -> None:
    # One count over the validation images is uncertain by itself, here by 0.29 points a seed.
    error = math.sqrt(0.9 * 0.1 / IMAGE_COUNT / len(accuracies))
    for share, expected in ((1.1, True), (0.9, False)):
        ours = make_score(*(value + share * 2 * math.sqrt(2) * error for value in accuracies))
        assert compare_with_champion(ours, make_score(*accuracies)).is_better is expected


def test_a_record_of_one_side_alone_is_of_no_use() -> None:
    ours = score_with_record(random_correctness([0.95, 0.95]))
    assert compare_with_champion(ours, make_score(0.9, 0.9)).method == "unpaired"
    assert (
        compare_with_champion(make_score(0.95, 0.95), score_with_record(random_correctness([0.9, 0.9]))).method
        == "unpaired"
    )
    assert compare_with_champion(ours, score_with_record(random_correctness([0.9], images=100))).method == "unpaired"


# --------------------------------------------------------------------------- what does not compare


@pytest.mark.parametrize(("key", "what"), [("dataset_digest", "data"), ("split_digest", "validation images")])
def test_figures_of_other_images_do_not_compare(key: str, what: str) -> None:
    poor, ours = make_score(0.5, 0.5), make_score(0.9, 0.9)
    assert compare_with_champion(ours, poor).is_better
    verdict = compare_with_champion(ours, dataclasses.replace(poor, **{key: "another"}))
    assert (verdict.is_better, verdict.method, verdict.difference) == (False, "none", None)
    assert f"judged on other {what}" in verdict.reason


def test_a_champion_without_figures_of_ours_is_not_beaten() -> None:
    verdict = compare_with_champion(make_score(0.9, 0.9), None)
    assert (verdict.is_better, verdict.method) == (False, "none")
    assert "no confirmed figures" in verdict.reason
