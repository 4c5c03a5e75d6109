"""What a single training reports and results in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

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
