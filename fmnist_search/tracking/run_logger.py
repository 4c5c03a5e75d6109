"""Loggers that write to runs of MLflow through events. A caller never waits for the store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.files import content_digest
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.recipe import Recipe, recipe_hyperparameters
from fmnist_search.results.training import EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.events import (
    Artifact,
    Batch,
    CreateRun,
    EndRun,
    EventSink,
    LogDataset,
    MetricPoint,
    Params,
    Payload,
    Rendering,
)
from fmnist_search.tracking.run_ref import RunRef
from fmnist_search.tracking.sender import NullSender

if TYPE_CHECKING:
    from fmnist_search.data.images import Images

RUN_STATUS = {
    TrialState.COMPLETED: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.INTERRUPTED: "KILLED",
    TrialState.FAILED: "FAILED",
}
TAG_LIMIT = 7_500
"""Characters of a tag. MLflow cuts tags at 8,000 without a warning; a longer note says where the rest is."""

RECIPE_FILE = "recipe.toml"


class RunLogger:
    """Writes to a run of MLflow, which need not exist yet when the first event is sent."""

    is_recorded = True
    """Whether what is logged reaches a store."""

    def __init__(self, sink: EventSink, run_key: str):
        self.run_key = run_key
        self._sink = sink

    @classmethod
    def existing(cls, sink: EventSink, run_id: str) -> RunLogger:
        """Return a logger of a run that MLflow has already."""
        sink.remember_run(run_id, run_id)
        return cls(sink, run_id)

    @property
    def run_id(self) -> str | None:
        """The id of the run; None before MLflow has created it."""
        return self._sink.run_id(self.run_key)

    @property
    def ref(self) -> RunRef:
        """The reference to the run as it is known now."""
        return RunRef(self.run_key, self.run_id)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags. Values longer than `TAG_LIMIT` are cut."""
        self._send(Batch(tags={key: value[:TAG_LIMIT] for key, value in tags.items()}))

    def log_params(self, values: Mapping[str, object]) -> None:
        """Log parameters. Those that the run has already are left as they are: `mlflow run` logs its own."""
        self._send(Params({key: str(value) for key, value in values.items()}))

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step, all with the present time."""
        self._send(Batch(metrics=_metric_points(values, step)))

    def set_note(self, markdown: str) -> None:
        """Set the description that MLflow shows above the run. The full text becomes the artifact `report.md`."""
        self.log_text("report.md", markdown)
        if len(markdown) > TAG_LIMIT:
            markdown = f"{markdown[:TAG_LIMIT]}\n\n... the rest is in the artifact report.md\n"
        self._send(Batch(tags={tag_names.NOTE: markdown}))

    def log_text(self, path: str, content: str) -> None:
        """Store a text as an artifact."""
        self.log_artifact(path, content.encode())

    def log_artifact(self, path: str, content: bytes) -> None:
        """Store an artifact."""
        self._send(Artifact(path), content=content)

    def render_later(self, path: str, renderer: str, data: Mapping[str, Any]) -> None:
        """Store as an artifact what the renderer of that name makes of `data`, when nothing else is pending."""
        self._send(Rendering(path, renderer, dict(data)), deferred=True)

    def log_table(self, path: str, columns: Mapping[str, Sequence[object]]) -> None:
        """Store a table as a JSON artifact that MLflow displays as a table. An earlier one at the path is replaced."""
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.log_text(path, json.dumps({"columns": list(columns), "data": rows}))
        self._send(Batch(tags={tag_names.LOGGED_ARTIFACTS: json.dumps([{"path": path, "type": "table"}])}))

    def log_dataset(self, images: Images, data: Mapping[str, object]) -> None:
        """Log the images of the training. MLflow's digest has at most 36 characters, so tags hold the full ones."""
        source = json.dumps({"name": data["dataset"], **data})
        profile = json.dumps({"train": len(images.train), "validation": len(images.validation)})
        name = str(data["dataset"])
        self._send(LogDataset(name, images.digest[:32], source, profile))
        digests = {tag_names.DATASET_DIGEST: images.digest, tag_names.SPLIT_DIGEST: images.split_digest}
        self.set_tags({tag_names.DATASET: name, **digests})

    def end(self, status: str, state: str) -> None:
        """Close the run with MLflow's `status`. The tag `state` remains if `mlflow run` sets its own status."""
        self.set_tags({tag_names.STATE: state})
        self._send(EndRun(status, _now_ms(), step=0))

    def _send(self, payload: Payload, content: bytes | None = None, *, deferred: bool = False) -> None:
        self._sink.send(payload.event(self.run_key, content, deferred=deferred))


class NullRunLogger(RunLogger):
    """Writes nothing: the run of a study that is not tracked."""

    is_recorded = False

    def __init__(self) -> None:
        super().__init__(NullSender(), "")


class TrainingRunLogger(RunLogger):
    """Writes the run of one training. An epoch is one batch, and the parameters are part of the first one."""

    def __init__(self, sink: EventSink, run_key: str, recipe: Recipe, parameter_names: Sequence[str]):
        super().__init__(sink, run_key)
        self._pending_parameters = _parameter_values(recipe, parameter_names)
        self._pending_metrics: list[MetricPoint] = []
        self.log_text(RECIPE_FILE, recipe_to_toml(recipe))

    @classmethod
    def start(
        cls,
        sink: EventSink,
        name: str,
        recipe: Recipe,
        parameter_names: Sequence[str],
        tags: Mapping[str, str],
        parent: RunLogger,
    ) -> TrainingRunLogger:
        """Start a new run below `parent`, which MLflow has already, and log the hyperparameters `parameter_names`.

        The id of the parent, the name of the training and the time form the key of the run.
        """
        now, parent_id = _now_ms(), str(parent.run_id)
        run_key = f"{parent_id}/{name}@{now}"
        every = {**training_tags(recipe, tags), tag_names.PARENT_RUN_ID: parent_id, tag_names.RUN_KEY: run_key}
        sink.send(CreateRun(parent_id, name, every, now).event(run_key))
        return cls(sink, run_key, recipe, parameter_names)

    def log_epoch(self, report: EpochReport, is_last: bool) -> None:
        """Log an epoch that has just ended. The last one is sent together with the summary of the training."""
        values = {
            metric_names.TRAIN_LOSS: report.train_loss,
            metric_names.TRAIN_ACCURACY: report.train_accuracy,
            metric_names.VAL_LOSS: report.val_loss,
            metric_names.VAL_ACCURACY: report.val_accuracy,
            metric_names.EPOCH_SECONDS: report.seconds,
            metric_names.LEARNING_RATE: report.learning_rate,
        }
        self._pending_metrics += _metric_points(
            {key: value for key, value in values.items() if value is not None}, report.epoch
        )
        if not is_last:
            self._send(Batch(metrics=self._pending_metrics, params=self._pending_parameters))
            self._pending_metrics, self._pending_parameters = [], {}

    def finish(self, result: TrialResult, overhead: Overhead, tags: Mapping[str, str]) -> None:
        """Log the result of the training and close the run."""
        values = {
            metric_names.PARAMETER_COUNT: result.parameters,
            metric_names.TRIAL_SECONDS: result.seconds,
            metric_names.OVERHEAD_SECONDS: overhead.seconds,
            metric_names.BUILD_SECONDS: overhead.build,
            metric_names.CAPTURE_SECONDS: overhead.capture,
            metric_names.SAMPLING_SECONDS: overhead.sampling,
        }
        if result.best_val_accuracy is not None:
            values[metric_names.BEST_VAL_ACCURACY] = result.best_val_accuracy
        final_tags = {
            **tags,
            tag_names.STATE: result.state.value,
            tag_names.REASON: (result.reason or "")[:TAG_LIMIT],
            tag_names.EPOCHS: str(len(result.epochs)),
            tag_names.ENGINE: result.setup.engine,
        }
        points = self._pending_metrics + _metric_points(values, len(result.epochs))
        self._send(Batch(points, self._pending_parameters, final_tags))
        self._send(EndRun(RUN_STATUS[result.state], _now_ms(), step=len(result.epochs)))


def training_tags(recipe: Recipe, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that the run of a training has from the start, with `tags` among them."""
    described = {
        tag_names.FAMILY: recipe.model.family,
        tag_names.DATASET: recipe.data.dataset,
        tag_names.RECIPE_DIGEST: content_digest(recipe_to_toml(recipe).encode()),
    }
    return {**described, tag_names.STATE: "running", **tags}


def _parameter_values(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """Return the named hyperparameters and the widths. One that the recipe's family lacks is 0, or - for a text."""
    flat = recipe.to_flat_dict()
    absent = {
        name: format_value("-" if spec.kind is str else 0)
        for family in FAMILIES.values()
        for name, spec in recipe_hyperparameters(family).items()
    }
    values = {name: format_value(flat[name]) if name in flat else absent[name] for name in names}
    return {**values, "model.widths": recipe.widths or "-"}


def _metric_points(values: Mapping[str, float], step: int) -> list[MetricPoint]:
    now = _now_ms()
    return [(key, float(value), now, step) for key, value in values.items()]


def _now_ms() -> int:
    return int(time.time() * 1000)
