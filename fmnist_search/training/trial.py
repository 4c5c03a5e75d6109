"""A trial: train one recipe, report each epoch, and return the result."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import (
    Decision,
    EpochReport,
    SetupInfo,
    Stopper,
    TrialResult,
    TrialState,
    never_stop,
)
from fmnist_search.text import first_line
from fmnist_search.training.callbacks import TrainingCallback
from fmnist_search.training.cuda_graph import empty_gpu_cache
from fmnist_search.training.devices import device_name
from fmnist_search.training.engine import fit, restore_epoch
from fmnist_search.training.evaluation import Evaluation
from fmnist_search.training.loop import EpochResult, ProgressCallback
from fmnist_search.training.runtime import torch_settings

STATE_AFTER_DECISION = {
    Decision.PRUNE: TrialState.PRUNED,
    Decision.PAUSE: TrialState.PAUSED,
    Decision.INTERRUPT: TrialState.INTERRUPTED,
}


def run_trial(
    recipe: Recipe,
    images: Images,
    execution: Execution,
    stopper: Stopper = never_stop,
    *,
    resume_from: Mapping[str, Any] | None = None,
    training_callback: TrainingCallback | None = None,
    progress_callback: ProgressCallback | None = None,
) -> TrialResult:
    """Train a recipe until its last epoch, until early stopping applies, or until `stopper` ends the trial.

    Each finished epoch is passed to `training_callback` first and then to `stopper`. A decision after the last epoch
    is ignored. A failure of the training itself (a network that is refused, too little memory, a loss that is not
    finite) is not raised: the result has the state FAILED and the reason. Torch's process-wide settings are as
    `execution` says while the trial runs, and are restored afterwards.

    Args:
        recipe: What to train.
        images: Training and validation images, on `execution.device`.
        execution: How to run the steps.
        stopper: Returns after each new epoch whether the trial goes on.
        resume_from: A state that a `TrainingCallback` received for this recipe. Training continues after that epoch,
            with the same bits as without the break; the result holds the earlier epochs too. The state after the last
            epoch gives the result without training.
        training_callback: Receives each new epoch and the state to resume from.
        progress_callback: Receives the progress within an epoch, a few times a second; the eager loop alone calls it.
            An exception that it raises counts as a failure of the training.

    Returns:
        The result, with all weights on the CPU.

    Raises:
        Exception: whatever `stopper` or `training_callback` raises.
    """
    started = time.perf_counter()
    progress = _TrialProgress.from_checkpoint(recipe, resume_from) if resume_from else _TrialProgress(recipe)
    try:
        with (
            torch_settings(execution),
            contextlib.closing(_epochs(progress, images, execution, resume_from, progress_callback)) as epochs,
        ):
            end = _run_epochs(epochs, progress, stopper, training_callback, started)
    except _TrainingFailed as failure:
        end = failure.end
    if end.state is TrialState.FAILED:
        empty_gpu_cache()
    return progress.result(end, time.perf_counter() - started, device_name(execution.device))


@dataclass(frozen=True)
class _TrialEnd:
    """How a trial ended; `error` is the traceback of a failure."""

    state: TrialState
    reason: str | None = None
    error: str | None = None


class _TrainingFailed(Exception):
    """Raised if the training itself fails, as opposed to a stopper or a callback."""

    def __init__(self, reason: str, error: str | None = None):
        super().__init__(reason)
        self.end = _TrialEnd(TrialState.FAILED, reason, error)


def _run_epochs(
    epochs: Iterator[EpochResult],
    progress: _TrialProgress,
    stopper: Stopper,
    training_callback: TrainingCallback | None,
    started: float,
) -> _TrialEnd:
    if progress.end:  # the result was lost after the last epoch
        progress.restore(next(epochs))
        return progress.end
    for epoch in epochs:
        if not _is_finite(epoch.report):
            reason = f"diverged: the loss of epoch {epoch.report.epoch} is not finite"
            return _TrialEnd(TrialState.FAILED, reason)
        progress.record(epoch)
        if training_callback:
            training_callback.on_epoch_end(epoch, progress.checkpoint(epoch, time.perf_counter() - started))
        decision = stopper(epoch.report)
        if progress.end:
            return progress.end
        if decision is not Decision.CONTINUE:
            state = STATE_AFTER_DECISION[decision]
            return _TrialEnd(state, f"{state.value} after epoch {epoch.report.epoch}")
    raise AssertionError("the training ended before its last epoch")


def _epochs(
    progress: _TrialProgress,
    images: Images,
    execution: Execution,
    resume_from: Mapping[str, Any] | None,
    progress_callback: ProgressCallback | None,
) -> Generator[EpochResult]:
    """Yield the epochs of `fit`; of a trial that has ended already, its last epoch again.

    What the consumer of an epoch raises does not pass through here, so it is never taken for a failed training.

    Raises:
        _TrainingFailed: if `fit` raises.
    """
    recipe, training_state = progress.recipe, resume_from["training"] if resume_from else None
    epochs = fit(recipe, images, execution, resume_from=training_state, progress_callback=progress_callback)
    with contextlib.closing(epochs):
        try:
            if training_state and progress.end:
                yield restore_epoch(recipe, images, execution, training_state, progress.reports[-1])
            else:
                yield from epochs
        except torch.OutOfMemoryError as error:
            raise _TrainingFailed(f"out of memory: {first_line(error)}", traceback.format_exc()) from error
        except UserError as error:
            raise _TrainingFailed(str(error)) from error
        except Exception as error:
            raise _TrainingFailed(f"{type(error).__name__}: {first_line(error)}", traceback.format_exc()) from error


def _is_finite(report: EpochReport) -> bool:
    values = (report.train_loss, report.val_loss, report.val_accuracy)
    return all(math.isfinite(value) for value in values if value is not None)


@dataclass
class _TrialProgress:
    """The epochs of a trial so far, and the weights of the best one."""

    recipe: Recipe
    parameters: int = 0
    reports: list[EpochReport] = field(default_factory=list)
    evaluation: Evaluation | None = None
    setup: SetupInfo = field(default_factory=SetupInfo)
    best: EpochReport | None = None
    weights: Mapping[str, Tensor] | None = None
    classifier: Classifier | None = None
    previous_seconds: float = 0.0

    @classmethod
    def from_checkpoint(cls, recipe: Recipe, checkpoint: Mapping[str, Any]) -> _TrialProgress:
        """Return the progress that `checkpoint` stored."""
        reports = [EpochReport(**report) for report in checkpoint["epochs"]]
        best = reports[checkpoint["best_epoch"] - 1]
        return cls(
            recipe, reports=reports, best=best, weights=checkpoint["weights"], previous_seconds=checkpoint["seconds"]
        )

    def checkpoint(self, epoch: EpochResult, seconds: float) -> dict[str, Any]:
        """Return the state that `run_trial` can resume from, valid until the next epoch starts."""
        assert self.best is not None
        return {
            "epochs": [asdict(report) for report in self.reports],
            "best_epoch": self.best.epoch,
            "weights": self.weights,
            "seconds": self.previous_seconds + seconds,
            "training": epoch.state_dict(),
        }

    def record(self, epoch: EpochResult) -> None:
        """Add an epoch, and copy its weights if it is the best so far."""
        self.reports.append(epoch.report)
        self.restore(epoch)
        if self._is_best(epoch.report):
            self.best = epoch.report
            self.weights = _copy_weights_to_cpu(epoch.classifier)

    def restore(self, epoch: EpochResult) -> None:
        """Take over from the last recorded epoch what a checkpoint does not hold."""
        self.evaluation = epoch.evaluation
        self.setup = epoch.setup
        self.classifier = epoch.classifier
        self.parameters = sum(p.numel() for p in epoch.classifier.parameters())

    @property
    def end(self) -> _TrialEnd | None:
        """How the trial ends after the last recorded epoch: it was the last one, or the patience is used up."""
        last, patience = len(self.reports), self.recipe.patience
        if last >= self.recipe.epochs:
            return _TrialEnd(TrialState.COMPLETED)
        if 0 < patience <= last - (self.best_epoch or 0):
            reason = f"early stopping: no better {self.recipe.keep} since epoch {self.best_epoch}"
            return _TrialEnd(TrialState.COMPLETED, reason)
        return None

    @property
    def best_epoch(self) -> int | None:
        """The epoch that `weights` belong to."""
        return self.best.epoch if self.best else None

    def _is_best(self, report: EpochReport) -> bool:
        if self.best is None or report.val_accuracy is None or self.best.val_accuracy is None:
            return True
        if self.recipe.keep == "val_loss":
            assert report.val_loss is not None
            assert self.best.val_loss is not None
            return report.val_loss < self.best.val_loss
        return report.val_accuracy > self.best.val_accuracy

    def result(self, end: _TrialEnd, seconds: float, device: str) -> TrialResult:
        completed = end.state is TrialState.COMPLETED
        return TrialResult(
            state=end.state,
            epochs=tuple(self.reports),
            seconds=self.previous_seconds + seconds,
            parameters=self.parameters,
            best_epoch=self.best_epoch,
            confusion=self.evaluation.confusion if self.evaluation else None,
            reason=end.reason,
            error=end.error,
            setup=replace(self.setup, device_name=device),
            weights=self.weights,
            last_weights=_copy_weights_to_cpu(self.classifier) if self.classifier and completed else None,
        )


def _copy_weights_to_cpu(classifier: Classifier) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in classifier.state_dict().items()}
