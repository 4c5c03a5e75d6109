"""One trial: a recipe trained, watched and summed up."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fmnist_search.data.loading import Images
from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.results.study import Decision, EpochReport, Observer, Preparation, State, TrialResult
from fmnist_search.training.autotune import settled
from fmnist_search.training.cuda_graph import release
from fmnist_search.training.engine import Epoch, Watch, fit
from fmnist_search.training.evaluation import Evaluation

ENDED_BY = {Decision.PRUNE: State.PRUNED, Decision.INTERRUPT: State.INTERRUPTED}


def watch_nothing(_: EpochReport) -> Decision:
    """The observer of a trial that nobody watches."""
    return Decision.CONTINUE


class Companion(Protocol):
    """Goes along with a training in the process that trains, and sees more of it than an observer."""

    def epoch_done(self, epoch: Epoch, state: dict[str, Any]) -> None:
        """An epoch is over; from `state`, valid until the next one starts, `run_trial` can go on."""


def run_trial(
    recipe: Recipe,
    images: Images,
    execution: Execution,
    observer: Observer = watch_nothing,
    *,
    start: Mapping[str, Any] | None = None,
    companion: Companion | None = None,
    watch: Watch | None = None,
) -> TrialResult:
    """Train a recipe until its last epoch, which comes early where patience ends, or until the observer says otherwise.

    With the state that a companion was given as `start` it goes on from there; the observer sees the epochs that are
    new, the result holds all. `watch` sees how epochs get on, a few times a second.

    What goes wrong in the training itself (a network refused, memory gone, a loss that is not finite) is a result,
    FAILED with its reason. What goes wrong in the observer is the caller's and is raised.
    """
    started = time.perf_counter()
    course = _Course.after(recipe, start) if start else _Course(recipe)
    steps = start["training"] if start else None
    with (
        settled(execution),
        contextlib.closing(fit(recipe, images, execution, start=steps, watch=watch)) as epochs,
    ):
        while course.state is None:
            epoch = _next_epoch(epochs, course)
            if epoch is None:
                break
            course.take(epoch)
            if course.state is State.FAILED:
                break
            if companion:
                companion.epoch_done(epoch, course.kept(epoch, time.perf_counter() - started))
            decision = observer(epoch.report)
            if course.is_out_of_patience:
                course.end(State.COMPLETED, f"early stopping: no better {recipe.keep} since epoch {course.best_epoch}")
            elif decision is not Decision.CONTINUE and epoch.report.epoch < recipe.epochs:
                state = ENDED_BY[decision]
                course.end(state, f"{state.value} after epoch {epoch.report.epoch}")
    if course.state is State.FAILED:
        release()
    return course.result(time.perf_counter() - started)


def _next_epoch(epochs: Iterator[Epoch], course: _Course) -> Epoch | None:
    try:
        return next(epochs)
    except StopIteration:
        course.end(State.COMPLETED)
    except torch.OutOfMemoryError as error:
        course.end(State.FAILED, f"out of memory: {_first_line(error)}", traceback.format_exc())
    except UserError as error:
        course.end(State.FAILED, str(error))
    except Exception as error:
        course.end(State.FAILED, f"{type(error).__name__}: {_first_line(error)}", traceback.format_exc())
    return None


def _copied_weights(classifier: Classifier) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in classifier.state_dict().items()}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


@dataclass
class _Course:
    """What is known of a trial while it runs."""

    recipe: Recipe
    state: State | None = None
    reason: str | None = None
    error: str | None = None
    parameters: int = 0
    reports: list[EpochReport] = field(default_factory=list)
    evaluation: Evaluation | None = None
    preparation: Preparation = field(default_factory=Preparation)
    best: EpochReport | None = None
    weights: Mapping[str, Tensor] | None = None
    classifier: Classifier | None = None
    seconds_before: float = 0.0

    @classmethod
    def after(cls, recipe: Recipe, kept: Mapping[str, Any]) -> _Course:
        """What was known of a training when it was kept."""
        reports = [EpochReport(**report) for report in kept["epochs"]]
        best = reports[kept["best_epoch"] - 1]
        return cls(recipe, reports=reports, best=best, weights=kept["weights"], seconds_before=kept["seconds"])

    def kept(self, epoch: Epoch, seconds: float) -> dict[str, Any]:
        """All that is known now, and what the training itself goes on from."""
        assert self.best is not None
        return {
            "epochs": [asdict(report) for report in self.reports],
            "best_epoch": self.best.epoch,
            "weights": self.weights,
            "seconds": self.seconds_before + seconds,
            "training": epoch.state(),
        }

    def end(self, state: State, reason: str | None = None, error: str | None = None) -> None:
        self.state, self.reason, self.error = state, reason, error

    def take(self, epoch: Epoch) -> None:
        """Take in an epoch, and end the trial if its figures are not finite: such an epoch is never reported."""
        figures = (epoch.report.train_loss, epoch.report.val_loss, epoch.report.val_accuracy)
        if not all(math.isfinite(figure) for figure in figures if figure is not None):
            self.end(State.FAILED, f"diverged: the loss of epoch {epoch.report.epoch} is not finite")
            return
        self.reports.append(epoch.report)
        self.evaluation = epoch.evaluation
        self.preparation = epoch.preparation
        self.classifier = epoch.classifier
        self.parameters = sum(p.numel() for p in epoch.classifier.parameters())
        if self._beats_best(epoch.report):
            self.best = epoch.report
            self.weights = _copied_weights(epoch.classifier)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether early stopping ends it with the epoch that was taken in last."""
        last, patience = self.reports[-1].epoch, self.recipe.patience
        return 0 < patience <= last - (self.best_epoch or 0) and last < self.recipe.epochs

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights are kept."""
        return self.best.epoch if self.best else None

    def _beats_best(self, report: EpochReport) -> bool:
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
            seconds=self.seconds_before + seconds,
            parameters=self.parameters,
            best_epoch=self.best_epoch,
            confusion=self.evaluation.confusion if self.evaluation else None,
            reason=self.reason,
            error=self.error,
            preparation=self.preparation,
            weights=self.weights,
            last_weights=_copied_weights(self.classifier)
            if self.classifier and self.state is State.COMPLETED
            else None,
        )
