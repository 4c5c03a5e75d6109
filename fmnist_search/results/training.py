"""The reports and the result of one training, as frozen values. torch is imported only for type checkers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from fmnist_search.results.objectives import TrialCost

if TYPE_CHECKING:
    from torch import Tensor


class Decision(Enum):
    """What a `Stopper` returns after each epoch."""

    CONTINUE = "continue"
    PRUNE = "prune"
    PAUSE = "pause"
    INTERRUPT = "interrupt"


@dataclass(frozen=True)
class EpochReport:
    """The metrics of one epoch: of training with the weights of each step, of validation with the averaged weights.

    `epoch` counts from 1, accuracies are in 0..1, and `seconds` covers training and validation. Validation metrics are
    None if there are no validation images. The training loss is without the penalty on weights. A mixed image counts as
    correct if the prediction is the class of the image with the larger share.
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
    """Where a training ran, and the seconds before its first step: to build network and optimizer, to capture a graph.

    `device_name` is the model of the GPU or of the processor; "" if it is not known.
    """

    build_seconds: float = 0.0
    capture_seconds: float = 0.0
    engine: str = "plain"
    device_name: str = ""


@dataclass(frozen=True)
class Overhead:
    """The time that a trial takes besides training and validation, in seconds.

    `seconds` is the time from when its worker was free until its result arrived, without training and validation. It
    includes `build` and `capture` before the first step and `sampling`, the time in Optuna (ask and report). `tracking`
    is the time of MLflow, which runs beside the training and is not part of `seconds`.
    """

    seconds: float = 0.0
    build: float = 0.0
    capture: float = 0.0
    sampling: float = 0.0
    tracking: float = 0.0


Stopper = Callable[[EpochReport], Decision]
"""Called after each epoch of a trial; decides whether the trial continues. Users can pass their own."""


def never_stop(_: EpochReport) -> Decision:
    """Return CONTINUE: the stopper of a training that runs to its last epoch."""
    return Decision.CONTINUE


class TrialState(Enum):
    """How the training of a trial ended. One that is paused or interrupted has a checkpoint and goes on later.

    A refused one was not trained: its network costs more than the budget allows.
    """

    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"

    @property
    def is_final(self) -> bool:
        """Whether the trial has ended for good."""
        return self not in (TrialState.PAUSED, TrialState.INTERRUPTED)


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial in any state.

    `best_epoch` is the epoch whose weights are kept. `confusion` counts validation images of the last epoch, rows are
    true classes and columns predicted ones. `weights` are the kept averaged weights on the CPU, `last_weights` those of
    the last epoch. `reason` says in one line why the trial ended early (also if its patience ran out, although it then
    counts as completed), and `error` is the traceback of a failure. `mult_adds` are those of one image; they and
    `parameters` are 0 if unknown. `cost` is what a study minimizes beside.
    `test` is that of a training without a study, if it was asked for, and `registered` the address of its version.
    """

    state: TrialState
    epochs: tuple[EpochReport, ...]
    seconds: float
    parameters: int = 0
    best_epoch: int | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    reason: str | None = None
    error: str | None = None
    mult_adds: int = 0
    cost: TrialCost | None = None
    test: TestResult | None = None
    registered: str | None = None
    setup: SetupInfo = field(default=SetupInfo(), repr=False, compare=False)
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    last_weights: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def value(self) -> float | None:
        """Validation accuracy of the last epoch, which the search maximises; None if there is none."""
        return self.epochs[-1].val_accuracy if self.epochs else None

    @property
    def seconds_per_epoch(self) -> float:
        """Mean seconds of the epochs with their validation; 0 if there are none."""
        return statistics.fmean(report.seconds for report in self.epochs) if self.epochs else 0.0

    @property
    def best_val_accuracy(self) -> float | None:
        """The highest validation accuracy of any epoch; None if there is none."""
        return max((e.val_accuracy for e in self.epochs if e.val_accuracy is not None), default=None)


@dataclass(frozen=True)
class Accuracy:
    """An accuracy on the test images with its 95 % interval (Wilson 1927): `correct` of `images`.

    `loss` is the mean cross-entropy; None if an earlier version of this program, which did not record it, measured it.
    """

    correct: int
    images: int
    low: float
    high: float
    loss: float | None = None

    @property
    def value(self) -> float:
        """Share of the images that are classified correctly."""
        return self.correct / self.images


@dataclass(frozen=True)
class TestResult:
    """The result of a training on the test images; `confusion` counts them, rows true and columns predicted."""

    __test__ = False  # not a class of tests, though pytest would take it for one by its name

    accuracy: Accuracy
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
