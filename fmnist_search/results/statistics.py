"""Means, deviations, confidence intervals and tests of accuracies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmnist_search.results.training import Accuracy

if TYPE_CHECKING:
    pass


def mean_and_std(accuracies: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of one accuracy or more; the deviation of a single one is 0."""
    return statistics.fmean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0


def format_mean_std(accuracies: Sequence[float]) -> str:
    """The same for people, with how many there are."""
    mean, deviation = mean_and_std(accuracies)
    spread = f" ± {deviation:.2%}" if len(accuracies) > 1 else ""
    return f"{mean:.2%}{spread} (n = {len(accuracies)})"


def wilson(hits: int, images: int) -> Accuracy:
    """An accuracy with the 95 % score interval of Wilson (JASA 22, 1927)."""
    z = 1.959963984540054
    share = hits / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    reach = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return Accuracy(hits, images, max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)))


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's exact two-sided test on the images that one of two classifiers alone gets right.

    Were both equally good, each of these images would fall to either like a fair coin: the binomial distribution takes
    the place of McNemar's approximation (Psychometrika 12, 1947; Agresti, Categorical Data Analysis, section 11.1).
    """
    tosses, fewer = only_first + only_second, min(only_first, only_second)
    ways = term = 1
    for heads in range(fewer):
        term = term * (tosses - heads) // (heads + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << tosses))
