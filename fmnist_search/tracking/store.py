"""MLflow: where the store is, one run for a study, and the courier who writes events to it by `MlflowClient`.

The fluent interface is not used: its active run belongs to a thread. Optuna holds the truth of a search, MLflow
mirrors it; the two know each other by ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from fmnist_search.config.toml_files import recipe_from_toml
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.tracking.provenance import provenance_tags
from fmnist_search.tracking.run_logger import (
    RECIPE_FILE,
    EventSink,
    RunLogger,
    TrainingRunLogger,
    training_tags,
)
from fmnist_search.tracking.ui import runs_page_url, trials_view_tags
from fmnist_search.workspace import sqlite_path

if TYPE_CHECKING:
    pass
from fmnist_search.tracking.connection import connect


class MlflowStore:
    """One MLflow store, and the experiment of it that our runs belong to."""

    def __init__(self, uri: str, experiment: str):
        """Connect to a store.

        Raises:
            UserError: it cannot be reached or written.
        """
        self.uri = uri
        self.experiment = experiment
        self.client = connect(uri)

    def get_or_create_study_run(self, study: str, existing_run_id: str | None) -> str:
        """The run of a study: the one it had, one that `mlflow run` made for it, or a new one; gives its id.

        Where the study has a run and `mlflow run` made another, that other becomes its child, and a pointer to it.
        """
        given = os.environ.get("MLFLOW_RUN_ID")
        run_id = existing_run_id if existing_run_id and self._run_exists(existing_run_id) else None
        if run_id is None:
            run_id = given or self._create_run(study, {"study": study, "kind": "study"})
        elif given and given != run_id:
            self._link_to_study_run(given, study, run_id)
        self._set_tags(run_id, {"study": study, "kind": "study", "state": "running", **provenance_tags()})
        self.client.update_run(run_id, status="RUNNING", name=study)
        return run_id

    def save_trials_view(self, run_id: str, hyperparameters: Sequence[str]) -> None:
        """Have the UI show at once what trials are about, in the experiment of a study's run."""
        experiment_id = self.client.get_run(run_id).info.experiment_id
        for key, value in trials_view_tags(hyperparameters).items():
            self.client.set_experiment_tag(experiment_id, key, value)

    def runs_page_url(self, server: str, run_id: str | None) -> str:
        """The address, on a server of the UI, of the experiment that a run belongs to; without a run, of ours."""
        experiment_id = (run_id and self.find_experiment_id(run_id)) or self.experiment_id
        return runs_page_url(server, experiment_id, self.client.get_experiment(experiment_id).tags)

    def start_training_run(
        self, sink: EventSink, name: str, recipe: Recipe, tags: Mapping[str, str]
    ) -> TrainingRunLogger:
        """A run for a training without a study; one that `mlflow run` started takes the run that was made for it."""
        every = {**training_tags(recipe, tags), **provenance_tags()}
        run_id, parameters = self._use_or_create_run(name, every), list(recipe.to_flat_dict())
        if os.environ.get("MLFLOW_RUN_ID"):
            held = self.client.get_run(run_id).data.params
            parameters = [name for name in parameters if name not in held]
        sink.remember_run(run_id, run_id)
        return TrainingRunLogger(sink, run_id, recipe, parameters)

    def create_parent_run(self, name: str, tags: Mapping[str, str]) -> str:
        """The id of a run above several trainings without a study: one that `mlflow run` made, or a new one."""
        return self._use_or_create_run(name, {"state": "running", **tags, **provenance_tags()})

    def _use_or_create_run(self, name: str, tags: Mapping[str, str]) -> str:
        given = os.environ.get("MLFLOW_RUN_ID")
        if not given:
            return self._create_run(name, tags)
        self.client.update_run(given, name=name)
        self._set_tags(given, tags)
        return given

    def sibling_run(self, other_run_id: str, sink: EventSink, name: str, tags: Mapping[str, str]) -> RunLogger:
        """A run that trains nothing, in the experiment of another."""
        every = {"state": "running", **tags, **provenance_tags()}
        experiment_id = self.client.get_run(other_run_id).info.experiment_id
        return RunLogger.existing(
            sink, str(self.client.create_run(experiment_id, run_name=name, tags=every).info.run_id)
        )

    def load_recipe(self, run_id: str) -> Recipe:
        """The recipe of a run that trained one.

        Raises:
            UserError: there is no such run, or it has no recipe.
        """
        if not self._run_exists(run_id):
            raise UserError(f"run {run_id!r}: does not exist in {self.uri}; copy its id from the MLflow UI")
        try:
            return recipe_from_toml(mlflow.artifacts.load_text(f"runs:/{run_id}/{RECIPE_FILE}"))
        except (MlflowException, OSError):
            raise UserError(f"run {run_id!r}: has no {RECIPE_FILE}; name the run of a trial or of a training") from None

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; it is made where it is missing, and not before it is needed.

        Raises:
            UserError: it has been deleted.
        """
        found = self.client.get_experiment_by_name(self.experiment)
        if found and found.lifecycle_stage == "deleted":
            raise UserError(
                f"experiment {self.experiment!r}: has been deleted in {self.uri}; restore it with "
                f"`mlflow experiments restore -x {found.experiment_id}`, or name another in the study file"
            )
        if found:
            return str(found.experiment_id)
        database = sqlite_path(self.uri)
        place = str(database.parent / "mlruns" / self.experiment) if database else None
        return str(self.client.create_experiment(self.experiment, artifact_location=place))

    def find_experiment_id(self, run_id: str) -> str | None:
        """The id of the experiment that a run belongs to; None where there is no such run."""
        return str(self.client.get_run(run_id).info.experiment_id) if self._run_exists(run_id) else None

    def _run_exists(self, run_id: str) -> bool:
        try:
            return str(self.client.get_run(run_id).info.lifecycle_stage) == "active"
        except MlflowException:
            return False

    def _create_run(self, name: str, tags: Mapping[str, str]) -> str:
        return str(self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags)).info.run_id)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _link_to_study_run(self, run_id: str, study: str, study_run_id: str) -> None:
        """Make the run that `mlflow run` created say where its study is."""
        note = f"Continues the study {study!r}: its trials are below the run {study_run_id}."
        self._set_tags(run_id, {MLFLOW_PARENT_RUN_ID: study_run_id, MLFLOW_RUN_NOTE: note, "study": study})
        self.client.set_terminated(run_id, "FINISHED")
