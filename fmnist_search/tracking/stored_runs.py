"""Trainings as MLflow holds them: found by a run's id or a trial's number, and read back, their weights too."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fmnist_search.errors import UserError
from fmnist_search.models.classifier import Classifier
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.run_logger import resolve_run_ids
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.training.checkpoint import classifier_from_weights, state_from_bytes
from fmnist_search.training.runtime import resolve_execution
from fmnist_search.workspace import Workspace

ENVIRONMENT_FILE = "environment.json"
WEIGHTS_FILE = "weights.pt"
"""The artifact of a single training."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that trained a recipe; `accuracy` is the last epoch's on validation, `best` the highest of all."""

    run_id: str
    name: str
    kind: str
    state: str
    recipe: Recipe
    accuracy: float | None
    best: float | None
    epochs: int
    seconds: float | None
    parameters: int | None
    experiment_id: str
    parent: str | None
    study: str | None


def resolve_run_id(workspace: Workspace, run_or_trial: str, study: str) -> str:
    """The id of a run that is named by its id, or by its trial's number in a study.

    Raises:
        UserError: the study, or its trial, is not there, or the trial has no run.
    """
    if not is_trial_number(run_or_trial):
        return run_or_trial
    rows = {
        row.number: row
        for row in resolve_run_ids(workspace, StudyStore.load(workspace.storage_url, study).trial_records())
    }
    row = rows.get(int(run_or_trial))
    if row is None:
        known = f"give a number from 0 to {max(rows)}, or a run's id" if rows else "none has ended yet"
        raise UserError(f"trial {run_or_trial}: study {study!r} has no such trial that ended; {known}")
    if not row.run_id:
        raise UserError(f"trial {run_or_trial}: of study {study!r} has no run in MLflow; name another")
    return row.run_id


def is_trial_number(text: str) -> bool:
    """Whether this names a trial: a run's id has 32 characters."""
    return text.isdecimal() and len(text) < 32


def read_run(tracking: MlflowStore, run_id: str) -> TrainedRun:
    """A training's run.

    Raises:
        UserError: there is no such run, or it trained nothing.
    """
    recipe = None if _is_study(tracking, run_id) else tracking.load_recipe(run_id)
    run = tracking.client.get_run(run_id)
    tags, metrics = run.data.tags, run.data.metrics
    if recipe is None:
        raise UserError(f"run {run_id!r}: is that of the study {tags.get('study')!r}; name one of its trials' runs")
    parameters = metrics.get("model/parameters")
    return TrainedRun(
        run_id=run_id,
        name=str(run.info.run_name),
        kind=tags.get("kind", "-"),
        state=tags.get("state", "-"),
        recipe=recipe,
        accuracy=metrics.get("val/accuracy"),
        best=metrics.get("best/val_accuracy"),
        epochs=len(tracking.client.get_metric_history(run_id, "train/loss")),
        seconds=metrics.get("time/trial_seconds"),
        parameters=None if parameters is None else int(parameters),
        experiment_id=str(run.info.experiment_id),
        parent=tags.get(MLFLOW_PARENT_RUN_ID),
        study=tags.get("study"),
    )


def _is_study(tracking: MlflowStore, run_id: str) -> bool:
    try:
        run: Run = tracking.client.get_run(run_id)
    except MlflowException:
        return False
    return run.data.tags.get("kind") == "study"


def load_stored_classifier(workspace: Workspace, tracking: MlflowStore, run: TrainedRun) -> Classifier:
    """A run's network with the weights that were kept of it, in evaluation mode on the CPU.

    Of a single training they are an artifact of its run; of a trial that completed, a file of this home.

    Raises:
        UserError: none were kept, or what was kept is damaged or another network's.
    """
    name = f"run {run.run_id!r}: its kept weights"
    content = _read_artifact(tracking, run.run_id, WEIGHTS_FILE) or _read_trial_weights(workspace, run)
    if content is None:
        raise UserError(
            f"run {run.run_id!r}: no weights of it are kept here; train it again with `fmnist-search train --from-run "
            f"{run.run_id}` and name that run"
        )
    return classifier_from_weights(run.recipe, state_from_bytes(content, name), name)


def _read_artifact(tracking: MlflowStore, run_id: str, path: str) -> bytes | None:
    if not any(item.path == path for item in tracking.client.list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Path(tracking.client.download_artifacts(run_id, path, folder)).read_bytes()


def _read_trial_weights(workspace: Workspace, run: TrainedRun) -> bytes | None:
    """What a study has kept of the trial behind a run.

    The trial is looked for by its run: once a study was put aside by --fresh, its numbers are those of other trials.
    """
    if run.study is None:
        return None
    try:
        names = [name for name in StudyStore.study_names(workspace.storage_url) if name.startswith(run.study)]
    except UserError:  # no study was ever run here
        return None
    for study in names:
        for row in resolve_run_ids(workspace, StudyStore.load(workspace.storage_url, study).trial_records()):
            path = workspace.weights_path(study, row.number)
            if row.run_id == run.run_id and path.is_file():
                return path.read_bytes()
    return None


def load_environment(run: TrainedRun) -> dict[str, Any]:
    """Under what a run was trained: its own record, or that of the study it belongs to.

    Raises:
        UserError: neither has one.
    """
    for run_id in (run.run_id, run.parent):
        if run_id is not None:
            try:
                stored: dict[str, Any] = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{ENVIRONMENT_FILE}"))
            except (MlflowException, OSError):
                continue
            return stored
    raise UserError(f"run {run.run_id!r}: has no {ENVIRONMENT_FILE}, nor has its study; it cannot be trained alike")


def execution_from_environment(environment: Mapping[str, Any], run_id: str) -> Execution:
    """How a run was trained, from the record of its environment; a field that is not there takes its default.

    Raises:
        UserError: it cannot be had here.
    """
    fields = {field.name for field in dataclasses.fields(Execution)}
    execution = Execution(**{name: value for name, value in environment.items() if name in fields})
    try:
        resolve_execution(execution.device, engine=execution.engine)
    except UserError:
        raise UserError(
            f"run {run_id!r}: was trained on {execution.device!r} with the {execution.engine} engine, which cannot be "
            "used here; train it where there is one"
        ) from None
    return execution


def differing_hyperparameters(recipes: Sequence[Recipe]) -> list[str]:
    """The hyperparameters in which these recipes differ, in the order of a recipe; one that a family lacks differs."""
    texts = [hyperparameter_texts(recipe) for recipe in recipes]
    names = dict.fromkeys(name for each in texts for name in each)
    return [name for name in names if len({each.get(name) for each in texts}) > 1]


def hyperparameter_texts(recipe: Recipe) -> Mapping[str, str]:
    """A recipe's hyperparameters as texts, by dotted name."""
    return {name: format_value(value) for name, value in recipe.to_flat_dict().items()}
