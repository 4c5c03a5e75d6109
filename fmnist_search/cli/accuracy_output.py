"""Results on the test images as text and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmnist_search.results.training import Accuracy, TestResult


def format_seed_tests(tests: Sequence[Accuracy]) -> str:
    """Return mean and standard deviation of accuracy and loss over seeds."""
    from fmnist_search.results.statistics import format_mean_std, mean_and_std

    mean, deviation = mean_and_std([test.loss or 0.0 for test in tests])
    return f"{format_mean_std([test.value for test in tests])} on the test images (loss {mean:.4f} ± {deviation:.4f})"


def print_class_scores(test: TestResult) -> None:
    """Print how each class of the test images is recognised, and what it is taken for most often."""
    from fmnist_search.cli import output
    from fmnist_search.results.statistics import class_scores

    rows = []
    for label, score in enumerate(class_scores(test.confusion)):
        wrong = {
            name: n for name, n in zip(test.classes, test.confusion[label], strict=True) if name != test.classes[label]
        }
        name, count = max(wrong.items(), key=lambda item: item[1])
        shares = [f"{score.recall:.2%}", f"{score.precision:.2%}"]
        rows.append([test.classes[label], str(score.support), *shares, f"{count} as {name}" if count else "-"])
    output.print_table(output.make_table(["class", "images", "recall", "precision", "most mistakes"], rows))
