"""Merging of the events of a run: one call of MLflow takes the metrics, parameters and tags of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from fmnist_search.tracking.events import Batch, Event, EventKind

MAX_METRICS, MAX_PARAMS_OR_TAGS, MAX_ENTITIES = 1000, 100, 1000
"""MLflow's limits of one call. They are not imported: commands that only read import this, and start without MLflow."""

Merged = tuple[Event, Sequence[Event]]
"""An event that writes the same as several, and these events."""


def merge_events(events: Sequence[Event]) -> Iterator[Merged]:
    """Merge each row of batches, and the end of the run after it, as far as the limits of MLflow's call allow.

    The events are of one run. What they write, and its order, stays the same.
    """
    rest = list(events)
    while rest:
        batch, count = _merge_batches(rest)
        if batch is None:
            yield rest[0], rest[:1]
        elif count < len(rest) and rest[count].kind == EventKind.END_RUN and isinstance(rest[count].body, Mapping):
            body = {**rest[count].body, "batch": batch.to_body()}
            count += 1
            yield dataclasses.replace(rest[count - 1], body=body), rest[:count]
        else:
            yield (dataclasses.replace(rest[0], body=batch.to_body()) if count > 1 else rest[0]), rest[:count]
        rest = rest[max(count, 1) :]


def _merge_batches(events: Sequence[Event]) -> tuple[Batch | None, int]:
    """Return a batch that writes what the first events do, and their number; None if the first is no such batch."""
    merged, count = None, 0
    for event in events:
        batch = _mergeable_batch(event)
        together = batch if merged is None or batch is None else _merge_two(merged, batch)
        if together is None:
            break
        merged, count = together, count + 1
    return merged, count


def _mergeable_batch(event: Event) -> Batch | None:
    """Return the batch that an event writes; None if it writes something else, or what is stored depends on the run."""
    if event.kind != EventKind.BATCH or not isinstance(event.body, Mapping):
        return None
    batch = Batch.from_body(event.body)
    is_valid = all(isinstance(values, Mapping) for values in (batch.params or {}, batch.tags or {}))
    return batch if is_valid and isinstance(batch.metrics or [], list) and not batch.only_new_points else None


def _merge_two(first: Batch, second: Batch) -> Batch | None:
    """Return a batch that writes both; None if MLflow does not take it, or must refuse a parameter of the second."""
    params, added = dict(first.params or {}), second.params or {}
    if any(params.get(name, value) != value for name, value in added.items()):
        return None
    params.update(added)
    metrics, tags = [*(first.metrics or ()), *(second.metrics or ())], {**(first.tags or {}), **(second.tags or {})}
    if (
        len(metrics) > MAX_METRICS
        or max(len(params), len(tags)) > MAX_PARAMS_OR_TAGS
        or len(metrics) + len(params) + len(tags) > MAX_ENTITIES
    ):
        return None
    return Batch(metrics or None, params or None, tags or None)
