"""Loggers that write to runs of MLflow through events. A caller never waits for the store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmnist_search.text import space_out_tables
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.events import (
    Artifact,
    Batch,
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

TAG_LIMIT = 7_500
"""Characters of a tag. MLflow cuts tags at 8,000 without a warning; a longer note says where the rest is."""


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

    def log_metrics(self, values: Mapping[str, float], step: int = 0, *, only_new: bool = False) -> None:
        """Log metrics at a step, all with the present time; with `only_new`, those that it does not have there."""
        self._send(Batch(metrics=metric_points(values, step), only_new_points=only_new))

    def set_note(self, markdown: str) -> None:
        """Set the description that MLflow shows above the run. The full text becomes the artifact `report.md`."""
        self.log_text("report.md", markdown)
        note = space_out_tables(markdown)
        if len(note) > TAG_LIMIT:
            note = f"{note[:TAG_LIMIT]}\n\n... the rest is in the artifact report.md\n"
        self._send(Batch(tags={tag_names.NOTE: note}))

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
        self.log_dataset_input(images, data)
        digests = {tag_names.DATASET_DIGEST: images.digest, tag_names.SPLIT_DIGEST: images.split_digest}
        self.set_tags({tag_names.DATASET: str(data["dataset"]), **digests})

    def log_dataset_input(self, images: Images, data: Mapping[str, object]) -> None:
        """Log the images alone, for a run whose parent has the full digests."""
        source = json.dumps({"name": data["dataset"], **data})
        profile = json.dumps({"train": len(images.train), "validation": len(images.validation)})
        self._send(LogDataset(str(data["dataset"]), images.digest[:32], source, profile))

    def end(self, status: str, state: str) -> None:
        """Close the run with MLflow's `status`. The tag `state` remains if `mlflow run` sets its own status."""
        self.set_tags({tag_names.STATE: state})
        self._send(EndRun(status, now_ms(), step=0))

    def _send(self, payload: Payload, content: bytes | None = None, *, deferred: bool = False) -> None:
        self._sink.send(payload.event(self.run_key, content, deferred=deferred))


class NullRunLogger(RunLogger):
    """Writes nothing: the run of a study that is not tracked."""

    is_recorded = False

    def __init__(self) -> None:
        super().__init__(NullSender(), "")


def metric_points(values: Mapping[str, float], step: int) -> list[MetricPoint]:
    """Return the points of metrics at a step, all with the present time."""
    now = now_ms()
    return [(key, float(value), now, step) for key, value in values.items()]


def now_ms() -> int:
    """Return the time in milliseconds, as MLflow stores it."""
    return int(time.time() * 1000)
