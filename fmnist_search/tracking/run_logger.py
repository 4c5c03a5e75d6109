"""What is written to a run of MLflow, as events: nobody who writes waits for the store."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.data.images import Images
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.recipe import Recipe, recipe_hyperparameters
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.tracking.outbox import Event, Outbox
from fmnist_search.tracking.sender import END_KIND
from fmnist_search.workspace import Workspace

RUN_STATUS = {
    TrialState.COMPLETED: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.INTERRUPTED: "KILLED",
    TrialState.FAILED: "FAILED",
}
NOTE_LIMIT = 7_500
"""MLflow cuts a tag at 8,000 characters without a word; a longer note says itself where it goes on."""

RECIPE_FILE = "recipe.toml"
RUN_KEY_TAG = "address"
"""The tag by which a run is found before it is made a second time."""


class EventSink(Protocol):
    """Whoever brings events to the store."""

    def send(self, event: Event) -> None:
        """Keep an event, and deliver it after all that was sent before."""

    def run_id(self, run_key: str) -> str | None:
        """The run behind an address; None before it was made."""

    def remember_run(self, run_key: str, run_id: str) -> None:
        """Remember which run an address has got."""


class RunLogger:
    """A run of MLflow, by its address, which is its id where that was known from the start."""

    def __init__(self, sink: EventSink, run_key: str):
        self.run_key = run_key
        self._sink = sink

    @classmethod
    def existing(cls, sink: EventSink, run_id: str) -> RunLogger:
        """A run that is there already."""
        sink.remember_run(run_id, run_id)
        return cls(sink, run_id)

    @property
    def run_id(self) -> str | None:
        """Its id; None before the store has it."""
        return self._sink.run_id(self.run_key)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set several tags at once."""
        self._send("batch", tags={key: value[:NOTE_LIMIT] for key, value in tags.items()})

    def log_params(self, values: Mapping[str, object]) -> None:
        """Log what does not change, leaving alone what the run already holds (`mlflow run` logs its own)."""
        self._send("parameters", values={key: str(value) for key, value in values.items()})

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log several figures at once."""
        self._send("batch", metrics=_metric_points(values, step))

    def set_note(self, markdown: str) -> None:
        """The text that the run shows first; whole as `report.md`."""
        self.log_text("report.md", markdown)
        if len(markdown) > NOTE_LIMIT:
            markdown = f"{markdown[:NOTE_LIMIT]}\n\n... the rest stands in the artifact report.md\n"
        self._send("batch", tags={MLFLOW_RUN_NOTE: markdown})

    def log_text(self, path: str, content: str) -> None:
        """Store a text as an artifact."""
        self.log_artifact(path, content.encode())

    def log_artifact(self, path: str, content: bytes) -> None:
        """Store an artifact."""
        self._sink.send(Event(self.run_key, "file", {"path": path}, content))

    def render_later(self, path: str, renderer: str, data: Mapping[str, Any]) -> None:
        """Store what an artist makes of some figures, when there is nothing else to send."""
        self._sink.send(
            Event(self.run_key, "drawing", {"path": path, "artist": renderer, "of": dict(data)}, deferred=True)
        )

    def log_table(self, path: str, columns: Mapping[str, Sequence[object]]) -> None:
        """Store a table that MLflow shows as one; an earlier one of that path is replaced."""
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.log_text(path, json.dumps({"columns": list(columns), "data": rows}))
        self._send("batch", tags={"mlflow.loggedArtifacts": json.dumps([{"path": path, "type": "table"}])})

    def log_dataset(self, images: Images, data: Mapping[str, object]) -> None:
        """Record which images it learns from; MLflow's digest holds 36 characters, the tags the full ones."""
        source = json.dumps({"name": data["dataset"], **data})
        profile = json.dumps({"train": len(images.train), "validation": len(images.validation)})
        self._send("dataset", name=data["dataset"], digest=images.digest[:32], source=source, profile=profile)
        digests = {"dataset_digest": images.digest, "split_digest": images.split_digest}
        self.set_tags({"dataset": str(data["dataset"]), **digests})

    def end(self, status: str, state: str) -> None:
        """Close the run; the tag tells the truth where `mlflow run` sets its own status."""
        self.set_tags({"state": state})
        self._send(END_KIND, status=status, at=_now_ms(), step=0)

    def _send(self, kind: str, **body: object) -> None:
        self._sink.send(Event(self.run_key, kind, body))


class TrainingRunLogger(RunLogger):
    """The run of one training: an epoch is one batch, and the parameters go with the first."""

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
        """A new run for one training, below its study's; `parameters` names what it logs.

        The parent's run is known, and with the training's name and time it makes the address.
        """
        at = _now_ms()
        address = f"{parent.run_id}/{name}@{at}"
        every = {**training_tags(recipe, tags), MLFLOW_PARENT_RUN_ID: str(parent.run_id), RUN_KEY_TAG: address}
        sink.send(Event(address, "open", {"parent": parent.run_id, "name": name, "tags": every, "at": at}))
        return cls(sink, address, recipe, parameter_names)

    def log_epoch(self, report: EpochReport, is_last: bool) -> None:
        """Log an epoch that has just ended; the last one waits for the figures of the whole training."""
        figures = {
            "train/loss": report.train_loss,
            "train/accuracy": report.train_accuracy,
            "val/loss": report.val_loss,
            "val/accuracy": report.val_accuracy,
            "time/epoch_seconds": report.seconds,
            "optimizer/learning_rate": report.learning_rate,
        }
        self._pending_metrics += _metric_points(
            {key: value for key, value in figures.items() if value is not None}, report.epoch
        )
        if not is_last:
            self._send("batch", metrics=self._pending_metrics, parameters=self._pending_parameters)
            self._pending_metrics, self._pending_parameters = [], {}

    def finish(self, result: TrialResult, overhead: Overhead, tags: Mapping[str, str]) -> None:
        """Log how it ended and close the run."""
        figures = {
            "model/parameters": result.parameters,
            "time/trial_seconds": result.seconds,
            "time/overhead_seconds": overhead.seconds,
            "time/build_seconds": overhead.build,
            "time/capture_seconds": overhead.capture,
            "time/sampling_seconds": overhead.sampling,
        }
        if result.best_val_accuracy is not None:
            figures["best/val_accuracy"] = result.best_val_accuracy
        ends = {
            **tags,
            "state": result.state.value,
            "reason": (result.reason or "")[:NOTE_LIMIT],
            "epochs": str(len(result.epochs)),
            "engine": result.setup.engine,
        }
        points = self._pending_metrics + _metric_points(figures, len(result.epochs))
        self._send("batch", metrics=points, parameters=self._pending_parameters, tags=ends)
        self._send(END_KIND, status=RUN_STATUS[result.state], at=_now_ms(), step=len(result.epochs))


def is_run_key(text: str | None) -> bool:
    """Whether it is the address of a run rather than its id."""
    return text is not None and "/" in text


def resolve_run_ids(workspace: Workspace, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The same trials; one that was told before MLflow had its run was known by the run's address until now."""
    if not any(is_run_key(row.run_id) for row in trials):
        return list(trials)
    with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
        return [
            dataclasses.replace(row, run_id=outbox.run_id(row.run_id)) if row.run_id and is_run_key(row.run_id) else row
            for row in trials
        ]


def training_tags(recipe: Recipe, tags: Mapping[str, str]) -> dict[str, str]:
    """What the run of every training says of itself from the start."""
    return {"family": recipe.model.family, "dataset": recipe.data.dataset, "state": "running", **tags}


def _parameter_values(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """The named hyperparameters and the widths; what another family has and this one lacks is 0, or - for a text."""
    flat = recipe.to_flat_dict()
    absent = {
        name: format_value("-" if spec.kind is str else 0)
        for family in FAMILIES.values()
        for name, spec in recipe_hyperparameters(family).items()
    }
    row = {name: format_value(flat[name]) if name in flat else absent[name] for name in names}
    return {**row, "model.widths": recipe.widths or "-"}


MetricPoint = tuple[str, float, int, int]
"""Key, value, time in milliseconds, step: a point sent twice with one time is stored once."""


def _metric_points(values: Mapping[str, float], step: int) -> list[MetricPoint]:
    at = _now_ms()
    return [(key, float(value), at, step) for key, value in values.items()]


def _now_ms() -> int:
    return int(time.time() * 1000)
