"""What a training run leaves behind: plain frozen values that every room may read."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from fmnist_search.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor


class Decision(Enum):
    """What an observer returns after each epoch."""

    CONTINUE = "continue"
    PRUNE = "prune"
    INTERRUPT = "interrupt"


@dataclass(frozen=True)
class EpochReport:
    """One epoch. Training figures are of the raw weights as they moved, validation figures of the averaged ones.

    `epoch` counts from 1; accuracies lie in 0..1; `seconds` covers training and validation; validation figures
    are None where nothing is held back. The training loss is without the penalty on weights; an image that was mixed
    with another counts as right where it was taken for the one that has the larger share.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class SetupInfo:
    """What came before a training's first step: seconds to build network and optimizer, and to capture a graph."""

    build_seconds: float = 0.0
    capture_seconds: float = 0.0
    engine: str = "plain"


@dataclass(frozen=True)
class Overhead:
    """What a trial took beside training and validation, in seconds.

    `seconds` counts from when its worker was free for it to when its result was there, training and validation apart;
    of it, `build` and `capture` came before the first step and `sampling` is Optuna's part (ask and report).
    `tracking` is what MLflow took, beside the training and not in `seconds`.
    """

    seconds: float = 0.0
    build: float = 0.0
    capture: float = 0.0
    sampling: float = 0.0
    tracking: float = 0.0


Stopper = Callable[[EpochReport], Decision]
"""Sees each epoch of a trial and says whether it goes on: the extension point that users get."""


class TrialState(Enum):
    """How a trial ended."""

    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class TrialResult:
    """A trial that ended, however it ended.

    `value` is the last epoch's validation accuracy, `best_epoch` the one whose weights were kept; `confusion`
    counts validation images of the last epoch, rows true and columns predicted; `weights` are the kept averaged
    weights on the CPU, `last_weights` those of the last epoch; `setup` is what came before the first step;
    `reason` says in one line why it ended early (out of patience it has completed), and `error` holds the traceback of
    a failure.
    """

    state: TrialState
    epochs: tuple[EpochReport, ...]
    seconds: float
    parameters: int = 0
    best_epoch: int | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    reason: str | None = None
    error: str | None = None
    setup: SetupInfo = field(default=SetupInfo(), repr=False, compare=False)
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    last_weights: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def value(self) -> float | None:
        """What the search maximises; None before the first epoch or without validation images."""
        return self.epochs[-1].val_accuracy if self.epochs else None

    @property
    def best_val_accuracy(self) -> float | None:
        """The highest validation accuracy of any epoch."""
        return max((e.val_accuracy for e in self.epochs if e.val_accuracy is not None), default=None)


@dataclass(frozen=True)
class Accuracy:
    """An accuracy on the test images with its 95 % interval after Wilson (1927)."""

    hits: int
    images: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Share of the images that were classified right."""
        return self.hits / self.images


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
    overhead: Overhead = Overhead()
    comes_again: bool = False
    parameters: int = 0
    began_at: float | None = field(default=None, compare=False)
    ended_at: float | None = field(default=None, compare=False)

    @property
    def is_final(self) -> bool:
        """Whether it counts against a budget: one that comes again does not."""
        return not self.comes_again and self.state is not TrialState.INTERRUPTED


@dataclass(frozen=True)
class ConfirmedScore:
    """A recipe trained from several fresh seeds: an honest estimate, since none of them was selected."""

    trial: int
    recipe: Recipe
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean validation accuracy at the last epoch."""
        return mean_and_std(self.accuracies)[0]

    @property
    def std(self) -> float:
        """Standard deviation over the seeds; 0 for a single one."""
        return mean_and_std(self.accuracies)[1]

    def __str__(self) -> str:
        return format_mean_std(self.accuracies)


def mean_and_std(accuracies: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of one accuracy or more; the deviation of a single one is 0."""
    return statistics.fmean(accuracies), statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0


def format_mean_std(accuracies: Sequence[float]) -> str:
    """The same for people, with how many there are."""
    mean, deviation = mean_and_std(accuracies)
    spread = f" ± {deviation:.2%}" if len(accuracies) > 1 else ""
    return f"{mean:.2%}{spread} (n = {len(accuracies)})"


@dataclass(frozen=True)
class LearningRateResult:
    """A network trained at one learning rate of a sweep, `factor` times its own, from several seeds."""

    network: str
    factor: float
    learning_rate: float
    results: tuple[TrialResult, ...]

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Validation accuracies at the last epoch, of those that completed."""
        return completed_accuracies(self.results)

    @property
    def mean_curve(self) -> tuple[float, ...]:
        """Mean validation accuracy after each epoch, of those that completed."""
        done = [result.epochs for result in self.results if result.state is TrialState.COMPLETED]
        curves = [[report.val_accuracy or 0.0 for report in epochs] for epochs in done]
        return tuple(map(statistics.fmean, zip(*curves, strict=False)))


def completed_accuracies(results: Sequence[TrialResult]) -> tuple[float, ...]:
    """Validation accuracies at the last epoch, of those that completed and have one."""
    done = [result.value for result in results if result.state is TrialState.COMPLETED]
    return tuple(value for value in done if value is not None)


@dataclass(frozen=True)
class Champion:
    """The chosen recipe's model, registered: how it was confirmed and what it reached on the test images.

    `verdict` says in words why it is champion or challenger; an ensemble has `members`, and the recipe is the first's.
    """

    confirmed: ConfirmedScore
    recipe: Recipe
    test: Accuracy
    model: str
    version: str
    alias: str
    verdict: str = ""
    members: int = 1


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
    NOT_STOPPED = "its budget is not spent"

    @property
    def is_final(self) -> bool:
        """Whether the search came to its end, so that a champion can be found."""
        return self not in (StopReason.FAILURES, StopReason.INTERRUPTED, StopReason.NOT_STOPPED)


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


class StudyCallback(Protocol):
    """Hears what a study does while it does it; the console is one."""

    def on_message(self, text: str) -> None:
        """Something worth a line."""

    def on_study_start(self, rows: Sequence[TrialRecord], seconds: float) -> None:
        """A study begins, or goes on after these trials and so many seconds of searching."""

    def on_training_start(self, name: str, recipe: Recipe) -> None:
        """A trial, or a finalist's training, begins; others may run at the same time."""

    def on_epoch_end(self, name: str, report: EpochReport) -> None:
        """An epoch of the training of that name."""

    def on_training_end(self, name: str) -> None:
        """The training of that name is over, however it ended."""

    def on_trial_end(self, row: TrialRecord) -> None:
        """A trial of the search is over."""


class NullStudyCallback:
    """The listener of those who do not want one."""

    def on_message(self, text: str) -> None:
        """Say nothing."""

    def on_study_start(self, rows: Sequence[TrialRecord], seconds: float) -> None:
        """Say nothing."""

    def on_training_start(self, name: str, recipe: Recipe) -> None:
        """Say nothing."""

    def on_epoch_end(self, name: str, report: EpochReport) -> None:
        """Say nothing."""

    def on_training_end(self, name: str) -> None:
        """Say nothing."""

    def on_trial_end(self, row: TrialRecord) -> None:
        """Say nothing."""
