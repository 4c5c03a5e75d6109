"""Tests of `results.statistics`: Wilson's interval, McNemar's test and scores of classes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from fmnist_search.results.statistics import class_scores, mcnemar, wilson

# ---------------------------------------------------------------------------- Wilson's interval


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"),
    # The examples of Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_equals_published_ones(hits: int, images: int, low: float, high: float) -> None:
    found = wilson(hits, images)
    assert found.value == hits / images
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


correct_and_total = st.integers(1, 100_000).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images)))


@given(correct_and_total)
def test_interval_contains_the_accuracy_and_lies_in_0_to_1(count: tuple[int, int]) -> None:
    found = wilson(*count)
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(correct_and_total)
def test_interval_of_the_mistakes_mirrors_that_of_the_hits(count: tuple[int, int]) -> None:
    hits, images = count
    found, mirrored = wilson(hits, images), wilson(images - hits, images)
    assert (1 - mirrored.high, 1 - mirrored.low) == (pytest.approx(found.low), pytest.approx(found.high))


# ------------------------------------------------------------------------------- McNemar's test


@given(st.integers(0, 3_000), st.integers(0, 3_000))
def test_mcnemar_equals_the_binomial_test_of_the_disagreements(one: int, other: int) -> None:
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_equals_a_result_by_hand() -> None:
    # At most one of six on one side: (1 + 6) / 64, doubled.
    assert mcnemar(1, 5) == 14 / 64
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1.0
    # The p-value is smaller than any positive float, and nothing overflows.
    assert mcnemar(0, 10_000) == 0.0


# ------------------------------------------------------------------------------ scores of classes

CLASS_COUNT = 4
label_pairs = st.lists(
    st.tuples(st.integers(0, CLASS_COUNT - 1), st.integers(0, CLASS_COUNT - 1)), min_size=1, max_size=60
)


@given(label_pairs)
def test_class_scores_equal_those_of_scikit_learn(given: list[tuple[int, int]]) -> None:
    true, predicted = zip(*given, strict=True)
    confusion = [[given.count((t, p)) for p in range(CLASS_COUNT)] for t in range(CLASS_COUNT)]
    columns = precision_recall_fscore_support(true, predicted, labels=range(CLASS_COUNT), zero_division=0)
    for score, expected in zip(class_scores(confusion), zip(*columns, strict=True), strict=True):
        assert (score.precision, score.recall, score.f1, score.support) == pytest.approx(expected)


def test_undefined_class_scores_are_zero() -> None:
    unseen, guessed = class_scores([[0, 0], [0, 3]])
    assert (unseen.precision, unseen.recall, unseen.f1, unseen.support) == (0, 0, 0, 0)
    assert (guessed.precision, guessed.recall, guessed.f1, guessed.support) == (1, 1, 1, 3)
