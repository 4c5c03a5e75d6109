"""Events: what is written to runs of MLflow, as the outbox keeps it.

The values of `EventKind` and the keys of the bodies are stored in outboxes and never change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Protocol, Self

from fmnist_search.errors import UserError

MetricPoint = tuple[str, float, int, int]
"""Key, value, time in milliseconds, step. MLflow stores a point that is sent twice with the same time once."""


class EventKind(StrEnum):
    """What an event does with its run."""

    CREATE_RUN = "open"
    BATCH = "batch"
    PARAMS = "parameters"
    ARTIFACT = "file"
    RENDERING = "drawing"
    DATASET = "dataset"
    SET_STATUS = "status"
    END_RUN = "end"


@dataclass(frozen=True)
class Event:
    """Something to write to a run of MLflow.

    `run_key` names the run, `kind` tells which payload `body` holds, `content` are the bytes of an artifact. A
    `deferred` event is sent when nothing else is pending. An `attempted` event may have reached the store already.
    `kind` is a plain string because an outbox may hold events of a later version.
    """

    run_key: str
    kind: str
    body: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    deferred: bool = False
    number: int = 0
    attempted: bool = False


@dataclass(frozen=True)
class Payload:
    """The body of an event as typed values."""

    kind: ClassVar[EventKind]
    body_keys: ClassVar[Mapping[str, str]] = {}
    """Keys in the body, by field, if they differ from the name of the field."""

    def to_body(self) -> dict[str, Any]:
        """Return the body as it is stored. Values that equal their default are left out."""
        keys = self._keys()
        values = {each: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {keys[each.name]: value for each, value in values.items() if value != each.default}

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """Return the payload of a stored body.

        Raises:
            KeyError: if a value without a default is missing.
        """
        keys, fields = cls._keys(), dataclasses.fields(cls)
        present = [f.name for f in fields if f.default is dataclasses.MISSING or keys[f.name] in body]
        return cls(**{name: body[keys[name]] for name in present})

    def event(self, run_key: str, content: bytes | None = None, *, deferred: bool = False) -> Event:
        """Return the event that writes this, and the bytes `content`, to a run."""
        return Event(run_key, self.kind.value, self.to_body(), content, deferred)

    @classmethod
    def _keys(cls) -> dict[str, str]:
        return {each.name: cls.body_keys.get(each.name, each.name) for each in dataclasses.fields(cls)}


@dataclass(frozen=True)
class CreateRun(Payload):
    """Create a run below the run `parent_id`, with a start time in milliseconds.

    If it `may_exist`, the run is looked up by its key first.
    """

    kind = EventKind.CREATE_RUN
    body_keys: ClassVar[Mapping[str, str]] = {"parent_id": "parent", "start_ms": "at"}
    parent_id: str
    name: str
    tags: Mapping[str, str]
    start_ms: int
    may_exist: bool = False


@dataclass(frozen=True)
class Batch(Payload):
    """Log metrics, parameters and tags in one call.

    With `only_new_points`, points of metrics are left out whose step the run has already.
    """

    kind = EventKind.BATCH
    body_keys: ClassVar[Mapping[str, str]] = {"params": "parameters"}
    metrics: list[MetricPoint] | None = None
    params: Mapping[str, str] | None = None
    tags: Mapping[str, str] | None = None
    only_new_points: bool = False


@dataclass(frozen=True)
class Params(Payload):
    """Log those parameters that the run does not have yet."""

    kind = EventKind.PARAMS
    body_keys: ClassVar[Mapping[str, str]] = {"params": "values"}
    params: Mapping[str, str]


@dataclass(frozen=True)
class Artifact(Payload):
    """Store the content of the event as an artifact."""

    kind = EventKind.ARTIFACT
    path: str


@dataclass(frozen=True)
class Rendering(Payload):
    """Store as an artifact what the renderer of a name makes of `data`."""

    kind = EventKind.RENDERING
    body_keys: ClassVar[Mapping[str, str]] = {"renderer": "artist", "data": "of"}
    path: str
    renderer: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class LogDataset(Payload):
    """Log the dataset that the run trains on. `source` and `profile` are JSON texts."""

    kind = EventKind.DATASET
    name: str
    digest: str
    source: str
    profile: str


@dataclass(frozen=True)
class SetStatus(Payload):
    """Set MLflow's status of a run that stops for now or goes on. One that stops gets its end time in milliseconds."""

    kind = EventKind.SET_STATUS
    body_keys: ClassVar[Mapping[str, str]] = {"end_ms": "at"}
    status: str
    end_ms: int | None = None


@dataclass(frozen=True)
class EndRun(Payload):
    """Close the run at a time in milliseconds.

    `tracking_seconds` is how long the earlier events of the run took, without those of the same call; the sender adds
    it. `batch` is the body of a `Batch` that is logged in the same call; it is not stored in outboxes.
    """

    kind = EventKind.END_RUN
    body_keys: ClassVar[Mapping[str, str]] = {"end_ms": "at", "tracking_seconds": "seconds"}
    status: str
    end_ms: int
    step: int
    tracking_seconds: float | None = None
    batch: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RunProgress:
    """What has been sent of a training: its epochs up to one, and how its trial ended, once it has.

    `writer` is what `EventSink.claim_run` returned to the only logger that may send more.
    """

    epochs: int = 0
    outcome: Mapping[str, Any] | None = None
    writer: str | None = field(default=None, compare=False)


class RunTakenOver(UserError):
    """Raised if a logger writes to a run that another one goes on with: its process was frozen for a while."""


class EventSink(Protocol):
    """Where events are put to be delivered to the store."""

    def send(self, *events: Event, progress: RunProgress | None = None) -> None:
        """Take events, all or none, and deliver them after all that were sent before.

        With `progress`, all of them belong to one run, and its progress is stored with them.

        Raises:
            RunTakenOver: if another logger has claimed the run since.
        """

    def claim_run(self, run_key: str) -> str:
        """Let only the caller send events with the progress of a run from now on; return its name as a writer."""

    def progress(self, run_key: str) -> RunProgress | None:
        """Return the progress of the run with this key; None if none is stored."""

    def forget_progress(self, run_key: str) -> None:
        """Remove the progress of a run that has ended."""

    def run_id(self, run_key: str) -> str | None:
        """Return the id of the run with this key; None before MLflow has created it."""

    def remember_run(self, run_key: str, run_id: str) -> None:
        """Store the id of the run with this key."""
