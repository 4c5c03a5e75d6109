"""Trainings as MLflow holds them, read back from any store. Importing this module imports neither torch nor MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fmnist_search.artifact_root import check_existing_artifacts
from fmnist_search.config.toml_files import recipe_from_toml
from fmnist_search.errors import UserError
from fmnist_search.files import content_digest
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.training_run_logger import RECIPE_FILE

ENVIRONMENT_FILE = "environment.json"


@dataclass(frozen=True)
class StoredRun:
    """A run as a store holds it.

    `metrics` are the last values, by key; `artifact_uri` is the address of its artifacts.
    """

    run_id: str
    name: str
    experiment_id: str
    is_active: bool
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    artifact_uri: str


class RunReader(Protocol):
    """Reads runs from one store."""

    uri: str

    def find_run(self, run_id: str) -> StoredRun | None:
        """Return a run, which may be deleted; None if the store has no such run."""

    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Return the logged points of a metric as (step, value), in no particular order."""

    def read_text(self, run_id: str, path: str) -> str | None:
        """Return a text artifact of a run; None if the run has no such artifact.

        Raises:
            UserError: if the artifacts are missing, or the project was moved or copied since they were written.
        """


@dataclass(frozen=True)
class TrainedRun:
    """A run that trained a recipe.

    `accuracy` is the validation accuracy of the last epoch, `best` the highest of any epoch, both in 0..1.
    """

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


def read_run(reader: RunReader, run_id: str) -> TrainedRun:
    """Return the run of a training.

    Raises:
        UserError: if there is no such run, or it trained nothing.
    """
    run = _active_run(reader, run_id)
    tags, metrics = run.tags, run.metrics
    if tags.get(tag_names.KIND) == tag_names.STUDY_RUN:
        study = tags.get(tag_names.STUDY)
        raise UserError(f"run {run_id!r}: is the run of the study {study!r}; give the run of one of its trials")
    parameters = metrics.get(metric_names.PARAMETER_COUNT)
    return TrainedRun(
        run_id=run_id,
        name=run.name,
        kind=tags.get(tag_names.KIND, "-"),
        state=tags.get(tag_names.STATE, "-"),
        recipe=_read_recipe(reader, run),
        accuracy=metrics.get(metric_names.VAL_ACCURACY),
        best=metrics.get(metric_names.BEST_VAL_ACCURACY),
        epochs=len(reader.metric_history(run_id, metric_names.TRAIN_LOSS)),
        seconds=metrics.get(metric_names.TRIAL_SECONDS),
        parameters=None if parameters is None else int(parameters),
        experiment_id=run.experiment_id,
        parent=tags.get(tag_names.PARENT_RUN_ID),
        study=tags.get(tag_names.STUDY),
    )


def load_recipe(reader: RunReader, run_id: str) -> Recipe:
    """Return the recipe of a run that trained one.

    Raises:
        UserError: if there is no such run, or it has no recipe.
    """
    return _read_recipe(reader, _active_run(reader, run_id))


def check_artifact(run: StoredRun, path: str, content: bytes, digest_tag: str) -> None:
    """Check that an artifact of a run is the one that was logged; earlier versions of this program stored no digest.

    Raises:
        UserError: if it is another.
    """
    if run.tags.get(digest_tag) not in (None, content_digest(content)):
        raise UserError(
            f"run {run.run_id!r}: {path} is not the artifact that was logged (its SHA-256 differs); restore it, or "
            "give another run"
        )


def find_experiment_id(reader: RunReader, run_id: str) -> str | None:
    """Return the id of the experiment that a run belongs to; None if there is no such run."""
    run = reader.find_run(run_id)
    return run.experiment_id if run and run.is_active else None


def load_environment(reader: RunReader, run: TrainedRun) -> dict[str, Any]:
    """Return the environment that a run was trained in: its own record, or that of the study it belongs to.

    Raises:
        UserError: if neither has a record.
    """
    for run_id in (run.run_id, run.parent):
        if run_id is not None and (text := reader.read_text(run_id, ENVIRONMENT_FILE)) is not None:
            environment: dict[str, Any] = json.loads(text)
            return environment
    raise UserError(
        f"run {run.run_id!r}: neither it nor its study has {ENVIRONMENT_FILE}, so it cannot be trained again alike"
    )


def hyperparameter_texts(recipe: Recipe) -> Mapping[str, str]:
    """Return the hyperparameters of a recipe as texts, by dotted name."""
    return {name: format_value(value) for name, value in recipe.to_flat_dict().items()}


def _active_run(reader: RunReader, run_id: str) -> StoredRun:
    run = reader.find_run(run_id)
    if run is None or not run.is_active:
        raise UserError(f"run {run_id!r}: does not exist in {reader.uri}; copy its id from the MLflow UI")
    return run


def _read_recipe(reader: RunReader, run: StoredRun) -> Recipe:
    text = reader.read_text(run.run_id, RECIPE_FILE)
    if text is None:
        if tag_names.FAMILY in run.tags:  # it had one
            check_existing_artifacts(reader.uri, run.artifact_uri, f"run {run.run_id!r}")
        raise UserError(f"run {run.run_id!r}: has no {RECIPE_FILE}; give the run of a trial or of a training")
    check_artifact(run, RECIPE_FILE, text.encode(), tag_names.RECIPE_DIGEST)
    return recipe_from_toml(text)
