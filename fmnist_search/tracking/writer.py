"""Writes events to an MLflow store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.connection import classified_errors, create_run
from fmnist_search.tracking.events import (
    Artifact,
    Batch,
    CreateRun,
    EndRun,
    Event,
    EventKind,
    LogDataset,
    MetricPoint,
    Params,
    Rendering,
    SetStatus,
)
from fmnist_search.tracking.outbox import EventRejected, Outbox
from fmnist_search.tracking.renderers import RENDERERS, Renderer

if TYPE_CHECKING:
    from fmnist_search.reporting.style import Figure


class MlflowWriter:
    """Writes events to a store. An event that is written twice is stored once."""

    def __init__(self, client: MlflowClient, outbox: Outbox, renderers: Mapping[str, Renderer] = RENDERERS):
        self._client = client
        self._outbox = outbox
        self._renderers = renderers
        self._experiment_ids: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Write an event.

        Raises:
            StoreUnavailable: if the store cannot take the event now.
            EventRejected: if the store will never take the event.
        """
        with classified_errors(self._client.tracking_uri):
            if event.kind == EventKind.CREATE_RUN:
                self._create_run(event, CreateRun.from_body(event.body))
                return
            run_id = self._outbox.run_id(event.run_key)
            if run_id is None:
                raise EventRejected("its run could not be created")
            self._write_to_run(run_id, event)

    def _create_run(self, event: Event, create: CreateRun) -> None:
        if self._outbox.run_id(event.run_key):
            return
        parent_id = self._outbox.run_id(create.parent_id) or create.parent_id  # it may have been replaced
        experiment_id = self._find_experiment_id(parent_id)
        run_id = self._find_created_run(experiment_id, event.run_key) if event.attempted or create.may_exist else None
        if run_id is None:
            tags = {**create.tags, tag_names.PARENT_RUN_ID: parent_id}
            run_id = create_run(self._client, experiment_id, create.name, tags, create.start_ms)
            known = self._outbox.run_id(event.run_key)
            if known and known != run_id:  # this process was stopped, and another created a run, or found this one
                self._client.delete_run(run_id)
                return
        self._outbox.remember_run(event.run_key, run_id)

    def _find_experiment_id(self, run_id: str) -> str:
        if run_id not in self._experiment_ids:
            self._experiment_ids[run_id] = str(self._client.get_run(run_id).info.experiment_id)
        return self._experiment_ids[run_id]

    def _find_created_run(self, experiment_id: str, run_key: str) -> str | None:
        found = self._client.search_runs([experiment_id], f"tags.{tag_names.RUN_KEY} = '{run_key}'", ViewType.ALL, 1)
        return str(found[0].info.run_id) if found else None

    def _write_to_run(self, run_id: str, event: Event) -> None:
        match event.kind:
            case EventKind.BATCH:
                self._log_batch(run_id, Batch.from_body(event.body))
            case EventKind.PARAMS:
                self._log_missing_params(run_id, Params.from_body(event.body))
            case EventKind.ARTIFACT:
                self._log_artifact(run_id, Artifact.from_body(event.body).path, event.content or b"")
            case EventKind.RENDERING:
                rendering = Rendering.from_body(event.body)
                self._log_rendered(run_id, rendering.path, self._renderers[rendering.renderer](rendering.data))
            case EventKind.DATASET:
                self._log_dataset(run_id, LogDataset.from_body(event.body))
            case EventKind.SET_STATUS:
                self._set_status(run_id, SetStatus.from_body(event.body))
            case EventKind.END_RUN:
                self._end_run(run_id, EndRun.from_body(event.body))
            case unknown:
                raise EventRejected(f"an event of the kind {unknown!r}, which this version does not know")

    def _log_batch(self, run_id: str, batch: Batch, *further_points: MetricPoint) -> None:
        points = batch.metrics or []
        if batch.only_new_points:
            points = self._new_points(run_id, points)
        tags = batch.tags or {}
        self._client.log_batch(
            run_id,
            metrics=[Metric(*point) for point in (*points, *further_points)],
            params=[Param(key, value) for key, value in (batch.params or {}).items()],
            tags=[RunTag(key, value) for key, value in tags.items() if value],
        )
        if removed := [key for key, value in tags.items() if not value]:
            self._remove_tags(run_id, removed)

    def _remove_tags(self, run_id: str, keys: Sequence[str]) -> None:
        """Remove those tags that the run has: an empty one says nothing and would be shown."""
        for key in {*keys} & self._client.get_run(run_id).data.tags.keys():
            self._client.delete_tag(run_id, key)

    def _new_points(self, run_id: str, points: Sequence[MetricPoint]) -> list[MetricPoint]:
        """Return the points without those whose step the run has already with another time."""
        keys = {key for key, *_ in points}
        stored = {(key, p.step): p.timestamp for key in keys for p in self._client.get_metric_history(run_id, key)}
        return [point for point in points if stored.get((point[0], point[3]), point[2]) == point[2]]

    def _log_missing_params(self, run_id: str, params: Params) -> None:
        existing = self._client.get_run(run_id).data.params
        missing = [Param(key, value) for key, value in params.params.items() if key not in existing]
        self._client.log_batch(run_id, params=missing)

    def _log_artifact(self, run_id: str, path: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, Path(path).name)
            file.write_bytes(content)
            self._client.log_artifact(run_id, str(file), str(Path(path).parent) if "/" in path else None)

    def _log_rendered(self, run_id: str, path: str, rendered: str | Figure) -> None:
        if isinstance(rendered, str):
            self._client.log_text(run_id, rendered, path)
        else:
            self._client.log_figure(run_id, rendered, path)

    def _log_dataset(self, run_id: str, logged: LogDataset) -> None:
        dataset = Dataset(logged.name, logged.digest, "local", logged.source, profile=logged.profile)
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])])

    def _set_status(self, run_id: str, status: SetStatus) -> None:
        if status.end_ms is None:
            self._client.update_run(run_id, status.status)
        else:
            self._client.set_terminated(run_id, status.status, status.end_ms)

    def _end_run(self, run_id: str, end: EndRun) -> None:
        seconds = (metric_names.TRACKING_SECONDS, end.tracking_seconds or 0.0, end.end_ms, end.step)
        self._log_batch(run_id, Batch.from_body(end.batch or {}), seconds)
        self._client.set_terminated(run_id, end.status, end.end_ms)
