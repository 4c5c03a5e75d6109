"""The runs of a study as MLflow holds them: listed in pages, and brought up to date."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.utils import _get_store
from mlflow.utils import get_results_from_paginated_fn
from mlflow.utils.rest_utils import http_request, verify_rest_response

from fmnist_search.processes import has_ended
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.events import MetricPoint
from fmnist_search.tracking.store import FinishedRun, MlflowStore

PAGE_SIZE = 1_000
OPEN_STATUSES, ENDED_STATUSES = ("RUNNING", "SCHEDULED"), ("FINISHED", "KILLED", "FAILED")
RUNS_PER_REQUEST, POINTS_PER_REQUEST = 100, 25_000
"""What a server answers at most in one request for the points of a metric."""
POINTS_PATH = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


Item = TypeVar("Item")


@dataclass(frozen=True)
class ListedRun:
    """The run of a study, or one below it.

    `key` is the tag by which the outbox finds the run, or the id of a run without it. `metrics` are the last values, by
    key; `points` are the validation accuracies (epoch, value) in the order of their times. A run that is not active
    was deleted. `process_ended` says whether the process that writes it has ended; None if that is unknown.
    """

    run_id: str
    key: str
    name: str
    status: str
    is_active: bool
    started_ms: int
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    process_ended: bool | None = None
    points: tuple[tuple[int, float], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status in OPEN_STATUSES

    @property
    def kind(self) -> str:
        """What it is a run of."""
        return self.tags.get(tag_names.KIND, "")

    @property
    def curve(self) -> dict[int, float]:
        """The validation accuracy of each epoch; of several for one epoch the latest."""
        return dict(self.points)


def list_runs(store: MlflowStore, study_run_id: str, *, only_open: bool = False) -> list[ListedRun]:
    """Return the run of a study, and the runs below it with those that were deleted.

    With `only_open`, those that have ended are left out, which takes no longer for many runs.
    """
    study_run = store.client.get_run(study_run_id)
    condition = " AND ".join(f"attributes.status != '{status}'" for status in ENDED_STATUSES) if only_open else ""
    below = search_children(store, str(study_run.info.experiment_id), study_run_id, condition, ViewType.ALL)
    runs = list(map(_listed_run, [study_run, *below]))
    points: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    measured = [run.run_id for run in runs if metric_names.VAL_ACCURACY in run.metrics]
    for run_id, epoch, value in _metric_points(store, measured, metric_names.VAL_ACCURACY):
        points[run_id].append((epoch, value))
    return [replace(run, points=tuple(points[run.run_id])) for run in runs]


def search_children(
    store: MlflowStore, experiment_id: str, run_id: str, condition: str = "", view: int = ViewType.ACTIVE_ONLY
) -> list[Run]:
    """Return the runs below a run."""
    below = f"tags.`{tag_names.PARENT_RUN_ID}` = '{run_id}'"
    query = f"{below} AND {condition}" if condition else below

    def search(count: int, token: str | None) -> list[Run]:
        return store.client.search_runs([experiment_id], query, view, count, page_token=token)

    found: list[Run] = get_results_from_paginated_fn(search, PAGE_SIZE)  # type: ignore[no-untyped-call]
    return found


def complete_run(store: MlflowStore, run: ListedRun, finished: FinishedRun, ended_ms: int) -> int:
    """Add to a run what it lacks of `finished`, and end it; return the number of points of the validation accuracy.

    Metrics and parameters that the run has are left as they are, except for a validation accuracy that differs.
    Repeating this changes nothing.
    """
    missing = [point for point in finished.metrics if not _has_point(run, point)]
    restored = sum(point[0] == metric_names.VAL_ACCURACY for point in missing)
    names = {tag_names.STATE, tag_names.REASON, tag_names.EPOCHS} | ({tag_names.REBUILT} if restored else set())
    tags = [
        RunTag(name, value) for name, value in finished.tags.items() if name in names and (value or name in run.tags)
    ]
    params = [Param(name, value) for name, value in finished.params.items() if name not in run.params]
    for chunk in _chunks(missing, PAGE_SIZE):
        store.client.log_batch(run.run_id, [Metric(*point) for point in chunk])
    store.client.log_batch(run.run_id, params=params, tags=tags)
    if run.status != finished.status:
        store.client.set_terminated(run.run_id, finished.status, ended_ms)
    return restored


def end_run(store: MlflowStore, run_id: str, status: str, state: str, reason: str) -> None:
    """Give a run MLflow's `status`, with the tags that say why. One that is SCHEDULED goes on later."""
    store.set_tags(run_id, {tag_names.STATE: state, tag_names.REASON: reason})
    if status in OPEN_STATUSES:
        store.client.update_run(run_id, status=status)
    else:
        store.client.set_terminated(run_id, status)


def _has_point(run: ListedRun, point: MetricPoint) -> bool:
    key, value, _, step = point
    if key != metric_names.VAL_ACCURACY:
        return key in run.metrics
    return step in run.curve and math.isclose(run.curve[step], value)


def _listed_run(run: Run) -> ListedRun:
    info, tags = run.info, run.data.tags
    process = tags.get(tag_names.PROCESS)
    return ListedRun(
        run_id=str(info.run_id),
        key=str(tags.get(tag_names.RUN_KEY, info.run_id)),
        name=str(info.run_name),
        status=str(info.status),
        is_active=str(info.lifecycle_stage) == "active",
        started_ms=int(info.start_time or 0),
        tags=tags,
        metrics=run.data.metrics,
        params=run.data.params,
        process_ended=has_ended(process) if process else None,
    )


def _metric_points(store: MlflowStore, run_ids: Sequence[str], key: str) -> Iterator[tuple[str, int, float]]:
    """Yield the points of a metric as (run, step, value), those of a run in the order of their times."""
    tracking_store = _get_store(store.uri)  # type: ignore[no-untyped-call]
    for chunk in _chunks(run_ids, RUNS_PER_REQUEST):
        with contextlib.suppress(MlflowException):  # a proxy need not let the path through
            points = _request_points(tracking_store, chunk, key)
            if len(points) < POINTS_PER_REQUEST:
                yield from points
                continue
        for run_id in chunk:
            history = store.client.get_metric_history(run_id, key)
            for point in sorted(history, key=lambda point: (point.timestamp, point.step)):
                yield run_id, point.step, point.value


def _request_points(tracking_store: Any, run_ids: Sequence[str], key: str) -> list[tuple[str, int, float]]:
    """Return the points of a metric of up to `RUNS_PER_REQUEST` runs in one call, `POINTS_PER_REQUEST` at most."""
    if isinstance(tracking_store, RestStore):
        query = {"run_id": list(run_ids), "metric_key": key, "max_results": POINTS_PER_REQUEST}
        response = http_request(tracking_store.get_host_creds(), POINTS_PATH, "GET", params=query)  # type: ignore[no-untyped-call]
        answered = verify_rest_response(response, POINTS_PATH).json()["metrics"]
        return [(point["run_id"], int(point["step"]), float(point["value"])) for point in answered]
    found = tracking_store.get_metric_history_bulk(list(run_ids), key, POINTS_PER_REQUEST)
    return [(point.run_id, point.step, point.value) for point in found]


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
