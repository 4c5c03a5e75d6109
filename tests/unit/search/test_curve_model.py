"""The model of learning curves: what it predicts of curves that have not ended."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from fmnist_search.search.curve_model import (
    PRIOR_MEANS,
    CurveModel,
    Curves,
    _negative_log_posterior,
    _Points,
    to_accuracy,
    to_target,
)

LAST_EPOCH = 9


def curve(quality: float, epochs: int = LAST_EPOCH) -> dict[int, float]:
    """Return a curve that rises towards an accuracy between 0.7 and 0.9."""
    return {epoch: 0.7 + 0.2 * quality - 0.4 * 0.6**epoch for epoch in range(1, epochs + 1)}


def known_curves(count: int = 12) -> tuple[np.ndarray, Curves]:
    """Return the features of recipes, the first of which decides, and their curves; the last stops after 2 epochs."""
    features = np.random.default_rng(0).random((count, 3))
    curves = [curve(row[0]) for row in features[:-1]] + [curve(features[-1, 0], 2)]
    return features, Curves.create(features, curves)


@pytest.fixture(scope="module")
def fitted() -> tuple[np.ndarray, CurveModel]:
    features, curves = known_curves()
    return features, CurveModel.fit(curves)


def test_a_curve_that_has_begun_is_continued(fitted: tuple[np.ndarray, CurveModel]) -> None:
    features, model = fitted
    last = len(features) - 1
    mean, deviation = model.predict(features[last:], np.array([last]), LAST_EPOCH)
    expected = curve(features[last, 0])[LAST_EPOCH]
    assert to_accuracy(mean)[0] == pytest.approx(expected, abs=0.01)
    assert abs(to_target(expected) - mean[0]) < 3 * deviation[0]


def test_a_new_recipe_is_predicted_from_similar_ones_and_less_surely(fitted: tuple[np.ndarray, CurveModel]) -> None:
    features, model = fitted
    new = np.array([[0.1, 0.5, 0.5], [0.9, 0.5, 0.5]])
    means, deviations = model.predict(new, np.array([-1, -1]), LAST_EPOCH)
    assert means[1] > means[0]
    _, begun = model.predict(features[-1:], np.array([len(features) - 1]), LAST_EPOCH)
    assert deviations.min() > begun[0]


def test_what_was_observed_is_predicted(fitted: tuple[np.ndarray, CurveModel]) -> None:
    features, model = fitted
    means, _ = model.predict(features[:3], np.arange(3), 5.0)
    assert to_accuracy(means) == pytest.approx([curve(row[0])[5] for row in features[:3]], abs=0.01)


def test_the_gradient_of_the_posterior_is_that_of_finite_differences() -> None:
    features, curves = known_curves(6)
    points = _Points(features[curves.trials], curves.trials, np.log(curves.epochs))
    targets = to_target(curves.accuracies) - to_target(curves.accuracies).mean()
    means = np.concatenate([PRIOR_MEANS, np.zeros(3)])
    arguments = points, targets, means, np.ones(len(means))
    parameters = means + np.random.default_rng(1).normal(0, 0.3, len(means))
    found = approx_fprime(parameters, lambda p: _negative_log_posterior(p, *arguments)[0], 1e-6)
    assert _negative_log_posterior(parameters, *arguments)[1] == pytest.approx(found, rel=1e-3, abs=1e-3)


def test_a_certain_accuracy_is_bounded() -> None:
    features = np.array([[0.0], [1.0]])
    model = CurveModel.fit(Curves.create(features, [{1: 1.0, 2: 1.0}, {1: 0.0, 2: 1.0}]))
    means, deviations = model.predict(features, np.arange(2), 3.0)
    assert np.isfinite([*means, *deviations]).all()
