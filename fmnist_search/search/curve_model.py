"""A Gaussian process over recipes and epochs, which predicts where a learning curve ends.

An accuracy a is modelled as z = -log(1 - a), which spreads out the good ones; z is brought to mean 0 and deviation 1.
The covariance of recipe x after t epochs and recipe y after u epochs is

    common^2 R(t, u)  +  shared^2 M(x, y) R'(t, u)  +  own^2 R''(t, u), if x and y are the same trial
    +  noise^2, if they are the same epoch of the same trial

R, R' and R'' are Gaussian functions of log t - log u, each with a length of its own. M is the Matern function of order
5/2 with a length for each feature. So there is a curve that all trials have in common, a deviation that similar recipes
share, and one that belongs to a trial. Deviations and lengths are those that are most probable given the curves, under
broad normal priors on their logarithms.

Freeze-thaw Bayesian optimization models curves jointly over recipes in this way (Swersky, Snoek and Adams 2014, arXiv
1406.3896, with an exponential decay as the covariance over epochs; Rakotoarison et al. 2024, arXiv 2404.16795, with a
network trained in advance in place of the process).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SCALES = ("common", "common_length", "shared", "shared_length", "own", "own_length", "noise")
"""The parameters besides the lengths of the features, in the order of `CurveModel.parameters`."""

PRIOR_MEANS = np.log([1.0, 1.0, 1.0, 2.0, 0.3, 1.0, 0.1])
PRIOR_DEVIATION = 1.0
FEATURE_LENGTH_MEAN, FEATURE_LENGTH_DEVIATION = 0.0, 1.0
"""Of the logarithm of a length of a feature, which is between 0 and 1."""

MAX_FIT_ITERATIONS = 40
MAX_ACCURACY = 0.9999
MIN_DEVIATION = 1e-3


@dataclass(frozen=True)
class Curves:
    """Learning curves: `features` (trials, d) in 0..1, and for each observation its trial, its epoch and its accuracy.

    The arrays `trials` (int64), `epochs` and `accuracies` (float64) have one element for each observation.
    """

    features: Array
    trials: Integers
    epochs: Array
    accuracies: Array

    @classmethod
    def create(cls, features: Array, curves: Sequence[Mapping[int, float]]) -> Curves:
        """Return the curves of trials with these features; each maps epochs to accuracies."""
        rows = [(trial, epoch, curve[epoch]) for trial, curve in enumerate(curves) for epoch in sorted(curve)]
        trials, epochs, accuracies = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        return cls(features, trials.astype(np.int64), epochs, accuracies)

    def __len__(self) -> int:
        return len(self.trials)

    def with_observations(self, trials: Integers, epochs: Array, accuracies: Array) -> Curves:
        """Return these curves with more observations of the same trials."""
        return Curves(
            self.features,
            np.concatenate([self.trials, trials]),
            np.concatenate([self.epochs, epochs]),
            np.concatenate([self.accuracies, accuracies]),
        )


class CurveModel:
    """The process given curves; `parameters` are the logarithms of `SCALES` and of the lengths of the features."""

    def __init__(self, curves: Curves, parameters: Array):
        self.parameters = parameters
        self._curves = curves
        self._points = _Points(curves.features[curves.trials], curves.trials, np.log(curves.epochs))
        targets = to_target(curves.accuracies)
        self._mean, self._deviation = float(targets.mean()), max(float(targets.std()), MIN_DEVIATION)
        covariance = _Covariance(self._points, self._points, parameters)
        noise = np.exp(2 * parameters[SCALES.index("noise")])
        self._factor = cholesky(covariance.matrix + (noise + 1e-8) * np.eye(len(targets)), lower=True)
        self._weights = cho_solve((self._factor, True), (targets - self._mean) / self._deviation)

    @classmethod
    def fit(cls, curves: Curves) -> CurveModel:
        """Return the process with the most probable parameters."""
        points = _Points(curves.features[curves.trials], curves.trials, np.log(curves.epochs))
        targets = to_target(curves.accuracies)
        targets = (targets - targets.mean()) / max(float(targets.std()), MIN_DEVIATION)
        means = np.concatenate([PRIOR_MEANS, np.full(curves.features.shape[1], FEATURE_LENGTH_MEAN)])
        deviations = np.concatenate(
            [np.full(len(SCALES), PRIOR_DEVIATION), np.full(curves.features.shape[1], FEATURE_LENGTH_DEVIATION)]
        )
        found = minimize(
            _negative_log_posterior,
            means,
            (points, targets, means, deviations),
            jac=True,
            method="L-BFGS-B",
            bounds=[(mean - 5, mean + 5) for mean in means],
            options={"maxiter": MAX_FIT_ITERATIONS},
        )
        return cls(curves, found.x)

    def predict(self, features: Array, trials: Integers, epochs: Array | float) -> tuple[Array, Array]:
        """Return the mean and the deviation of -log(1 - accuracy) of trials after epochs, without the noise.

        `features` (n, d) belong to `trials` (n,), whose numbers are those of the curves, or -1 for a new trial.
        """
        points = _Points(features, trials, np.atleast_1d(np.log(epochs)))
        covariance = _Covariance(points, self._points, self.parameters).matrix
        explained = solve_triangular(self._factor, covariance.T, lower=True)
        common, shared, own = np.exp(2 * self.parameters[[0, 2, 4]])
        variance = np.maximum(common + shared + own - (explained**2).sum(0), 1e-12)
        return covariance @ self._weights * self._deviation + self._mean, np.sqrt(variance) * self._deviation


def to_target(accuracies: Array | float) -> Array:
    """Return -log(1 - accuracy)."""
    return np.asarray(-np.log1p(-np.minimum(accuracies, MAX_ACCURACY)))


def to_accuracy(targets: Array | float) -> Array:
    """Return the accuracy for -log(1 - accuracy)."""
    return np.asarray(-np.expm1(-np.asarray(targets)))


@dataclass(frozen=True)
class _Points:
    """Where the process is looked at; one epoch for all points has shape (1,)."""

    features: Array
    trials: Integers
    log_epochs: Array


class _Covariance:
    """The covariance between points, without noise, and its three terms."""

    def __init__(self, left: _Points, right: _Points, parameters: Array):
        common, common_length, shared, shared_length, own, own_length, _ = np.exp(parameters[: len(SCALES)])
        weights = np.exp(-parameters[len(SCALES) :])
        differences = (left.log_epochs[:, None] - right.log_epochs[None]) ** 2
        self.differences = differences
        self.radius = np.sqrt(_squared_distances(left.features * weights, right.features * weights))
        self._decay = np.exp(-np.sqrt(5) * self.radius)
        matern = (1 + np.sqrt(5) * self.radius + 5 / 3 * self.radius**2) * self._decay
        self._over_epochs = shared**2 * np.exp(-0.5 * differences / shared_length**2)
        self.common = common**2 * np.exp(-0.5 * differences / common_length**2)
        self.shared = matern * self._over_epochs
        same = (left.trials[:, None] == right.trials[None]) & (left.trials[:, None] >= 0)
        self.own = np.where(same, own**2 * np.exp(-0.5 * differences / own_length**2), 0.0)
        self.matrix: Array = self.common + self.shared + self.own

    def slope(self) -> Array:
        """Return the derivative of the shared term with respect to the squared distance of the features."""
        return np.asarray(-5 / 6 * self._over_epochs * (1 + np.sqrt(5) * self.radius) * self._decay)


def _squared_distances(left: Array, right: Array) -> Array:
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
    return np.asarray(np.maximum(squares, 0.0))


def _negative_log_posterior(
    parameters: Array, points: _Points, targets: Array, means: Array, deviations: Array
) -> tuple[float, Array]:
    """Return the negative logarithm of the posterior of the parameters, and its gradient."""
    covariance = _Covariance(points, points, parameters)
    lengths, noise = np.exp(parameters[[1, 3, 5]]), np.exp(2 * parameters[6])
    factor = cholesky(covariance.matrix + (noise + 1e-8) * np.eye(len(targets)), lower=True)
    weights = cho_solve((factor, True), targets)
    # Half the derivative of the negative log likelihood with respect to each element of the covariance.
    outer = 0.5 * (cho_solve((factor, True), np.eye(len(targets))) - np.outer(weights, weights))
    terms = (covariance.common, covariance.shared, covariance.own)
    gradient = np.empty_like(parameters)
    for place, (term, length) in enumerate(zip(terms, lengths, strict=True)):
        product = outer * term
        gradient[2 * place] = 2 * product.sum()
        gradient[2 * place + 1] = (product * covariance.differences).sum() / length**2
    gradient[6] = 2 * noise * np.trace(outer)
    scaled = points.features * np.exp(-parameters[len(SCALES) :])
    slopes = outer * covariance.slope()
    # The derivative of a squared distance with respect to the logarithm of a length is -2 (x - y)^2 / length^2.
    squares = 2 * (scaled**2 * slopes.sum(1)[:, None]).sum(0) - 2 * (scaled * (slopes @ scaled)).sum(0)
    gradient[len(SCALES) :] = -2 * squares
    scores = (parameters - means) / deviations
    value = float(0.5 * targets @ weights) + np.log(np.diag(factor)).sum() + 0.5 * scores @ scores
    return value, np.asarray(gradient + scores / deviations)
