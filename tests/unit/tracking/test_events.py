"""Events have the kinds and bodies that outboxes hold since the first version, and are read back from them."""

from __future__ import annotations

import json

import pytest

from fmnist_search.tracking.events import (
    Artifact,
    Batch,
    CreateRun,
    EndRun,
    EventKind,
    LogDataset,
    Params,
    Payload,
    Rendering,
    SetStatus,
)

STORED_EVENTS: list[tuple[Payload, str, str]] = [
    (
        CreateRun("study", "000 cnn", {"kind": "trial"}, 5),
        "open",
        '{"parent": "study", "name": "000 cnn", "tags": {"kind": "trial"}, "at": 5}',
    ),
    (
        Batch([("val/accuracy", 0.5, 5, 1)], {"epochs": "3"}, {"state": "running"}),
        "batch",
        '{"metrics": [["val/accuracy", 0.5, 5, 1]], "parameters": {"epochs": "3"}, "tags": {"state": "running"}}',
    ),
    (Batch(tags={"state": "running"}), "batch", '{"tags": {"state": "running"}}'),
    (Params({"epochs": "3"}), "parameters", '{"values": {"epochs": "3"}}'),
    (Artifact("plots/a.png"), "file", '{"path": "plots/a.png"}'),
    (
        Rendering("a.png", "confusion", {"title": "a"}),
        "drawing",
        '{"path": "a.png", "artist": "confusion", "of": {"title": "a"}}',
    ),
    (
        LogDataset("mnist", "d", "{}", "{}"),
        "dataset",
        '{"name": "mnist", "digest": "d", "source": "{}", "profile": "{}"}',
    ),
    (
        CreateRun("study", "000 cnn", {}, 5, may_exist=True),
        "open",
        '{"parent": "study", "name": "000 cnn", "tags": {}, "at": 5, "may_exist": true}',
    ),
    (Batch(tags={}, only_new_points=True), "batch", '{"tags": {}, "only_new_points": true}'),
    (SetStatus("RUNNING"), "status", '{"status": "RUNNING"}'),
    (SetStatus("KILLED", 5), "status", '{"status": "KILLED", "at": 5}'),
    (EndRun("FINISHED", 5, 3), "end", '{"status": "FINISHED", "at": 5, "step": 3}'),
    (EndRun("FINISHED", 5, 3, 0.5), "end", '{"status": "FINISHED", "at": 5, "step": 3, "seconds": 0.5}'),
]


@pytest.mark.parametrize(("payload", "kind", "body"), STORED_EVENTS, ids=lambda value: getattr(value, "kind", ""))
def test_kind_and_body_are_stored_as_they_always_were(payload: Payload, kind: str, body: str) -> None:
    event = payload.event("run", b"content", deferred=True)
    assert (event.run_key, event.kind, json.dumps(dict(event.body))) == ("run", kind, body)
    assert (event.content, event.deferred, event.attempted) == (b"content", True, False)
    again = type(payload).from_body(json.loads(body))
    assert json.dumps(again.to_body()) == body


def test_every_kind_has_a_payload() -> None:
    assert {payload.kind for payload, *_ in STORED_EVENTS} == set(EventKind)


def test_a_body_may_hold_more_but_not_less() -> None:
    assert Artifact.from_body({"path": "a", "of a later version": 1}) == Artifact("a")
    with pytest.raises(KeyError, match="path"):
        Artifact.from_body({})
