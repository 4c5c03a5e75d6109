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
from fmnist_search.data.loading import Images
from fmnist_search.recipe.recipe import FAMILIES, Recipe, known_hyperparameters, text_of
from fmnist_search.results.study import EpochReport, Overhead, State, TrialResult, TrialRow
from fmnist_search.tracking.outbox import Event, Outbox
from fmnist_search.tracking.sender import END
from fmnist_search.workspace import Home

STATUS = {
    State.COMPLETED: "FINISHED",
    State.PRUNED: "KILLED",
    State.INTERRUPTED: "KILLED",
    State.FAILED: "FAILED",
}
NOTE_LIMIT = 7_500
"""MLflow cuts a tag at 8,000 characters without a word; a longer note says itself where it goes on."""

RECIPE_FILE = "recipe.toml"
ADDRESS = "address"
"""The tag by which a run is found before it is made a second time."""


class Post(Protocol):
    """Whoever brings events to the store."""

    def send(self, event: Event) -> None:
        """Keep an event, and deliver it after all that was sent before."""

    def run_id(self, address: str) -> str | None:
        """The run behind an address; None before it was made."""

    def opened(self, address: str, run_id: str) -> None:
        """Remember which run an address has got."""


class Run:
    """A run of MLflow, by its address, which is its id where that was known from the start."""

    def __init__(self, post: Post, address: str):
        self.address = address
        self._post = post

    @classmethod
    def known(cls, post: Post, run_id: str) -> Run:
        """A run that is there already."""
        post.opened(run_id, run_id)
        return cls(post, run_id)

    @property
    def run_id(self) -> str | None:
        """Its id; None before the store has it."""
        return self._post.run_id(self.address)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set several tags at once."""
        self._send("batch", tags={key: value[:NOTE_LIMIT] for key, value in tags.items()})

    def parameters(self, values: Mapping[str, object]) -> None:
        """Log what does not change, leaving alone what the run already holds (`mlflow run` logs its own)."""
        self._send("parameters", values={key: str(value) for key, value in values.items()})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log several figures at once."""
        self._send("batch", metrics=_points(values, step))

    def note(self, markdown: str) -> None:
        """The text that the run shows first; whole as `report.md`."""
        self.text("report.md", markdown)
        if len(markdown) > NOTE_LIMIT:
            markdown = f"{markdown[:NOTE_LIMIT]}\n\n... the rest stands in the artifact report.md\n"
        self._send("batch", tags={MLFLOW_RUN_NOTE: markdown})

    def text(self, path: str, content: str) -> None:
        """Store a text as an artifact."""
        self.file(path, content.encode())

    def file(self, path: str, content: bytes) -> None:
        """Store an artifact."""
        self._post.send(Event(self.address, "file", {"path": path}, content))

    def drawing(self, path: str, artist: str, of: Mapping[str, Any]) -> None:
        """Store what an artist makes of some figures, when there is nothing else to send."""
        self._post.send(Event(self.address, "drawing", {"path": path, "artist": artist, "of": dict(of)}, later=True))

    def table(self, path: str, columns: Mapping[str, Sequence[object]]) -> None:
        """Store a table that MLflow shows as one; an earlier one of that path is replaced."""
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.text(path, json.dumps({"columns": list(columns), "data": rows}))
        self._send("batch", tags={"mlflow.loggedArtifacts": json.dumps([{"path": path, "type": "table"}])})

    def dataset(self, images: Images, data: Mapping[str, object]) -> None:
        """Record which images it learns from; MLflow's digest holds 36 characters, the tags the full ones."""
        source = json.dumps({"name": data["dataset"], **data})
        profile = json.dumps({"train": len(images.train), "validation": len(images.validation)})
        self._send("dataset", name=data["dataset"], digest=images.digest[:32], source=source, profile=profile)
        digests = {"dataset_digest": images.digest, "split_digest": images.split_digest}
        self.tags({"dataset": str(data["dataset"]), **digests})

    def end(self, status: str, state: str) -> None:
        """Close the run; the tag tells the truth where `mlflow run` sets its own status."""
        self.tags({"state": state})
        self._send(END, status=status, at=_now(), step=0)

    def _send(self, kind: str, **body: object) -> None:
        self._post.send(Event(self.address, kind, body))


class TrainingRun(Run):
    """The run of one training: an epoch is one batch, and the parameters go with the first."""

    def __init__(self, post: Post, address: str, recipe: Recipe, parameters: Sequence[str]):
        super().__init__(post, address)
        self._parameters = _row(recipe, parameters)
        self._held: list[Point] = []
        self.text(RECIPE_FILE, recipe_to_toml(recipe))

    @classmethod
    def begun(
        cls, post: Post, name: str, recipe: Recipe, parameters: Sequence[str], tags: Mapping[str, str], parent: Run
    ) -> TrainingRun:
        """A new run for one training, below its study's; `parameters` names what it logs.

        The parent's run is known, and with the training's name and time it makes the address.
        """
        at = _now()
        address = f"{parent.run_id}/{name}@{at}"
        every = {**training_tags(recipe, tags), MLFLOW_PARENT_RUN_ID: str(parent.run_id), ADDRESS: address}
        post.send(Event(address, "open", {"parent": parent.run_id, "name": name, "tags": every, "at": at}))
        return cls(post, address, recipe, parameters)

    def epoch(self, report: EpochReport, last: bool) -> None:
        """Log an epoch that has just ended; the last one waits for the figures of the whole training."""
        figures = {
            "train/loss": report.train_loss,
            "train/accuracy": report.train_accuracy,
            "val/loss": report.val_loss,
            "val/accuracy": report.val_accuracy,
            "time/epoch_seconds": report.seconds,
            "optimizer/learning_rate": report.learning_rate,
        }
        self._held += _points({key: value for key, value in figures.items() if value is not None}, report.epoch)
        if not last:
            self._send("batch", metrics=self._held, parameters=self._parameters)
            self._held, self._parameters = [], {}

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
            "engine": result.preparation.engine,
        }
        points = self._held + _points(figures, len(result.epochs))
        self._send("batch", metrics=points, parameters=self._parameters, tags=ends)
        self._send(END, status=STATUS[result.state], at=_now(), step=len(result.epochs))


def is_address(text: str | None) -> bool:
    """Whether it is the address of a run rather than its id."""
    return text is not None and "/" in text


def with_runs(home: Home, rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The same trials; one that was told before MLflow had its run was known by the run's address until now."""
    if not any(is_address(row.run_id) for row in rows):
        return list(rows)
    with closing(Outbox(home.outbox, home.tracking_uri)) as outbox:
        return [
            dataclasses.replace(row, run_id=outbox.run_id(row.run_id)) if row.run_id and is_address(row.run_id) else row
            for row in rows
        ]


def training_tags(recipe: Recipe, tags: Mapping[str, str]) -> dict[str, str]:
    """What the run of every training says of itself from the start."""
    return {"family": recipe.model.family, "dataset": recipe.data.dataset, "state": "running", **tags}


def _row(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """The named hyperparameters and the widths; what another family has and this one lacks is 0, or - for a text."""
    flat = recipe.flat()
    absent = {
        name: text_of("-" if spec.kind is str else 0)
        for family in FAMILIES.values()
        for name, spec in known_hyperparameters(family).items()
    }
    row = {name: text_of(flat[name]) if name in flat else absent[name] for name in names}
    return {**row, "model.widths": recipe.widths or "-"}


Point = tuple[str, float, int, int]
"""Key, value, time in milliseconds, step: a point sent twice with one time is stored once."""


def _points(values: Mapping[str, float], step: int) -> list[Point]:
    at = _now()
    return [(key, float(value), at, step) for key, value in values.items()]


def _now() -> int:
    return int(time.time() * 1000)
