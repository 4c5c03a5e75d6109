"""Trainings on record, one or several side by side: each with its run in MLflow, and what a Ctrl-C means for it."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from fmnist_search.data.images import Images
from fmnist_search.execution.backend import Backend
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.study_note import class_scores_csv
from fmnist_search.results.training import Decision, EpochReport, Overhead, Stopper, TrialResult, TrialState
from fmnist_search.tracking.connection import short_timeouts
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.renderers import CONFUSION, RENDERERS, SUMMARY, Renderer
from fmnist_search.tracking.run_logger import TrainingRunLogger
from fmnist_search.tracking.sender import NullSender, Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.writer import MlflowWriter
from fmnist_search.training.callbacks import never_stop
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workspace import Workspace

FLUSH_TIMEOUT = 30.0
"""Seconds to wait at the end for a store that is down; what it has not got then waits for `fmnist-search sync`."""


class InterruptHandler:
    """A polite request to stop: the running epoch ends, what was learned is kept.

    SIGTERM counts as SIGINT, since `mlflow run` passes both on for one Ctrl-C. A second SIGINT by a person who does
    not want to wait stops at once.
    """

    GRACE_SECONDS = 2.0

    def __init__(self) -> None:
        self.requested = False
        self._requested_at = 0.0

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[InterruptHandler]:
        """Catch the signals while this lasts; elsewhere than in the main thread there are none to catch."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, signal_number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and signal_number == signal.SIGINT and now - self._requested_at > self.GRACE_SECONDS:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._requested_at = True, now


class TrackedJob:
    """A training with its record in MLflow: a job for a worker, which never waits for the record.

    The observer decides, an interruption has the last word.
    """

    worker = 0
    checkpoint = None

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        images: Images,
        run: TrainingRunLogger,
        context: JobContext,
        stopper: Stopper = never_stop,
    ):
        self.name = name
        self.recipe = recipe
        self.images = images
        self.run = run
        self.result: TrialResult | None = None
        self._reports: list[EpochReport] = []
        self._context = context
        self._stopper = stopper
        context.callback.on_training_start(name, recipe)

    def on_epoch(self, report: EpochReport) -> Decision:
        """Take in an epoch, and say whether the training goes on."""
        self._reports.append(report)
        decision = self.decide(report)
        if self._context.interrupt_handler.requested:
            decision = Decision.INTERRUPT
        self.run.log_epoch(report, is_last=decision is not Decision.CONTINUE or report.epoch == self.recipe.epochs)
        self._context.callback.on_epoch_end(self.name, report)
        return decision

    def decide(self, report: EpochReport) -> Decision:
        """What the observer says."""
        return self._stopper(report)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Take in the result, `seconds` after the training was begun."""
        self.close(result, trial_overhead(result, seconds))

    def on_worker_lost(self, reason: str) -> None:
        """The worker has died over it: the training has failed."""
        self.close(self.partial_result(TrialState.FAILED, reason))

    def partial_result(self, state: TrialState, reason: str) -> TrialResult:
        """The result of a training that was ended from outside: what it has reported counts."""
        seconds = sum(report.seconds for report in self._reports)
        return TrialResult(state, tuple(self._reports), seconds, reason=reason)

    def close(self, result: TrialResult, overhead: Overhead = Overhead()) -> None:  # noqa: B008
        """Complete the record and close the run."""
        self.result = result
        _log_artifacts(self.run, self.recipe, result, list(self.images.classes))
        self.run.finish(result, overhead, {"worker": str(self.worker)})
        self._context.callback.on_training_end(self.name)


@dataclass(frozen=True)
class JobContext:
    """What trainings that run side by side share: who writes, who listens, and whether to stop."""

    sender: Sender | NullSender
    callback: StudyCallback
    interrupt_handler: InterruptHandler


class RetryingJob(TrackedJob):
    """One of several trainings that run side by side; one whose worker dies is tried `requeue`, if it may be."""

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        images: Images,
        run: TrainingRunLogger,
        context: JobContext,
        requeue: Callable[[], None] | None,
    ):
        super().__init__(name, recipe, images, run, context)
        self._requeue = requeue

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Take in the result, and say it."""
        super().on_result(result, seconds)
        reached = f"{result.value:.2%} on validation" if result.value is not None else result.state.value
        self._context.callback.on_message(f"{self.name}: {reached}")

    def on_worker_lost(self, reason: str) -> None:
        """The worker has died over it: it is tried once more."""
        super().on_worker_lost(reason)
        if self._requeue:
            self._requeue()
        self._context.callback.on_message(f"{self.name}: {reason}{'; it is tried again' if self._requeue else ''}")


JobFactory = Callable[[str, Recipe, "Callable[[], None] | None"], RetryingJob]
"""Opens the run of a training; the function that it is given puts the training back into the queue."""


def run_jobs(
    named_recipes: Sequence[tuple[str, Recipe]], pool: Backend, context: JobContext, make_job: JobFactory
) -> list[RetryingJob | None]:
    """Run recipes, each under a name of its own, as many at a time as there are workers; in their order.

    None stands for one that an interruption came before: also before the second attempt of one that lost its worker.
    """
    waiting = deque(named_recipes)
    begun: dict[str, RetryingJob] = {}

    def next_training() -> RetryingJob | None:
        if context.interrupt_handler.requested or not waiting:
            return None
        name, recipe = waiting.popleft()
        again = None if name in begun else lambda: waiting.append((name, recipe))
        begun[name] = make_job(name, recipe, again)
        return begun[name]

    try:
        pool.run(next_training)
    except BaseException as error:
        pool.stop()
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted in the middle of an epoch" if interrupted else "another training stopped on an error"
        for training in begun.values():
            if training.result is None:
                training.close(training.partial_result(TrialState.INTERRUPTED, reason))
        if not interrupted:
            raise
        context.interrupt_handler.requested = True
    for name, _ in waiting:
        begun.pop(name, None)
    return [begun.get(name) for name, _ in named_recipes]


def trial_overhead(result: TrialResult, seconds: float, sampling: float = 0.0) -> Overhead:
    """What a training took beside training and validation, of so many seconds in all."""
    trained = sum(report.seconds for report in result.epochs)
    preparation = result.setup
    return Overhead(seconds - trained, preparation.build_seconds, preparation.capture_seconds, sampling)


def not_started(reason: str) -> TrialResult:
    """The result of a training that was not even begun."""
    return TrialResult(TrialState.INTERRUPTED, (), 0.0, reason=reason)


def _log_artifacts(run: TrainingRunLogger, recipe: Recipe, result: TrialResult, classes: list[str]) -> None:
    """What a training leaves beside its figures."""
    if result.error:
        run.log_text("error.txt", result.error)
    if result.epochs:
        run.render_later("model_summary.txt", SUMMARY, {"recipe": recipe.to_flat_dict()})
    if result.confusion:
        matrix = {"classes": classes, "rows_true_columns_predicted": result.confusion}
        run.log_text("confusion_matrix.json", json.dumps(matrix))
        run.log_text("class_scores.csv", class_scores_csv(result.confusion, classes))
        if result.state is TrialState.COMPLETED:
            value = "" if result.value is None else f": {result.value:.2%} on validation"
            figures = {"confusion": result.confusion, "classes": classes, "title": recipe.label + value}
            run.render_later("confusion_matrix.png", CONFUSION, figures)


# ---------------------------------------------------------------------------------------- the record


@contextlib.contextmanager
def open_sender(
    workspace: Workspace,
    mlflow_store: MlflowStore,
    callback: StudyCallback,
    renderers: Mapping[str, Renderer] = RENDERERS,
) -> Iterator[Sender]:
    """The sender of what is written to MLflow while this lasts; what an earlier process left goes first."""
    outbox = Outbox(workspace.outbox_path, workspace.tracking_uri)
    with (
        short_timeouts(),
        Sender(outbox, MlflowWriter(mlflow_store.client, outbox, renderers), callback.on_message) as sender,
    ):
        yield sender


def flush_tracking(context: JobContext) -> bool:
    """Wait until MLflow has everything, for a while; says what it has not got."""
    sender = context.sender
    arrived = sender.flush(FLUSH_TIMEOUT, lambda: context.interrupt_handler.requested)
    if not arrived:
        context.callback.on_message(
            "MLflow has not got everything; the rest is kept, and `fmnist-search sync` sends it once MLflow is back"
        )
    return arrived
