"""One training on record: a recipe run, its MLflow run, and what a Ctrl-C means for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch

from fmnist_search.data import Images, Source, prepare
from fmnist_search.engine import probe_precision, resolve_execution
from fmnist_search.models import check
from fmnist_search.places import Home, image_cache
from fmnist_search.recipe import Execution, Recipe
from fmnist_search.report import confusion_figure
from fmnist_search.results import Decision, EpochReport, Listener, Observer, Silence, State, TrialResult
from fmnist_search.summary import summarize
from fmnist_search.tracking import STORE_ERRORS, Tracking, TrainingRun, environment, reaching
from fmnist_search.trial import run_trial, watch_nothing


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


def tracked(
    recipe: Recipe,
    images: Images,
    execution: Execution,
    run: TrainingRun,
    interruption: Interruption,
    listener: Listener,
    observer: Observer = watch_nothing,
) -> TrialResult:
    """Run a recipe with its record in MLflow; the observer decides, an interruption has the last word."""

    def observe(report: EpochReport) -> Decision:
        decision = observer(report)
        if interruption.requested:
            decision = Decision.INTERRUPT
        last = decision is not Decision.CONTINUE or report.epoch == recipe.epochs
        run.epoch(report, last)
        listener.epoch_ended(report)
        return decision

    try:
        result = run_trial(recipe, images, execution, observe)
    except KeyboardInterrupt:
        interruption.requested = True
        result = TrialResult(State.INTERRUPTED, (), 0.0, reason="interrupted in the middle of an epoch")
    except Exception:
        with contextlib.suppress(*STORE_ERRORS):  # perhaps the store itself is what is gone
            run.end("FAILED", "failed")
        raise
    _attach(run, recipe, result, images.classes)
    run.finish(result)
    return result


def _attach(run: TrainingRun, recipe: Recipe, result: TrialResult, classes: Sequence[str]) -> None:
    """What a training leaves beside its figures; pictures are for those that completed."""
    if result.error:
        run.text("error.txt", result.error)
    if result.epochs:
        run.text("model_summary.txt", summarize(recipe.model).text)
    if result.confusion:
        matrix = {"classes": list(classes), "rows_true_columns_predicted": result.confusion}
        run.text("confusion_matrix.json", json.dumps(matrix))
        if result.state is State.COMPLETED:
            title = f"{recipe.label}: {result.value:.2%} on validation"
            run.figure("confusion_matrix.png", confusion_figure(result.confusion, classes, title))


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
    execution = resolve_execution(device, threads)
    if precision:
        chosen = probe_precision(execution) if precision == "auto" else precision
        recipe = recipe.replace({"precision": chosen})
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
        listener.training_started(name, recipe)
        result = tracked(recipe, images, execution, run, interruption, listener, observer)
        if result.weights:
            path = home.folder / "weights" / "train" / run.run_id / "weights.pt"
            save_weights(path, result)
            tracking.client.log_artifact(run.run_id, str(path))
    return result, run.run_id
