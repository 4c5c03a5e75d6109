"""Reproduction of a run: its recipe is trained again with the same execution, and all metrics are compared exactly.

Device, threads, engine, memory format and allocator are those that the run recorded; nothing is measured anew.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import load_images
from fmnist_search.errors import UserError
from fmnist_search.files import private_files
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.formatting import format_value
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.artifact_locations import check_project
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.provenance import environment
from fmnist_search.tracking.store import FinishedRun, MlflowStore
from fmnist_search.tracking.stored_runs import ENVIRONMENT_FILE, TrainedRun, load_environment, read_run
from fmnist_search.tracking.stored_training import execution_from_environment
from fmnist_search.tracking.training_run_logger import RECIPE_FILE
from fmnist_search.training.trial import run_trial
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workspace import Workspace

COMPARED_METRICS = {
    metric_names.TRAIN_LOSS: "train_loss",
    metric_names.VAL_LOSS: "val_loss",
    metric_names.VAL_ACCURACY: "val_accuracy",
}
"""The compared metrics, each with the attribute of an epoch report that holds it."""


@dataclass(frozen=True)
class EpochComparison:
    """The metrics of one epoch by name: the original value and the reproduced one; None for a missing value."""

    epoch: int
    metrics: Mapping[str, tuple[float | None, float | None]]

    @property
    def is_identical(self) -> bool:
        """Whether all values are equal, bit for bit."""
        return all(was == now for was, now in self.metrics.values())

    @property
    def differences(self) -> dict[str, float | None]:
        """The differences of the metrics that are not equal; None if one of the values is missing."""
        pairs = self.metrics.items()
        return {name: None if was is None or now is None else now - was for name, (was, now) in pairs if was != now}


@dataclass(frozen=True)
class Reproduction:
    """The comparison of a run with its reproduction: all epochs, and the changes of the environment.

    `reason` is the reason of a training that failed; `run_id` is the new run, if one was recorded.
    """

    original: TrainedRun
    execution: Execution
    epochs: tuple[EpochComparison, ...]
    environment_changes: Mapping[str, tuple[str, str]]
    reason: str | None
    run_id: str | None

    @property
    def is_identical(self) -> bool:
        """Whether all epochs are equal, bit for bit."""
        return self.reason is None and all(pair.is_identical for pair in self.epochs)


def reproduce(
    run_id: str,
    *,
    workspace: Workspace | None = None,
    callback: StudyCallback | None = None,
    record: bool = True,
) -> Reproduction:
    """Train the recipe of a run again for the recorded number of epochs, and compare the metrics.

    With `record`, the reproduction becomes a run in MLflow.

    Raises:
        UserError: if there is no such run, it still runs, it recorded no epochs or no environment, or its device is
            missing here.
    """
    workspace, callback = workspace or Workspace.resolve(), callback or StudyCallback()
    with store_errors(workspace.tracking_uri):
        check_project(workspace.tracking_uri)
        store = MlflowStore(workspace.tracking_uri, "fmnist-search")
        original = read_run(store, run_id)
        if original.state == "running":
            raise UserError(f"run {run_id!r}: has not ended; wait for it, or give another run")
        before = load_environment(store, original)
        history = _metric_history(store, run_id)
    if not history:
        raise UserError(f"run {run_id!r}: recorded no epoch, so there is nothing to compare with; give another run")
    execution = execution_from_environment(before, run_id)
    result, epoch_times = _retrain(original, execution, len(history), callback, DataSource.from_workspace(workspace))
    reports = {report.epoch: report for report in result.epochs}
    pairs = tuple(
        EpochComparison(epoch, _compare_epoch(figures, reports.get(epoch))) for epoch, figures in history.items()
    )
    reproduction = Reproduction(
        original=original,
        execution=execution,
        epochs=pairs,
        environment_changes=_environment_changes(before, environment(execution)),
        reason=result.reason if result.state is TrialState.FAILED else None,
        run_id=None,
    )
    if not record:
        return reproduction
    with private_files(), store_errors(workspace.tracking_uri):
        return dataclasses.replace(reproduction, run_id=_log_run(store, reproduction, result, epoch_times))


def _retrain(
    original: TrainedRun, execution: Execution, epochs: int, callback: StudyCallback, source: DataSource
) -> tuple[TrialResult, list[float]]:
    """Return the result after `epochs` epochs, where the original may have been pruned, and the times of their ends."""
    recipe, name = original.recipe, f"{original.name}, again"
    images = load_images(recipe.data, source, execution.device)
    epoch_times: list[float] = []

    def observe(report: EpochReport) -> Decision:
        epoch_times.append(time.time())
        callback.on_epoch_end(name, report)
        return Decision.PRUNE if report.epoch >= epochs else Decision.CONTINUE

    callback.on_training_start(name, recipe)
    result = run_trial(recipe, images, execution, observe)
    callback.on_training_end(name)
    return result, epoch_times


def _metric_history(mlflow_store: MlflowStore, run_id: str) -> dict[int, dict[str, float]]:
    """Return the recorded metrics by epoch."""
    history: dict[int, dict[str, float]] = {}
    for name in COMPARED_METRICS:
        for step, value in mlflow_store.metric_history(run_id, name):
            history.setdefault(step, {})[name] = value
    return dict(sorted(history.items()))


def _compare_epoch(
    original: Mapping[str, float], report: EpochReport | None
) -> dict[str, tuple[float | None, float | None]]:
    now = _epoch_metrics(report) if report else {}
    return {name: (original.get(name), now.get(name)) for name in COMPARED_METRICS if name in original or name in now}


def _epoch_metrics(report: EpochReport) -> dict[str, float]:
    values = {name: getattr(report, field) for name, field in COMPARED_METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}


def _environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the entries of the environment that changed, each with its old and its new value."""
    was, is_now = _flatten_texts(before), _flatten_texts(now)
    names = dict.fromkeys([*was, *is_now])
    return {n: (was.get(n, "-"), is_now.get(n, "-")) for n in names if was.get(n) != is_now.get(n)}


def _flatten_texts(stored: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, value in stored.items():
        texts |= (
            _flatten_texts(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {prefix + name: format_value(value)}
        )
    return texts


def _log_run(
    mlflow_store: MlflowStore, reproduction: Reproduction, result: TrialResult, epoch_times: list[float]
) -> str:
    """Create a run for the reproduction, tagged with the id of the original."""
    original, recipe = reproduction.original, reproduction.original.recipe
    tags = {
        tag_names.KIND: tag_names.TRAINING_RUN,
        tag_names.FAMILY: recipe.model.family,
        tag_names.DEVICE: reproduction.execution.device,
        tag_names.ENGINE: result.setup.engine,
        tag_names.STATE: result.state.value,
        tag_names.EPOCHS: str(len(result.epochs)),
        tag_names.REASON: reproduction.reason or "",
        tag_names.REPRODUCES: original.run_id,
        tag_names.IDENTICAL: format_value(reproduction.is_identical),
    }
    metrics = [
        (name, value, int(moment * 1000), report.epoch)
        for report, moment in zip(result.epochs, epoch_times, strict=True)
        for name, value in _epoch_metrics(report).items()
    ]
    summary = {metric_names.PARAMETER_COUNT: result.parameters, metric_names.TRIAL_SECONDS: result.seconds}
    if result.best_val_accuracy is not None:
        summary[metric_names.BEST_VAL_ACCURACY] = result.best_val_accuracy
    now = int(time.time() * 1000)
    run = FinishedRun(
        name=f"again {original.name}",
        tags=tags,
        params={name: format_value(value) for name, value in recipe.to_flat_dict().items()},
        metrics=[*metrics, *((name, float(value), now, len(result.epochs)) for name, value in summary.items())],
        texts={
            RECIPE_FILE: recipe_to_toml(recipe),
            ENVIRONMENT_FILE: json.dumps(environment(reproduction.execution), indent=2),
        },
        status="FAILED" if result.state is TrialState.FAILED else "FINISHED",
    )
    return mlflow_store.create_finished_run(original.experiment_id, run)
