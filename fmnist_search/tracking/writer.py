"""Writes events to an MLflow store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from fmnist_search.tracking.outbox import Event, EventRejected, Outbox
from fmnist_search.tracking.run_logger import (
    RUN_KEY_TAG,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from fmnist_search.tracking.connection import classified_errors

# ------------------------------------------------------------------------------------------- the courier

Renderer = Callable[[Mapping[str, Any]], "str | Figure"]
"""Makes a text or a picture of figures that were kept until there was time for it."""


class MlflowWriter:
    """Writes events to a store, each so that it may come twice."""

    def __init__(self, client: MlflowClient, outbox: Outbox, renderers: Mapping[str, Renderer]):
        self._client = client
        self._outbox = outbox
        self._renderers = renderers
        self._experiment_ids: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Write an event.

        Raises:
            StoreUnavailable: the store does not take it now.
            Refused: the store will never take it.
        """
        with classified_errors():
            if event.kind == "open":
                self._create_run(event)
                return
            run_id = self._outbox.run_id(event.run_key)
            if run_id is None:
                raise EventRejected("its run could not be made")
            self._write_to_run(run_id, event)

    def _create_run(self, event: Event) -> None:
        if self._outbox.run_id(event.run_key):
            return
        body = event.body
        experiment_id = self._find_experiment_id(body["parent"])
        run_id = self._find_created_run(experiment_id, event.run_key) if event.attempted else None
        if run_id is None:
            made = self._client.create_run(experiment_id, body["at"], body["tags"], body["name"])
            run_id = str(made.info.run_id)
        self._outbox.remember_run(event.run_key, run_id)

    def _find_experiment_id(self, run_id: str) -> str:
        if run_id not in self._experiment_ids:
            self._experiment_ids[run_id] = str(self._client.get_run(run_id).info.experiment_id)
        return self._experiment_ids[run_id]

    def _find_created_run(self, experiment_id: str, run_key: str) -> str | None:
        found = self._client.search_runs([experiment_id], f"tags.{RUN_KEY_TAG} = '{run_key}'", ViewType.ALL, 1)
        return str(found[0].info.run_id) if found else None

    def _write_to_run(self, run_id: str, event: Event) -> None:
        body = event.body
        match event.kind:
            case "batch":
                self._client.log_batch(
                    run_id,
                    metrics=[Metric(*point) for point in body.get("metrics", ())],
                    params=[Param(key, value) for key, value in body.get("parameters", {}).items()],
                    tags=[RunTag(key, value) for key, value in body.get("tags", {}).items()],
                )
            case "parameters":
                held = self._client.get_run(run_id).data.params
                new = [Param(key, value) for key, value in body["values"].items() if key not in held]
                self._client.log_batch(run_id, params=new)
            case "file":
                self._log_file(run_id, body["path"], event.content or b"")
            case "drawing":
                self._log_rendered(run_id, body["path"], self._renderers[body["artist"]](body["of"]))
            case "dataset":
                dataset = Dataset(body["name"], body["digest"], "local", body["source"], profile=body["profile"])
                tag = InputTag(MLFLOW_DATASET_CONTEXT, "training")
                self._client.log_inputs(run_id, [DatasetInput(dataset, [tag])])
            case "end":
                spent = Metric("time/tracking_seconds", body["seconds"], body["at"], body["step"])
                self._client.log_batch(run_id, [spent])
                self._client.set_terminated(run_id, body["status"], body["at"])
            case unknown:
                raise EventRejected(f"an event of the kind {unknown!r}, which this version does not know")

    def _log_rendered(self, run_id: str, path: str, rendered: str | Figure) -> None:
        if isinstance(rendered, str):
            self._client.log_text(run_id, rendered, path)
        else:
            self._client.log_figure(run_id, rendered, path)

    def _log_file(self, run_id: str, path: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, Path(path).name)
            file.write_bytes(content)
            self._client.log_artifact(run_id, str(file), str(Path(path).parent) if "/" in path else None)
