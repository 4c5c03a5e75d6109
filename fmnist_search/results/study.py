"""What a training run leaves behind: plain frozen values that every room may read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.champion import Champion
from fmnist_search.results.training import Overhead, TrialState


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study, as a table shows it; `value` of a pruned one is the last that it reported.

    `curve` holds the validation accuracy after each epoch. One that `will_retry` lost its worker and is tried anew
    as another trial. `parameters` counts those of its network, 0 where they are not known; `began_at` and `ended_at`
    are Unix seconds: when it ran is no part of what it is, so rows that differ in nothing else are equal.
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
    comes_again: bool = False
    parameters: int = 0
    began_at: float | None = field(default=None, compare=False)
    ended_at: float | None = field(default=None, compare=False)

    @property
    def is_final(self) -> bool:
        """Whether it counts against a budget: one that comes again does not."""
        return not self.comes_again and self.state is not TrialState.INTERRUPTED


class StopReason(Enum):
    """Why a study starts no further trial, or that it would."""

    TARGET = "its target accuracy is reached"
    TRIALS = "its budget of trials is spent"
    EPOCHS = "its budget of epochs is spent"
    MINUTES = "its budget of minutes is spent"
    PATIENCE = "its patience is at an end: no better trial in a while"
    FAILURES = "too many trials failed"
    EXHAUSTED = "its space is exhausted"
    INTERRUPTED = "it was interrupted"
    OPEN = "its budget is not spent"

    @property
    def is_final(self) -> bool:
        """Whether the search came to its end, so that a champion can be found."""
        return self not in (StopReason.FAILURES, StopReason.INTERRUPTED, StopReason.OPEN)


@dataclass(frozen=True)
class Importances:
    """Share of the importance of each hyperparameter, the greatest first, and how many trials it rests on.

    Where a study searches several families, what belongs to one carries its name: `cnn.depth`.
    """

    by_name: dict[str, float]
    trials: int


@dataclass(frozen=True)
class StudySummary:
    """A study as it stands: every trial, what ended this run of it, and what came of it.

    `new_trials` counts the trials of this run of the study, `seconds` is how long it took, and `searched_seconds` how
    long it has searched in all its runs; `boundary_warnings` says in a line each which domains the best trials would
    leave; `overhead` is a trial's on average.
    """

    name: str
    question: str
    trials: tuple[TrialRecord, ...]
    ended_by: StopReason
    new_trials: int
    seconds: float
    run_id: str | None = None
    champion: Champion | None = None
    edges: tuple[str, ...] = ()
    overhead: Overhead | None = None
    searched_seconds: float = 0.0

    def count(self, state: TrialState) -> int:
        """Trials that ended so; those answered from an earlier equal one do not count."""
        return sum(row.state is state for row in self.trials if row.duplicate_of is None)

    @property
    def ranked_trials(self) -> list[TrialRecord]:
        """Completed trials, the best first; of equal ones the earlier first."""
        return rank_trials(self.trials)

    @property
    def best(self) -> TrialRecord | None:
        """The completed trial with the highest value."""
        return next(iter(self.ranked_trials), None)


def mean_overhead(trials: Sequence[TrialRecord], tracking_seconds: float) -> Overhead | None:
    """What a trial took on average beside training and validation; None where no trial was trained."""
    measured = [row.overhead for row in trials if row.overhead.seconds]
    if not measured:
        return None
    return Overhead(
        seconds=statistics.fmean(overhead.seconds for overhead in measured),
        build=statistics.fmean(overhead.build for overhead in measured),
        capture=statistics.fmean(overhead.capture for overhead in measured),
        sampling=statistics.fmean(overhead.sampling for overhead in measured),
        tracking=tracking_seconds / len(measured),
    )


def rank_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The completed of these trials, the best first; of equal ones the earlier first."""
    done = [row for row in trials if row.state is TrialState.COMPLETED and row.duplicate_of is None]
    return sorted(done, key=lambda row: (-(row.value or 0.0), row.number))
