"""The logger of the run of one training, which can be resumed by another process."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.files import content_digest
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.recipe import Recipe, recipe_hyperparameters
from fmnist_search.reporting.training_note import training_note
from fmnist_search.results.objectives import known_costs
from fmnist_search.results.training import EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.events import (
    Batch,
    CreateRun,
    EndRun,
    Event,
    EventSink,
    MetricPoint,
    Payload,
    RunProgress,
    SetStatus,
)
from fmnist_search.tracking.provenance import source_tags
from fmnist_search.tracking.run_logger import TAG_LIMIT, RunLogger, metric_points, now_ms

if TYPE_CHECKING:
    from fmnist_search.data.images import Images

RUN_STATUS = {
    TrialState.COMPLETED: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.INTERRUPTED: "KILLED",
    TrialState.PAUSED: "SCHEDULED",
    TrialState.FAILED: "FAILED",
}

RECIPE_FILE = "recipe.toml"


class TrainingRunLogger(RunLogger):
    """Writes the run of one training. An epoch is one batch, and the parameters are part of the first one.

    A run that was started with a `run_key` can be resumed, in another process as well: the outbox keeps which epochs
    were logged, so no epoch is logged twice.
    """

    def __init__(self, sink: EventSink, run_key: str, recipe: Recipe, parameter_names: Sequence[str]):
        super().__init__(sink, run_key)
        self._recipe = recipe
        self._pending_parameters = parameter_values(recipe, parameter_names)
        self._pending_metrics: list[MetricPoint] = []
        self._pending_epochs = 0
        self._buffer: list[Event] | None = None
        self._progress: RunProgress | None = None
        self._only_new_points = False
        self._subject = "Training"

    @classmethod
    def start(
        cls,
        sink: EventSink,
        name: str,
        recipe: Recipe,
        parameter_names: Sequence[str],
        tags: Mapping[str, str],
        parent: RunLogger,
        run_key: str | None = None,
        images: Images | None = None,
    ) -> TrainingRunLogger:
        """Start a new run below `parent`, which MLflow has already, and log the hyperparameters `parameter_names`.

        The images are logged as its dataset; without them the caller does that. Its key is `new_run_key`. A caller that
        stores it first and gives it can resume the run later.
        """
        run = cls(sink, run_key or new_run_key(parent, name), recipe, parameter_names)
        run._progress = RunProgress(writer=sink.claim_run(run_key)) if run_key else None
        with run.transaction():
            run._create(name, tags, parent)
            run._log_inputs(images)
        return run

    @classmethod
    def resume(
        cls,
        sink: EventSink,
        run_key: str,
        name: str,
        recipe: Recipe,
        parameter_names: Sequence[str],
        tags: Mapping[str, str],
        parent: RunLogger,
        images: Images | None = None,
    ) -> TrainingRunLogger:
        """Go on with a run that was started with this key, also in another process; create it if it does not exist.

        The arguments are those of `start`. Epochs that were logged before are not logged again.
        """
        run, known = cls(sink, run_key, recipe, parameter_names), sink.progress(run_key)
        run._progress = dataclasses.replace(known or RunProgress(), writer=sink.claim_run(run_key))
        run._only_new_points = known is None
        with run.transaction():
            run._create(name, tags, parent, may_exist=True)
            if known is None:
                run._log_inputs(images)
            if not run._progress.epochs:
                run.log_params(run._pending_parameters)
            run._pending_parameters = {}
            run._send(SetStatus("RUNNING"))
            run.set_tags({**training_tags(recipe, tags), tag_names.REASON: ""})
        return run

    def _create(self, name: str, tags: Mapping[str, str], parent: RunLogger, *, may_exist: bool = False) -> None:
        """Send the event that creates the run. It starts at the time that its key holds."""
        own = {tag_names.PARENT_RUN_ID: str(parent.run_id), tag_names.RUN_KEY: self.run_key}
        start_ms = int(self.run_key.rpartition("@")[2])
        every = {**training_tags(self._recipe, tags), **source_tags(), **own}
        self.describe(tags)
        every[tag_names.NOTE] = training_note(self._subject, self._recipe)
        self._send(CreateRun(str(parent.run_id), name, every, start_ms, may_exist))

    def describe(self, tags: Mapping[str, str]) -> None:
        """Let the note say what the training is, by the tags of its run."""
        study = f" of the study '{tags[tag_names.STUDY]}'" if tag_names.STUDY in tags else ""
        kind = tags.get(tag_names.KIND, tag_names.TRAINING_RUN)
        number = f" {tags[tag_names.TRIAL]}" if tag_names.TRIAL in tags else ""
        self._subject = f"{kind.capitalize()}{number}{study}"

    def _log_inputs(self, images: Images | None) -> None:
        """Log what the training gets: the recipe, and the images unless they are None."""
        self.log_recipe()
        if images is not None:
            self.log_dataset_input(images, vars(self._recipe.data))

    def log_recipe(self) -> None:
        """Store the recipe as an artifact."""
        self.log_text(RECIPE_FILE, recipe_to_toml(self._recipe))

    def log_epoch(self, report: EpochReport, is_last: bool) -> None:
        """Log an epoch that has just ended, unless it was logged before.

        The last one is sent together with the summary of the training.
        """
        if self._progress and report.epoch <= self._progress.epochs:
            return
        values = {
            # The first one is what MLflow's page of compared runs opens with.
            metric_names.VAL_ACCURACY: report.val_accuracy,
            metric_names.VAL_LOSS: report.val_loss,
            metric_names.TRAIN_ACCURACY: report.train_accuracy,
            metric_names.TRAIN_LOSS: report.train_loss,
            metric_names.EPOCH_SECONDS: report.seconds,
            metric_names.LEARNING_RATE: report.learning_rate,
        }
        self._pending_epochs = report.epoch
        self._pending_metrics += metric_points(
            {key: value for key, value in values.items() if value is not None}, report.epoch
        )
        if not is_last:
            self._send_pending()

    def suspend(self, state: TrialState, reason: str) -> None:
        """End the run for now: `state` is INTERRUPTED or PAUSED. `resume` goes on with it."""
        end_ms = now_ms() if state is TrialState.INTERRUPTED else None
        with self.transaction():
            self._send_pending(tags={tag_names.STATE: state.value, tag_names.REASON: reason[:TAG_LIMIT]})
            self._send(SetStatus(RUN_STATUS[state], end_ms))

    def finish(
        self,
        result: TrialResult,
        overhead: Overhead,
        tags: Mapping[str, str],
        outcome: Mapping[str, Any] | None = None,
    ) -> None:
        """Log the result of the training and close the run.

        `outcome`, how the trial ended, is stored with it and found as `EventSink.progress` until it is forgotten.
        """
        values = {
            metric_names.PARAMETER_COUNT: result.parameters,
            **{metric_names.COSTS[metric]: value for metric, value in known_costs(result).items()},
            metric_names.TRIAL_SECONDS: result.seconds,
            metric_names.OVERHEAD_SECONDS: overhead.seconds,
            metric_names.BUILD_SECONDS: overhead.build,
            metric_names.CAPTURE_SECONDS: overhead.capture,
            metric_names.SAMPLING_SECONDS: overhead.sampling,
        }
        if result.cost:
            values[metric_names.cost(result.cost.metric)] = result.cost.value
        if result.best_val_accuracy is not None:
            values[metric_names.BEST_VAL_ACCURACY] = result.best_val_accuracy
        final_tags = {
            **tags,
            tag_names.STATE: result.state.value,
            **({tag_names.REASON: result.reason[:TAG_LIMIT]} if result.reason else {}),
            tag_names.NOTE: training_note(self._subject, self._recipe, result)[:TAG_LIMIT],
            tag_names.EPOCHS: str(len(result.epochs)),
            tag_names.ENGINE: result.setup.engine,
            **({tag_names.DEVICE_NAME: result.setup.device_name} if result.setup.device_name else {}),
        }
        with self.transaction():
            self._send_pending(metric_points(values, len(result.epochs)), final_tags)
            self._send(EndRun(RUN_STATUS[result.state], now_ms(), step=len(result.epochs)))
            if self._progress:
                self._progress = dataclasses.replace(self._progress, outcome=outcome)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Send all that is logged in the context at its end, all or nothing. A context in another joins it."""
        if self._buffer is not None:
            yield
            return
        self._buffer = []
        try:
            yield
            if self._buffer:
                self._sink.send(*self._buffer, progress=self._progress)
                if self._progress and self._progress.outcome:
                    self._progress = None  # what is drawn later is no progress of the training
        finally:
            self._buffer = None

    def _send_pending(self, metrics: Sequence[MetricPoint] = (), tags: Mapping[str, str] | None = None) -> None:
        """Send pending metrics and parameters, with further metrics and tags."""
        if self._progress:
            epochs = max(self._progress.epochs, self._pending_epochs)
            self._progress = dataclasses.replace(self._progress, epochs=epochs)
        points = [*self._pending_metrics, *metrics]
        self._send(Batch(points, self._pending_parameters, tags, self._only_new_points))
        self._pending_metrics, self._pending_parameters = [], {}

    def _send(self, payload: Payload, content: bytes | None = None, *, deferred: bool = False) -> None:
        with self.transaction():
            assert self._buffer is not None
            self._buffer.append(payload.event(self.run_key, content, deferred=deferred))


def new_run_key(parent: RunLogger, name: str) -> str:
    """Return a key for a new run: the id of its parent, its name and the time."""
    return f"{parent.run_id}/{name}@{now_ms()}"


def training_tags(recipe: Recipe, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that the run of a training has from the start, with `tags` among them."""
    described = {
        tag_names.FAMILY: recipe.model.family,
        tag_names.DATASET: recipe.data.dataset,
        tag_names.RECIPE_DIGEST: content_digest(recipe_to_toml(recipe).encode()),
    }
    return {**described, tag_names.STATE: "running", **tags}


def parameter_values(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """Return the named hyperparameters and the widths. One that the recipe's family lacks is 0, or - for a text."""
    flat = recipe.to_flat_dict()
    absent = {
        name: format_value("-" if spec.kind is str else 0)
        for family in FAMILIES.values()
        for name, spec in recipe_hyperparameters(family).items()
    }
    values = {name: format_value(flat[name]) if name in flat else absent[name] for name in names}
    return {**values, "model.widths": recipe.widths or "-"}
