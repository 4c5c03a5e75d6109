"""One training on record: a recipe run, its MLflow run, and what a Ctrl-C means for it."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fmnist_search.data import Images, Source, prepare
from fmnist_search.models import check
from fmnist_search.network_figures import confusion_figure
from fmnist_search.outbox import Outbox
from fmnist_search.places import Home, image_cache
from fmnist_search.provenance import environment
from fmnist_search.recipe import Execution, Recipe
from fmnist_search.record import TrainingRun
from fmnist_search.report import class_scores_csv
from fmnist_search.results import Decision, EpochReport, Listener, Observer, Overhead, Silence, State, TrialResult
from fmnist_search.sender import Nobody, Sender
from fmnist_search.summary import summarize
from fmnist_search.tracking import Artist, Courier, Tracking, impatient, reaching
from fmnist_search.trial import run_trial, watch_nothing
from fmnist_search.tuning import resolve_execution, tune
from fmnist_search.weights import save_state

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


def train(
    recipe: Recipe,
    *,
    tracking_uri: str | None = None,
    workdir: str | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    engine: str = "plain",
    precision: str | None = None,
    experiment: str = "fmnist-search",
    observer: Observer = watch_nothing,
    listener: Listener | None = None,
) -> tuple[TrialResult, str]:
    """Train one recipe without a study, on record in MLflow; gives the result and the run's id.

    `precision` overrides the recipe's, "auto" by a probe of this machine. The observer sees every epoch and may end
    the training. The kept weights are an artifact of the run, `weights.pt`.

    Raises:
        UserError: a network that cannot be built, no images, no such device, or a store out of reach.
    """
    check(recipe.model)
    listener = listener or Silence()
    home = Home.find(tracking_uri, workdir)
    # Nothing is tried out that changes a number, the number format apart, which the recipe holds: trained again, it is
    # equal.
    execution = resolve_execution(device, threads, engine)
    if precision:
        recipe = recipe.replace({"precision": tune(execution)[1] if precision == "auto" else precision})
    source = Source(image_cache(), Path(data_dir) if data_dir else None)
    images = prepare(recipe.data, source, execution.device)
    interruption = Interruption()
    with interruption.watching(), reaching(home.tracking_uri):
        tracking = Tracking(home.tracking_uri, experiment)
        tags = {"kind": "training", "device": execution.device}
        name = f"train {recipe.label}"
        with sending(home, tracking, listener) as sender:
            run = tracking.training_run(sender, name, recipe, tags)
            run.dataset(images, vars(recipe.data))
            run.text("environment.json", json.dumps(environment(execution), indent=2))
            desk = Desk(sender, listener, interruption)
            result = _run_here(Tracked(name, recipe, images, run, desk, observer), execution)
            if result.weights:
                path = home.folder / "weights" / "train" / run.address / "weights.pt"
                save_state(path, result.weights)
                run.file("weights.pt", path.read_bytes())
            see_off(desk)
    return result, run.address


def _run_here(job: Tracked, execution: Execution) -> TrialResult:
    started = time.monotonic()
    try:
        result = run_trial(job.recipe, job.images, execution, job.report)
    except KeyboardInterrupt:
        result = job.broken_off(State.INTERRUPTED, "interrupted in the middle of an epoch")
    except Exception:
        job.close(TrialResult(State.FAILED, (), 0.0, reason="the training stopped on an error"))
        raise
    job.end(result, time.monotonic() - started)
    return result
