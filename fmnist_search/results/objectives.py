"""What a study optimizes beside the validation accuracy: the cost of a trial, and the Pareto front of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ACCURACY = "val_accuracy"
"""The first metric of every study, which is maximized."""

COST_LABELS = {
    "mult_adds": "multiply-adds",
    "parameters": "parameters",
    "seconds_per_epoch": "seconds per epoch",
}
"""The metrics that a study can minimize beside it, with their labels."""


@dataclass(frozen=True)
class TrialCost:
    """The second value of a trial, in a study with two metrics: the name of the metric, and its value."""

    metric: str
    value: float

    def __str__(self) -> str:
        """Return the value as text: counts with separators, seconds with two decimals."""
        return f"{self.value:,.2f}" if self.metric == "seconds_per_epoch" else f"{self.value:,.0f}"


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal points (cost, gain), in ascending order of cost.

    Of equal points the first is on the front.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
