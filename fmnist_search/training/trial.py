"""One trial: a recipe trained, watched and summed up."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, SetupInfo, Stopper, TrialResult, TrialState
from fmnist_search.training.callbacks import TrainingCallback, never_stop
from fmnist_search.training.cuda_graph import empty_gpu_cache
from fmnist_search.training.engine import fit
from fmnist_search.training.evaluation import Evaluation
from fmnist_search.training.loop import EpochResult, ProgressCallback
from fmnist_search.training.runtime import torch_settings

STATE_OF_DECISION = {Decision.PRUNE: TrialState.PRUNED, Decision.INTERRUPT: TrialState.INTERRUPTED}


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
    """Train a recipe until its last epoch, which comes early where patience ends, or until the observer says otherwise.

    With the state that a companion was given as `resume_from` it goes on from there; the observer sees the epochs that
    are new, the result holds all. `progress_callback` sees how epochs get on, a few times a second.

    What goes wrong in the training itself (a network refused, memory gone, a loss that is not finite) is a result,
    FAILED with its reason. What goes wrong in the observer is the caller's and is raised.
    """
    started = time.perf_counter()
    course = _TrialProgress.from_checkpoint(recipe, resume_from) if resume_from else _TrialProgress(recipe)
    steps = resume_from["training"] if resume_from else None
    with (
        torch_settings(execution),
        contextlib.closing(fit(recipe, images, execution, resume_from=steps, on_progress=progress_callback)) as epochs,
    ):
        while course.state is None:
            epoch = _next_epoch(epochs, course)
            if epoch is None:
                break
            course.record(epoch)
            if course.state is TrialState.FAILED:
                break
            if training_callback:
                training_callback.on_epoch_end(epoch, course.checkpoint(epoch, time.perf_counter() - started))
            decision = stopper(epoch.report)
            if course.should_stop_early:
                course.finish(
                    TrialState.COMPLETED, f"early stopping: no better {recipe.keep} since epoch {course.best_epoch}"
                )
            elif decision is not Decision.CONTINUE and epoch.report.epoch < recipe.epochs:
                state = STATE_OF_DECISION[decision]
                course.finish(state, f"{state.value} after epoch {epoch.report.epoch}")
    if course.state is TrialState.FAILED:
        empty_gpu_cache()
    return course.result(time.perf_counter() - started)


def _next_epoch(epochs: Iterator[EpochResult], progress: _TrialProgress) -> EpochResult | None:
    try:
        return next(epochs)
    except StopIteration:
        progress.finish(TrialState.COMPLETED)
    except torch.OutOfMemoryError as error:
        progress.finish(TrialState.FAILED, f"out of memory: {_first_line(error)}", traceback.format_exc())
    except UserError as error:
        progress.finish(TrialState.FAILED, str(error))
    except Exception as error:
        progress.finish(TrialState.FAILED, f"{type(error).__name__}: {_first_line(error)}", traceback.format_exc())
    return None


def _copy_weights_to_cpu(classifier: Classifier) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in classifier.state_dict().items()}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


@dataclass
class _TrialProgress:
    """What is known of a trial while it runs."""

    recipe: Recipe
    state: TrialState | None = None
    reason: str | None = None
    error: str | None = None
    parameters: int = 0
    reports: list[EpochReport] = field(default_factory=list)
    evaluation: Evaluation | None = None
    preparation: SetupInfo = field(default_factory=SetupInfo)
    best: EpochReport | None = None
    weights: Mapping[str, Tensor] | None = None
    classifier: Classifier | None = None
    previous_seconds: float = 0.0

    @classmethod
    def from_checkpoint(cls, recipe: Recipe, checkpoint: Mapping[str, Any]) -> _TrialProgress:
        """What was known of a training when it was kept."""
        reports = [EpochReport(**report) for report in checkpoint["epochs"]]
        best = reports[checkpoint["best_epoch"] - 1]
        return cls(
            recipe, reports=reports, best=best, weights=checkpoint["weights"], previous_seconds=checkpoint["seconds"]
        )

    def checkpoint(self, epoch: EpochResult, seconds: float) -> dict[str, Any]:
        """All that is known now, and what the training itself goes on from."""
        assert self.best is not None
        return {
            "epochs": [asdict(report) for report in self.reports],
            "best_epoch": self.best.epoch,
            "weights": self.weights,
            "seconds": self.previous_seconds + seconds,
            "training": epoch.state_dict(),
        }

    def finish(self, state: TrialState, reason: str | None = None, error: str | None = None) -> None:
        self.state, self.reason, self.error = state, reason, error

    def record(self, epoch: EpochResult) -> None:
        """Take in an epoch, and end the trial if its figures are not finite: such an epoch is never reported."""
        figures = (epoch.report.train_loss, epoch.report.val_loss, epoch.report.val_accuracy)
        if not all(math.isfinite(figure) for figure in figures if figure is not None):
            self.finish(TrialState.FAILED, f"diverged: the loss of epoch {epoch.report.epoch} is not finite")
            return
        self.reports.append(epoch.report)
        self.evaluation = epoch.evaluation
        self.preparation = epoch.setup
        self.classifier = epoch.classifier
        self.parameters = sum(p.numel() for p in epoch.classifier.parameters())
        if self._is_best(epoch.report):
            self.best = epoch.report
            self.weights = _copy_weights_to_cpu(epoch.classifier)

    @property
    def should_stop_early(self) -> bool:
        """Whether early stopping ends it with the epoch that was taken in last."""
        last, patience = self.reports[-1].epoch, self.recipe.patience
        return 0 < patience <= last - (self.best_epoch or 0) and last < self.recipe.epochs

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept."""
        return self.best.epoch if self.best else None

    def _is_best(self, report: EpochReport) -> bool:
        if self.best is None or report.val_accuracy is None or self.best.val_accuracy is None:
            return True
        if self.recipe.keep == "val_loss":
            assert report.val_loss is not None
            assert self.best.val_loss is not None
            return report.val_loss < self.best.val_loss
        return report.val_accuracy > self.best.val_accuracy

    def result(self, seconds: float) -> TrialResult:
        assert self.state is not None
        return TrialResult(
            state=self.state,
            epochs=tuple(self.reports),
            seconds=self.previous_seconds + seconds,
            parameters=self.parameters,
            best_epoch=self.best_epoch,
            confusion=self.evaluation.confusion if self.evaluation else None,
            reason=self.reason,
            error=self.error,
            setup=self.preparation,
            weights=self.weights,
            last_weights=_copy_weights_to_cpu(self.classifier)
            if self.classifier and self.state is TrialState.COMPLETED
            else None,
        )
