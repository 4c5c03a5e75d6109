"""Events that MLflow takes in one call are merged into one, which writes the same."""

from __future__ import annotations

from collections.abc import Sequence

import mlflow.utils.validation as limits
from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.tracking.events import Artifact, Batch, EndRun, Event, EventKind
from fmnist_search.tracking.merging import MAX_ENTITIES, MAX_METRICS, MAX_PARAMS_OR_TAGS, merge_events

END = EndRun("FINISHED", 1, 9).event("run")

NAMES = st.sampled_from("abc")
BATCHES = st.builds(
    Batch,
    st.none() | st.lists(st.tuples(NAMES, st.floats(0, 1), st.integers(0, 3), st.integers(0, 3)), max_size=700),
    st.none() | st.dictionaries(NAMES, st.sampled_from("12"), max_size=2),
    st.none() | st.dictionaries(st.integers(0, 500).map(str), st.sampled_from("12"), max_size=60),
    st.booleans(),
)


def batch_of(event: Event) -> Batch:
    return Batch.from_body(event.body.get("batch", {}) if event.kind == EventKind.END_RUN else event.body)


def written(events: Sequence[Event]) -> tuple[list[object], dict[str, str]]:
    """Return the metrics in order and the last value of each tag."""
    batches = [batch_of(event) for event in events if event.kind in (EventKind.BATCH, EventKind.END_RUN)]
    tags = {name: value for batch in batches for name, value in (batch.tags or {}).items()}
    return [point for batch in batches for point in batch.metrics or []], tags


@given(st.lists(st.one_of(BATCHES.map(lambda batch: batch.event("run")), st.just(END)), max_size=12))
def test_merged_events_write_the_same_in_the_same_order_within_the_limits_of_mlflow(events: list[Event]) -> None:
    merged = list(merge_events(events))
    assert [part for _, parts in merged for part in parts] == events
    assert written([event for event, _ in merged]) == written(events)
    for event, parts in merged:
        batch = batch_of(event)
        metrics, params, tags = map(len, (batch.metrics or [], batch.params or {}, batch.tags or {}))
        assert metrics <= limits.MAX_METRICS_PER_BATCH
        assert params + tags + metrics <= limits.MAX_ENTITIES_PER_BATCH
        assert max(params, tags) <= limits.MAX_PARAMS_TAGS_PER_BATCH
        for part in parts:
            assert (batch_of(part).params or {}).items() <= (batch.params or {}).items()
        assert len(parts) == 1 or not any(batch_of(part).only_new_points for part in parts)


def test_the_limits_are_those_of_mlflow() -> None:
    assert MAX_METRICS == limits.MAX_METRICS_PER_BATCH
    assert MAX_PARAMS_OR_TAGS == limits.MAX_PARAMS_TAGS_PER_BATCH
    assert MAX_ENTITIES == limits.MAX_ENTITIES_PER_BATCH


def test_the_epochs_of_a_run_and_its_end_are_one_event_and_an_artifact_is_another() -> None:
    epochs = [Batch([("val/accuracy", 0.1 * step, step, step)]).event("run") for step in range(1, 10)]
    artifact = Artifact("recipe.toml").event("run", b"")
    assert [list(parts) for _, parts in merge_events([artifact, *epochs, END])] == [[artifact], [*epochs, END]]


def test_a_damaged_event_is_not_merged() -> None:
    good = Batch(tags={"state": "running"}).event("run")
    for body in ([], {"tags": 3}, {"metrics": "many"}):
        damaged = Event("run", EventKind.BATCH, body)  # type: ignore[arg-type]
        assert [list(parts) for _, parts in merge_events([good, damaged, good])] == [[good], [damaged], [good]]
