"""One training on record: a recipe run, its MLflow run, and what a Ctrl-C means for it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch

from fmnist_search.data import Images, Source, prepare
from fmnist_search.figures import confusion_figure
from fmnist_search.models import check
from fmnist_search.places import Home, image_cache
from fmnist_search.recipe import Execution, Recipe
from fmnist_search.results import Decision, EpochReport, Listener, Observer, Overhead, Silence, State, TrialResult
from fmnist_search.sender import Sender
from fmnist_search.summary import summarize
from fmnist_search.tracking import Tracking, TrainingRun, environment, reaching
from fmnist_search.trial import run_trial, watch_nothing
from fmnist_search.tuning import resolve_execution, tune

Done = TypeVar("Done")


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

    The sender opens the run, writes each epoch and closes it. The observer decides, an interruption has the last word.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        images: Images,
        open_run: Callable[[], TrainingRun],
        desk: Desk,
        observer: Observer = watch_nothing,
    ):
        self.name = name
        self.recipe = recipe
        self.images = images
        self.result: TrialResult | None = None
        self._epochs: list[EpochReport] = []
        self._desk = desk
        self._observer = observer
        self.tracking = 0.0
        self._run: Future[TrainingRun] = self._send(open_run)
        desk.listener.training_started(name, recipe)

    @property
    def run_id(self) -> str:
        """Its run in MLflow."""
        return self._run.result().run_id

    def report(self, report: EpochReport) -> Decision:
        """Take in an epoch, and say whether the training goes on."""
        self._epochs.append(report)
        decision = self.decide(report)
        if self._desk.interruption.requested:
            decision = Decision.INTERRUPT
        last, now = decision is not Decision.CONTINUE or report.epoch == self.recipe.epochs, time.time()
        self._send(lambda: self._run.result().epoch(report, last, now))
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
        self._send(lambda: self._complete(result, overhead))
        if result.state is State.COMPLETED and result.confusion:
            self._send(lambda: _picture(self._run.result(), self.recipe, result, self.images.classes), later=True)
        self._desk.listener.training_ended(self.name)

    def took(self, seconds: float) -> None:
        """The sender has spent so long on the record; called in its thread."""
        self.tracking += seconds

    def _complete(self, result: TrialResult, overhead: Overhead) -> None:
        _attach(self._run.result(), self.recipe, result, self.images.classes)
        self._run.result().finish(result, dataclasses.replace(overhead, tracking=self.tracking))

    def _send(self, act: Callable[[], Done], *, later: bool = False) -> Future[Done]:
        def timed() -> Done:
            started = time.perf_counter()
            try:
                return act()
            finally:
                self.took(time.perf_counter() - started)

        return self._desk.sender.send(timed, later=later)


@dataclass(frozen=True)
class Desk:
    """What trainings that run side by side share: who writes, who listens, and whether to stop."""

    sender: Sender
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


def _attach(run: TrainingRun, recipe: Recipe, result: TrialResult, classes: Sequence[str]) -> None:
    """What a training leaves beside its figures."""
    if result.error:
        run.text("error.txt", result.error)
    if result.epochs:
        run.text("model_summary.txt", summarize(recipe.model).text)
    if result.confusion:
        matrix = {"classes": list(classes), "rows_true_columns_predicted": result.confusion}
        run.text("confusion_matrix.json", json.dumps(matrix))


def _picture(run: TrainingRun, recipe: Recipe, result: TrialResult, classes: Sequence[str]) -> None:
    assert result.confusion is not None
    value = "" if result.value is None else f": {result.value:.2%} on validation"
    run.figure("confusion_matrix.png", confusion_figure(result.confusion, classes, recipe.label + value))


def save_weights(path: Path, result: TrialResult) -> None:
    """Keep a training's best weights as a plain state file, whole or not at all; `torch.load` reads it."""
    if result.weights is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        torch.save(result.weights, part)
    os.replace(part.name, path)


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
        run = tracking.training_run(name, recipe, list(recipe.flat()), tags)
        run.dataset(images, vars(recipe.data))
        run.text("environment.json", json.dumps(environment(execution), indent=2))
        with Sender() as sender:
            job = Tracked(name, recipe, images, lambda: run, Desk(sender, listener, interruption), observer)
            result = _run_here(job, execution)
        if result.weights:
            path = home.folder / "weights" / "train" / run.run_id / "weights.pt"
            save_weights(path, result)
            tracking.client.log_artifact(run.run_id, str(path))
    return result, run.run_id


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
