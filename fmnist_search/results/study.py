"""The trials of a study and its summary, as frozen values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.champion import Champion
from fmnist_search.results.objectives import TrialCost, cost_of, pareto_front
from fmnist_search.results.training import Overhead, TrialState


@dataclass(frozen=True)
class Prediction:
    """The accuracy that a trial is expected to have after its last epoch: median, and ends of the 90 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2%} ({self.low:.2%} to {self.high:.2%})"


PAUSED_AT_END = "was paused when the search ended"
"""Why a trial was pruned that was paused until a limit of the study was reached."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study. The `value` of a pruned trial is the last one that it reported.

    `curve` holds the validation accuracy after each epoch. A trial with `will_retry` goes on later or, in studies of
    earlier versions, is repeated as a new trial. `parameters` is the number of parameters of its network, `mult_adds`
    that of multiply-adds of one image, `seconds_per_epoch` the mean of its epochs with validation; 0 means unknown.
    `cost` is the second value of a completed trial, if its study has two metrics. A paused trial may have a
    `prediction`. `started_at`, `ended_at` and `trained_until` are Unix times in seconds; they do not count when
    records are compared. A trial that was pruned while it was paused was trained until it was paused.
    """

    number: int
    state: TrialState
    value: float | None
    epochs: int
    recipe: Recipe
    seconds: float
    reason: str | None = None
    duplicate_of: int | None = None
    run_id: str | None = None
    curve: tuple[float, ...] = ()
    overhead: Overhead = field(default_factory=Overhead)
    will_retry: bool = False
    parameters: int = 0
    mult_adds: int = 0
    seconds_per_epoch: float = 0.0
    cost: TrialCost | None = None
    prediction: Prediction | None = None
    started_at: float | None = field(default=None, compare=False)
    ended_at: float | None = field(default=None, compare=False)
    trained_until: float | None = field(default=None, compare=False)

    @property
    def is_final(self) -> bool:
        """Whether the trial counts towards a budget: one that goes on, is repeated or was refused does not."""
        return not self.will_retry and self.state.is_final and self.state is not TrialState.REFUSED


@dataclass(frozen=True)
class RunningTrial:
    """A trial that has not ended. `curve` holds the validation accuracy after each epoch so far."""

    number: int
    recipe: Recipe
    curve: tuple[float, ...]


class StopReason(Enum):
    """Why a study starts no further trial. The values are shown to the user and stored."""

    TARGET = "its target accuracy is reached"
    TRIALS = "its budget of trials is spent"
    EPOCHS = "its budget of epochs is spent"
    MINUTES = "its budget of minutes is spent"
    PATIENCE = "its patience is at an end: no better trial in a while"
    FAILURES = "too many trials failed"
    LOSSES = "too many workers were lost with their machines"
    EXHAUSTED = "its space is exhausted"
    REFUSED = "its budget refused too many networks in a row: raise its limits, or search smaller networks"
    INTERRUPTED = "it was interrupted"
    OPEN = "its budget is not spent"

    @property
    def is_final(self) -> bool:
        """Whether the search is complete, so that a champion can be selected."""
        return self not in (StopReason.FAILURES, StopReason.LOSSES, StopReason.INTERRUPTED, StopReason.OPEN)


@dataclass(frozen=True)
class Importances:
    """The relative importance of each hyperparameter, the greatest first, and the number of trials it is based on.

    If a study searches several families, a hyperparameter of one family has the family's name in front: `cnn.depth`.
    """

    RELIABLE_TRIALS: ClassVar[int] = 8
    """Importances from fewer trials are mostly chance."""

    by_name: dict[str, float]
    trials: int

    @property
    def are_reliable(self) -> bool:
        """Whether there are enough trials to conclude something from the importances."""
        return self.trials >= self.RELIABLE_TRIALS


@dataclass(frozen=True)
class StudySummary:
    """The state of a study: every trial, why this run of it stopped, and the champion if there is one.

    `new_trials` counts the trials of this run of the study, `seconds` is its duration, and `searched_seconds` the
    duration of all runs. `boundary_warnings` holds a warning for each domain whose bounds the best trials are close to.
    `overhead` is the mean over the trials. `running` holds the trials that another process trains at present.
    """

    name: str
    question: str
    trials: tuple[TrialRecord, ...]
    stop_reason: StopReason
    new_trials: int
    seconds: float
    run_id: str | None = None
    champion: Champion | None = None
    boundary_warnings: tuple[str, ...] = ()
    overhead: Overhead | None = None
    searched_seconds: float = 0.0
    running: tuple[RunningTrial, ...] = ()

    def count(self, state: TrialState) -> int:
        """Return the number of trials in this state, without those answered from an earlier equal trial."""
        return sum(trial.state is state for trial in self.trials if trial.duplicate_of is None)

    @property
    def ranked_trials(self) -> list[TrialRecord]:
        """The completed trials, best first; of equal ones the earlier first."""
        return rank_trials(self.trials)

    @property
    def cost_metric(self) -> str | None:
        """The cost that the study minimizes, as far as its completed trials tell; None if it has one metric."""
        return next((trial.cost.metric for trial in self.trials if trial.cost), None)

    @property
    def front(self) -> list[TrialRecord]:
        """The Pareto front of accuracy and cost, in ascending order of cost; empty in a study with one metric."""
        return front_trials(self.trials, self.cost_metric) if self.cost_metric else []

    @property
    def best(self) -> TrialRecord | None:
        """The completed trial with the highest value."""
        return next(iter(self.ranked_trials), None)


def mean_overhead(trials: Sequence[TrialRecord], tracking_seconds: float) -> Overhead | None:
    """Return the mean overhead of the trials that were trained; None if there are none.

    `tracking_seconds` is the time that MLflow took for all of them.
    """
    measured = [trial.overhead for trial in trials if trial.overhead.seconds]
    if not measured:
        return None
    return Overhead(
        seconds=statistics.fmean(overhead.seconds for overhead in measured),
        build=statistics.fmean(overhead.build for overhead in measured),
        capture=statistics.fmean(overhead.capture for overhead in measured),
        sampling=statistics.fmean(overhead.sampling for overhead in measured),
        tracking=tracking_seconds / len(measured),
    )


def trial_cost(trial: TrialRecord, metric: str) -> TrialCost | None:
    """Return a cost of a trial, the stored one if its study minimizes this metric; None if it is not known."""
    return trial.cost if trial.cost and trial.cost.metric == metric else cost_of(trial, metric)


def front_trials(trials: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """Return the completed trials on the Pareto front of accuracy and a cost, in ascending order of cost.

    Of trials that are equal in both, the earliest is on it. Trials whose cost is not known are not.
    """
    known = [(cost.value, trial) for trial in rank_trials(trials) if (cost := trial_cost(trial, metric))]
    return [known[index][1] for index in pareto_front([(cost, trial.value or 0.0) for cost, trial in known])]


def paused_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the paused trials, those that promise most first."""

    def promise(trial: TrialRecord) -> float:
        return trial.prediction.median if trial.prediction else trial.value or 0.0

    paused = [trial for trial in trials if trial.state is TrialState.PAUSED]
    return sorted(paused, key=lambda trial: (-promise(trial), trial.number))


def rank_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the completed trials, best first; of equal ones the earlier first."""
    completed = [trial for trial in trials if trial.state is TrialState.COMPLETED and trial.duplicate_of is None]
    return sorted(completed, key=lambda trial: (-(trial.value or 0.0), trial.number))


def cost_rank(trial: TrialRecord, metric: str) -> tuple[float, float]:
    """Return what ranks trials by a cost: the cheapest first, the better of equal ones; those without it last."""
    cost = trial_cost(trial, metric)
    return cost.value if cost else math.inf, -(trial.value or 0.0)
