"""Mean, standard deviation, confidence interval and significance test of accuracies, and scores of classes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_search.results.training import Accuracy


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class, in 0..1, and the number of its images (`support`).

    `precision` is 0 for a class that is never predicted, `recall` for a class without images.
    """

    precision: float
    recall: float
    f1: float
    support: int


def mean_and_std(accuracies: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation of at least one accuracy; the deviation of a single one is 0."""
    return statistics.fmean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0


def format_mean_std(accuracies: Sequence[float]) -> str:
    """Return mean, standard deviation and number of accuracies as text: `92.10% ± 0.20% (n = 3)`."""
    mean, std = mean_and_std(accuracies)
    spread = f" ± {std:.2%}" if len(accuracies) > 1 else ""
    return f"{mean:.2%}{spread} (n = {len(accuracies)})"


def wilson(correct: int, images: int, loss: float | None = None) -> Accuracy:
    """Return the accuracy `correct / images` with the 95 % score interval of Wilson (JASA 22, 1927), and the loss."""
    z = 1.959963984540054
    share = correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    reach = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return Accuracy(correct, images, max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)), loss)


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


def class_scores(confusion: Sequence[Sequence[int]]) -> tuple[ClassScore, ...]:
    """Return precision, recall and F1 of each class, from a confusion matrix with rows true and columns predicted."""
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    return tuple(
        ClassScore(
            precision=_ratio(row[label], predicted[label]),
            recall=_ratio(row[label], sum(row)),
            f1=_ratio(2 * row[label], sum(row) + predicted[label]),
            support=sum(row),
        )
        for label, row in enumerate(confusion)
    )


def _ratio(part: int, total: int) -> float:
    return part / total if total else 0.0
