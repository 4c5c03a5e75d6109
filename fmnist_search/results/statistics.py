"""Mean, standard deviation, confidence interval and significance test of accuracies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from fmnist_search.results.training import Accuracy


def mean_and_std(accuracies: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation of at least one accuracy; the deviation of a single one is 0."""
    return statistics.fmean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0


def format_mean_std(accuracies: Sequence[float]) -> str:
    """Return mean, standard deviation and number of accuracies as text: `92.10% ± 0.20% (n = 3)`."""
    mean, std = mean_and_std(accuracies)
    spread = f" ± {std:.2%}" if len(accuracies) > 1 else ""
    return f"{mean:.2%}{spread} (n = {len(accuracies)})"


def wilson(correct: int, images: int) -> Accuracy:
    """Return the accuracy `correct / images` with the 95 % score interval of Wilson (JASA 22, 1927)."""
    z = 1.959963984540054
    share = correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    reach = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return Accuracy(correct, images, max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact two-sided test.

    `only_first` and `only_second` count the images that only one of two classifiers predicts correctly. If both are
    equally good, each such image is a fair coin toss, so the exact binomial distribution replaces McNemar's
    approximation (Psychometrika 12, 1947; Agresti, Categorical Data Analysis, section 11.1).
    """
    tosses, fewer = only_first + only_second, min(only_first, only_second)
    ways = term = 1
    for heads in range(fewer):
        term = term * (tosses - heads) // (heads + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << tosses))
