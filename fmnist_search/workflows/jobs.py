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
from typing import TYPE_CHECKING, Any

from fmnist_search.data.loading import Images
from fmnist_search.execution.pool import Crew
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import summarize
from fmnist_search.reporting.study_note import class_scores_csv
from fmnist_search.reporting.training_plots import confusion_figure
from fmnist_search.results.study import Decision, EpochReport, Listener, Observer, Overhead, State, TrialResult
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import TrainingRun
from fmnist_search.tracking.sender import Nobody, Sender
from fmnist_search.tracking.store import Artist, Courier, Tracking, impatient
from fmnist_search.training.trial import watch_nothing
from fmnist_search.workspace import Home

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATIENCE_WITH_STORE = 30.0
"""Seconds to wait at the end for a store that is down; what it has not got then waits for `fmnist-search sync`."""


class Interruption:
    """A polite request to stop: the running epoch ends, what was learned is kept.

    SIGTERM counts as SIGINT, since `mlflow run` passes both on for one Ctrl-C. A second SIGINT by a person who does
    not want to wait stops at once.
    """

    PATIENCE = 2.0

    def __init__(self) -> None:
        self.requested = False
        self._at = 0.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[Interruption]:
        """Catch the signals while this lasts; elsewhere than in the main thread there are none to catch."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _asked(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and number == signal.SIGINT and now - self._at > self.PATIENCE:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._at = True, now


class Tracked:
    """A training with its record in MLflow: a job for a worker, which never waits for the record.

    The observer decides, an interruption has the last word.
    """

    worker = 0

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        images: Images,
        run: TrainingRun,
        desk: Desk,
        observer: Observer = watch_nothing,
    ):
        self.name = name
        self.recipe = recipe
        self.images = images
        self.run = run
        self.result: TrialResult | None = None
        self._epochs: list[EpochReport] = []
        self._desk = desk
        self._observer = observer
        desk.listener.training_started(name, recipe)

    def report(self, report: EpochReport) -> Decision:
        """Take in an epoch, and say whether the training goes on."""
        self._epochs.append(report)
        decision = self.decide(report)
        if self._desk.interruption.requested:
            decision = Decision.INTERRUPT
        self.run.epoch(report, last=decision is not Decision.CONTINUE or report.epoch == self.recipe.epochs)
        self._desk.listener.epoch_ended(self.name, report)
        return decision

    def decide(self, report: EpochReport) -> Decision:
        """What the observer says."""
        return self._observer(report)

    def end(self, result: TrialResult, seconds: float) -> None:
        """Take in the result, `seconds` after the training was begun."""
        self.close(result, overhead_of(result, seconds))

    def lost(self, reason: str) -> None:
        """The worker has died over it: the training has failed."""
        self.close(self.broken_off(State.FAILED, reason))

    def broken_off(self, state: State, reason: str) -> TrialResult:
        """The result of a training that was ended from outside: what it has reported counts."""
        seconds = sum(report.seconds for report in self._epochs)
        return TrialResult(state, tuple(self._epochs), seconds, reason=reason)

    def close(self, result: TrialResult, overhead: Overhead = Overhead()) -> None:  # noqa: B008
        """Complete the record and close the run."""
        self.result = result
        _attach(self.run, self.recipe, result, list(self.images.classes))
        self.run.finish(result, overhead, {"worker": str(self.worker)})
        self._desk.listener.training_ended(self.name)


@dataclass(frozen=True)
class Desk:
    """What trainings that run side by side share: who writes, who listens, and whether to stop."""

    sender: Sender | Nobody
    listener: Listener
    interruption: Interruption


class Queued(Tracked):
    """One of several trainings that run side by side; one whose worker dies is tried `again`, if it may be."""

    def __init__(
        self, name: str, recipe: Recipe, images: Images, run: TrainingRun, desk: Desk, again: Callable[[], None] | None
    ):
        super().__init__(name, recipe, images, run, desk)
        self._again = again

    def end(self, result: TrialResult, seconds: float) -> None:
        """Take in the result, and say it."""
        super().end(result, seconds)
        reached = f"{result.value:.2%} on validation" if result.value is not None else result.state.value
        self._desk.listener.say(f"{self.name}: {reached}")

    def lost(self, reason: str) -> None:
        """The worker has died over it: it is tried once more."""
        super().lost(reason)
        if self._again:
            self._again()
        self._desk.listener.say(f"{self.name}: {reason}{'; it is tried again' if self._again else ''}")


Begin = Callable[[str, Recipe, "Callable[[], None] | None"], Queued]
"""Opens the run of a training; the function that it is given puts the training back into the queue."""


def side_by_side(trainings: Sequence[tuple[str, Recipe]], crew: Crew, desk: Desk, begin: Begin) -> list[Queued | None]:
    """Run recipes, each under a name of its own, as many at a time as there are workers; in their order.

    None stands for one that an interruption came before: also before the second attempt of one that lost its worker.
    """
    waiting = deque(trainings)
    begun: dict[str, Queued] = {}

    def next_training() -> Queued | None:
        if desk.interruption.requested or not waiting:
            return None
        name, recipe = waiting.popleft()
        again = None if name in begun else lambda: waiting.append((name, recipe))
        begun[name] = begin(name, recipe, again)
        return begun[name]

    try:
        crew.run(next_training)
    except BaseException as error:
        crew.stop()
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted in the middle of an epoch" if interrupted else "another training stopped on an error"
        for training in begun.values():
            if training.result is None:
                training.close(training.broken_off(State.INTERRUPTED, reason))
        if not interrupted:
            raise
        desk.interruption.requested = True
    for name, _ in waiting:
        begun.pop(name, None)
    return [begun.get(name) for name, _ in trainings]


def overhead_of(result: TrialResult, seconds: float, sampling: float = 0.0) -> Overhead:
    """What a training took beside training and validation, of so many seconds in all."""
    trained = sum(report.seconds for report in result.epochs)
    preparation = result.preparation
    return Overhead(seconds - trained, preparation.build_seconds, preparation.capture_seconds, sampling)


def unbegun(reason: str) -> TrialResult:
    """The result of a training that was not even begun."""
    return TrialResult(State.INTERRUPTED, (), 0.0, reason=reason)


def _attach(run: TrainingRun, recipe: Recipe, result: TrialResult, classes: list[str]) -> None:
    """What a training leaves beside its figures."""
    if result.error:
        run.text("error.txt", result.error)
    if result.epochs:
        run.drawing("model_summary.txt", "summary", {"recipe": recipe.flat()})
    if result.confusion:
        matrix = {"classes": classes, "rows_true_columns_predicted": result.confusion}
        run.text("confusion_matrix.json", json.dumps(matrix))
        run.text("class_scores.csv", class_scores_csv(result.confusion, classes))
        if result.state is State.COMPLETED:
            value = "" if result.value is None else f": {result.value:.2%} on validation"
            figures = {"confusion": result.confusion, "classes": classes, "title": recipe.label + value}
            run.drawing("confusion_matrix.png", "confusion", figures)


def _draw_confusion(of: Mapping[str, Any]) -> Figure:
    return confusion_figure(of["confusion"], of["classes"], of["title"])


def _write_summary(of: Mapping[str, Any]) -> str:
    return summarize(Recipe().replace(of["recipe"]).model).text


ARTISTS: dict[str, Artist] = {"confusion": _draw_confusion, "summary": _write_summary}


# ---------------------------------------------------------------------------------------- the record


@contextlib.contextmanager
def sending(home: Home, tracking: Tracking, listener: Listener) -> Iterator[Sender]:
    """The sender of what is written to MLflow while this lasts; what an earlier process left goes first."""
    outbox = Outbox(home.outbox, home.tracking_uri)
    with impatient(), Sender(outbox, Courier(tracking.client, outbox, ARTISTS), listener.say) as sender:
        yield sender


def see_off(desk: Desk) -> bool:
    """Wait until MLflow has everything, for a while; says what it has not got."""
    sender = desk.sender
    arrived = sender.flush(PATIENCE_WITH_STORE, lambda: desk.interruption.requested)
    if not arrived:
        desk.listener.say(
            "MLflow has not got everything; the rest is kept, and `fmnist-search sync` sends it once MLflow is back"
        )
    return arrived
