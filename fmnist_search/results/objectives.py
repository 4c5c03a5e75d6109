"""What a study optimizes beside the validation accuracy: the cost of a trial, and the Pareto front of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

ACCURACY = "val_accuracy"
"""The first metric of every study, which is maximized."""

COST_LABELS = {
    "mult_adds": "multiply-adds",
    "parameters": "parameters",
    "seconds_per_epoch": "seconds per epoch",
}
"""The metrics that every study can minimize beside it, with their labels; `own_costs` has those of users."""


class HasCosts(Protocol):
    """What has a value of each cost, 0 if it is not known: a trial that was trained."""

    @property
    def mult_adds(self) -> int:
        """Multiply-adds of one image."""

    @property
    def parameters(self) -> int:
        """Parameters of the network."""

    @property
    def seconds_per_epoch(self) -> float:
        """Mean of the epochs with their validation."""


@dataclass(frozen=True)
class TrialCost:
    """A cost of a trial: the name of the metric and its value."""

    metric: str
    value: float

    def __str__(self) -> str:
        """Return the value as text: counts with separators, seconds with two decimals, others with four digits."""
        if self.metric not in COST_LABELS:
            return f"{self.value:.4g}"
        return f"{self.value:,.2f}" if self.metric == "seconds_per_epoch" else f"{self.value:,.0f}"


def cost_of(trial: HasCosts, metric: str) -> TrialCost | None:
    """Return a cost of a trial; None if it is not known, or is none of `COST_LABELS`."""
    values = {
        "mult_adds": trial.mult_adds,
        "parameters": trial.parameters,
        "seconds_per_epoch": trial.seconds_per_epoch,
    }
    return TrialCost(metric, values[metric]) if values.get(metric) else None


def known_costs(trial: HasCosts) -> dict[str, float]:
    """Return the costs of a trial that are known, by metric."""
    costs = {metric: cost_of(trial, metric) for metric in COST_LABELS}
    return {metric: cost.value for metric, cost in costs.items() if cost}


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
