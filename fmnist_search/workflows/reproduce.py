"""A run's recipe trained again, under the conditions it was trained under, and compared to the last bit.

A trial is run as its study's first session settled it: device, threads, engine, memory format and allocator are taken
from the record and not found out anew.
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
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.formatting import format_value
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.provenance import environment
from fmnist_search.tracking.run_logger import RECIPE_FILE
from fmnist_search.tracking.store import FinishedRun, MlflowStore
from fmnist_search.tracking.stored_runs import ENVIRONMENT_FILE, TrainedRun, load_environment, read_run
from fmnist_search.tracking.stored_training import execution_from_environment
from fmnist_search.training.trial import run_trial
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workspace import Workspace

COMPARED_METRICS = {
    metric_names.TRAIN_LOSS: "train_loss",
    metric_names.VAL_LOSS: "val_loss",
    metric_names.VAL_ACCURACY: "val_accuracy",
}
"""What is compared: metrics, and where an epoch's report holds them."""


@dataclass(frozen=True)
class EpochComparison:
    """The figures of one epoch, by metric: as they were, and as they are; None where there was or is none."""

    epoch: int
    metrics: Mapping[str, tuple[float | None, float | None]]

    @property
    def is_identical(self) -> bool:
        """Whether all are the same doubles."""
        return all(was == now for was, now in self.metrics.values())

    @property
    def differences(self) -> dict[str, float | None]:
        """By how much each figure that is not the same differs; None where one of the two is missing."""
        pairs = self.metrics.items()
        return {name: None if was is None or now is None else now - was for name, (was, now) in pairs if was != now}


@dataclass(frozen=True)
class Reproduction:
    """What came of it: the epochs side by side, and what of the environment is not as it was.

    `reason` says why the training ended before its time, if it did; `run_id` is the new run, where it was recorded.
    """

    original: TrainedRun
    execution: Execution
    epochs: tuple[EpochComparison, ...]
    environment_changes: Mapping[str, tuple[str, str]]
    reason: str | None
    run_id: str | None

    @property
    def is_identical(self) -> bool:
        """Whether every epoch is the same, bit for bit."""
        return self.reason is None and all(pair.is_identical for pair in self.epochs)


def reproduce(
    run_id: str,
    *,
    workspace: Workspace | None = None,
    callback: StudyCallback | None = None,
    record: bool = True,
) -> Reproduction:
    """Train a run's recipe again as it was trained, for as many epochs as are on record, and compare.

    Raises:
        UserError: no such run, nothing in it to compare with, no record of its conditions, or they cannot be had here.
    """
    workspace, callback = workspace or Workspace.resolve(), callback or StudyCallback()
    with store_errors(workspace.tracking_uri):
        tracking = MlflowStore(workspace.tracking_uri, "fmnist-search")
        original = read_run(tracking, run_id)
        if original.state == "running":
            raise UserError(f"run {run_id!r}: is not at its end; wait for it, or take a run that is")
        before = load_environment(tracking, original)
        history = _metric_history(tracking, run_id)
    if not history:
        raise UserError(f"run {run_id!r}: has no epoch on record, so there is nothing to compare with; take another")
    execution = execution_from_environment(before, run_id)
    result, moments = _retrain(original, execution, len(history), callback, DataSource.from_workspace(workspace))
    reports = {report.epoch: report for report in result.epochs}
    pairs = tuple(
        EpochComparison(epoch, _compare_epoch(figures, reports.get(epoch))) for epoch, figures in history.items()
    )
    done = Reproduction(
        original=original,
        execution=execution,
        epochs=pairs,
        environment_changes=_environment_changes(before, environment(execution)),
        reason=result.reason if result.state is TrialState.FAILED else None,
        run_id=None,
    )
    if not record:
        return done
    with store_errors(workspace.tracking_uri):
        return dataclasses.replace(done, run_id=_log_run(tracking, done, result, moments))


def _retrain(
    original: TrainedRun, execution: Execution, epochs: int, callback: StudyCallback, source: DataSource
) -> tuple[TrialResult, list[float]]:
    """The training, ended after so many epochs (the original may have been pruned there), and when each was over."""
    recipe, name = original.recipe, f"{original.name}, again"
    images = load_images(recipe.data, source, execution.device)
    moments: list[float] = []

    def observe(report: EpochReport) -> Decision:
        moments.append(time.time())
        callback.on_epoch_end(name, report)
        return Decision.PRUNE if report.epoch >= epochs else Decision.CONTINUE

    callback.on_training_start(name, recipe)
    result = run_trial(recipe, images, execution, observe)
    callback.on_training_end(name)
    return result, moments


def _metric_history(mlflow_store: MlflowStore, run_id: str) -> dict[int, dict[str, float]]:
    """The figures on record, by epoch."""
    found: dict[int, dict[str, float]] = {}
    for name in COMPARED_METRICS:
        for step, value in mlflow_store.metric_history(run_id, name):
            found.setdefault(step, {})[name] = value
    return dict(sorted(found.items()))


def _compare_epoch(
    original: Mapping[str, float], report: EpochReport | None
) -> dict[str, tuple[float | None, float | None]]:
    now = _epoch_metrics(report) if report else {}
    return {name: (original.get(name), now.get(name)) for name in COMPARED_METRICS if name in original or name in now}


def _epoch_metrics(report: EpochReport) -> dict[str, float]:
    values = {name: getattr(report, field) for name, field in COMPARED_METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}


def _environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What of an environment is not as it was, each with both its values."""
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
    """A run of its own that points to the one it trained again."""
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
