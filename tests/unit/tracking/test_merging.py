"""Events that MLflow takes in one call are merged into one, which writes the same."""

from __future__ import annotations

from collections.abc import Sequence

import mlflow.utils.validation as limits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.tracking.events import Artifact, Batch, EndRun, Event, EventKind
from fmnist_search.tracking.merging import MAX_ENTITIES, MAX_METRICS, MAX_PARAMS_OR_TAGS, merge_events

END = EndRun("FINISHED", 1, 9).event("run")

NAMES = st.sampled_from("abc")
VALUES = st.dictionaries(NAMES, st.sampled_from("12"), max_size=2)
BATCHES = st.builds(
    Batch,
    st.none() | st.lists(st.tuples(NAMES, st.sampled_from([0.0, 1.0]), st.just(1), st.just(1)), max_size=2),
    st.none() | VALUES,
    st.none() | VALUES,
    st.sampled_from([False, False, False, True]),
)


def batch_of(event: Event) -> Batch:
    return Batch.from_body(event.body.get("batch", {}) if event.kind == EventKind.END_RUN else event.body)


def written(events: Sequence[Event]) -> tuple[list[object], dict[str, str]]:
    """Return the metrics in order and the last value of each tag."""
    batches = [batch_of(event) for event in events if event.kind in (EventKind.BATCH, EventKind.END_RUN)]
    tags = {name: value for batch in batches for name, value in (batch.tags or {}).items()}
    return [point for batch in batches for point in batch.metrics or []], tags


@given(st.lists(st.one_of(BATCHES.map(lambda batch: batch.event("run")), st.just(END)), max_size=8))
def test_merged_events_write_the_same_in_the_same_order(events: list[Event]) -> None:
    merged = list(merge_events(events))
    assert [part for _, parts in merged for part in parts] == events
    assert written([event for event, _ in merged]) == written(events)
    for event, parts in merged:
        for part in parts:  # one that MLflow must refuse, because the run has another value, is not merged
            assert (batch_of(part).params or {}).items() <= (batch_of(event).params or {}).items()
        assert len(parts) == 1 or not any(batch_of(part).only_new_points for part in parts)


@pytest.mark.parametrize(("metrics", "params", "tags", "calls"), [(90, 0, 0, 3), (0, 30, 0, 10), (0, 0, 50, 15)])
def test_a_call_is_not_larger_than_mlflow_allows(metrics: int, params: int, tags: int, calls: int) -> None:
    batches = [
        Batch(
            [("loss", 0.5, number, step) for step in range(metrics)],
            {f"param {number} {each}": "1" for each in range(params)},
            {f"tag {number} {each}": "1" for each in range(tags)},
        )
        for number in range(30)
    ]
    merged = [batch_of(event) for event, _ in merge_events([batch.event("run") for batch in batches])]
    assert len(merged) == calls
    for batch in merged:
        sizes = [len(values or ()) for values in (batch.metrics, batch.params, batch.tags)]
        assert sizes[0] <= limits.MAX_METRICS_PER_BATCH
        assert max(sizes[1:]) <= limits.MAX_PARAMS_TAGS_PER_BATCH
        assert sum(sizes) <= limits.MAX_ENTITIES_PER_BATCH


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
