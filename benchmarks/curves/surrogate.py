"""Learning curves of any recipe of a recorded space: a Gaussian process over the recorded ones, with their noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from benchmarks.curves.carry import std_over_seeds
from benchmarks.curves.recorded import Array, RecordedRecipes
from benchmarks.curves.table import CurveTable
from fmnist_search.recipe.hyperparameters import Value


class SurrogateCurves:
    """Predicts the learning curve of a recipe; `loo_error` is the error of the last epoch, in points, by leave-one-out.

    Each hyperparameter has its own length scale. They and the noise maximize the marginal likelihood of all epochs.
    """

    def __init__(self, table: CurveTable):
        self._recorded = RecordedRecipes(table, "epochs")
        self.config = self._recorded.config
        self.noise = np.array(std_over_seeds(table))
        curves = np.array(self._recorded.curves)
        self._mean, self._scale = curves.mean(0), curves.std(0)
        targets = (curves - self._mean) / self._scale
        squares = self._recorded.squared_differences(self._recorded.features)
        start = np.zeros(squares.shape[-1] + 1)
        start[-1] = np.log(0.1)
        fitted = minimize(
            _negative_likelihood, start, (squares, targets), method="L-BFGS-B", bounds=[(-4, 4)] * len(start)
        )
        self._weights = np.exp(fitted.x[:-1])
        inverse = np.linalg.inv(_covariance(squares, fitted.x))
        self._coefficients = inverse @ targets
        errors = self._coefficients[:, -1] / np.diag(inverse) * self._scale[-1]
        self.loo_error = float(100 * np.sqrt((errors**2).mean()))
        self.spread = float(100 * self._scale[-1])

    def predict(self, values: Mapping[str, Value]) -> Array:
        """Return the accuracy of a recipe after each epoch, without noise."""
        squares = self._recorded.squared_differences(self._recorded.feature_vector(values)[None])[0]
        kernel = np.exp(-squares @ self._weights)
        curve: Array = np.clip(self._mean + self._scale * (kernel @ self._coefficients), 0.0, 1.0)
        return curve


def _covariance(squares: Array, parameters: Array) -> Array:
    kernel: Array = np.exp(-squares @ np.exp(parameters[:-1])) + np.exp(parameters[-1]) * np.eye(len(squares))
    return kernel


def _negative_likelihood(parameters: Array, squares: Array, targets: Array) -> float:
    factor = cho_factor(_covariance(squares, parameters), lower=True)
    solved = cho_solve(factor, targets)
    log_determinant = 2 * np.log(np.diag(factor[0])).sum()
    return float(0.5 * (targets * solved).sum() + 0.5 * targets.shape[1] * log_determinant)
