"""The MLflow store: its experiments and runs, through `MlflowClient`.

The fluent interface of MLflow is not used, because its active run belongs to a thread. Optuna's database is the source
of truth about a search, and MLflow mirrors it; each of the two stores the ids of the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.text import escape_markdown
from fmnist_search.tracking import stored_runs, tag_names
from fmnist_search.tracking.connection import connect
from fmnist_search.tracking.events import EventSink, MetricPoint
from fmnist_search.tracking.provenance import provenance_tags
from fmnist_search.tracking.run_logger import RunLogger, TrainingRunLogger, training_tags
from fmnist_search.tracking.stored_runs import StoredRun
from fmnist_search.tracking.ui import runs_page_url, trials_view_tags
from fmnist_search.workspace import artifact_uri, check_name, sqlite_path

RUN_ID_VARIABLE = "MLFLOW_RUN_ID"
"""Environment variable by which `mlflow run` names the run that it has created for a command."""


@dataclass(frozen=True)
class FinishedRun:
    """All that a run of a training holds that has ended. `texts` are artifacts by path, `status` is MLflow's."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Sequence[MetricPoint]
    texts: Mapping[str, str]
    status: str


class MlflowStore:
    """One MLflow store, and the experiment in it that our runs belong to."""

    def __init__(self, uri: str, experiment: str):
        """Connect to a store.

        Raises:
            UserError: if the store cannot be reached or written.
        """
        self.uri = uri
        self.experiment = experiment
        self.client = connect(uri)

    # ---------------------------------------------------------------------------------- creating runs

    def get_or_create_study_run(self, study: str, existing_run_id: str | None) -> str:
        """Return the id of a study's run: the existing one, the one that `mlflow run` created, or a new one.

        If the study has a run and `mlflow run` created another, the other becomes its child and refers to it.
        """
        given = os.environ.get(RUN_ID_VARIABLE)
        run_id = existing_run_id if existing_run_id and self._is_active(existing_run_id) else None
        tags = {tag_names.STUDY: study, tag_names.KIND: tag_names.STUDY_RUN}
        if run_id is None:
            run_id = given or self._create_run(study, tags)
        elif given and given != run_id:
            self._link_to_study_run(given, study, run_id)
        self._set_tags(run_id, {**tags, tag_names.STATE: "running", **provenance_tags()})
        self.client.update_run(run_id, status="RUNNING", name=study)
        return run_id

    def start_training_run(
        self, sink: EventSink, name: str, recipe: Recipe, tags: Mapping[str, str]
    ) -> TrainingRunLogger:
        """Start the run of a training without a study: the run that `mlflow run` created, or a new one."""
        every = {**training_tags(recipe, tags), **provenance_tags()}
        run_id, parameters = self._use_or_create_run(name, every), list(recipe.to_flat_dict())
        if os.environ.get(RUN_ID_VARIABLE):
            existing = self.client.get_run(run_id).data.params
            parameters = [name for name in parameters if name not in existing]
        sink.remember_run(run_id, run_id)
        return TrainingRunLogger(sink, run_id, recipe, parameters)

    def create_parent_run(self, name: str, tags: Mapping[str, str]) -> str:
        """Return the id of the run above several trainings: the one that `mlflow run` created, or a new one."""
        return self._use_or_create_run(name, {tag_names.STATE: "running", **tags, **provenance_tags()})

    def sibling_run(self, other_run_id: str, sink: EventSink, name: str, tags: Mapping[str, str]) -> RunLogger:
        """Create a run that trains nothing, in the experiment of another run."""
        every = {tag_names.STATE: "running", **tags, **provenance_tags()}
        experiment_id = self.client.get_run(other_run_id).info.experiment_id
        return RunLogger.existing(
            sink, str(self.client.create_run(experiment_id, run_name=name, tags=every).info.run_id)
        )

    def create_finished_run(self, experiment_id: str, run: FinishedRun) -> str:
        """Create a run with everything it holds, close it, and return its id."""
        created = self.client.create_run(experiment_id, run_name=run.name, tags={**run.tags, **provenance_tags()})
        run_id = str(created.info.run_id)
        metrics = [Metric(*point) for point in run.metrics]
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics[start : start + MAX_METRICS_PER_BATCH])
        self.client.log_batch(run_id, params=[Param(name, value) for name, value in run.params.items()])
        for path, content in run.texts.items():
            self.client.log_text(run_id, content, path)
        self.client.set_terminated(run_id, run.status)
        return run_id

    def _use_or_create_run(self, name: str, tags: Mapping[str, str]) -> str:
        given = os.environ.get(RUN_ID_VARIABLE)
        if not given:
            return self._create_run(name, tags)
        self.client.update_run(given, name=name)
        self._set_tags(given, tags)
        return given

    def _create_run(self, name: str, tags: Mapping[str, str]) -> str:
        return str(self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags)).info.run_id)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _link_to_study_run(self, run_id: str, study: str, study_run_id: str) -> None:
        """Make the run that `mlflow run` created a child of the study's run, with a note that says so."""
        note = f"Continues the study '{escape_markdown(study)}': its trials are below the run {study_run_id}."
        tags = {tag_names.PARENT_RUN_ID: study_run_id, tag_names.NOTE: note, tag_names.STUDY: study}
        self._set_tags(run_id, tags)
        self.client.set_terminated(run_id, "FINISHED")

    # ---------------------------------------------------------------------------------- reading runs

    def find_run(self, run_id: str) -> StoredRun | None:
        """Return a run, which may be deleted; None if the store has no such run."""
        try:
            run = self.client.get_run(run_id)
        except MlflowException:
            return None
        info, is_active = run.info, str(run.info.lifecycle_stage) == "active"
        return StoredRun(
            run_id, str(info.run_name), str(info.experiment_id), is_active, run.data.tags, run.data.metrics
        )

    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Return the logged points of a metric as (step, value), in no particular order."""
        return [(point.step, point.value) for point in self.client.get_metric_history(run_id, key)]

    def read_text(self, run_id: str, path: str) -> str | None:
        """Return a text artifact of a run; None if the run has no such artifact."""
        try:
            text: str = mlflow.artifacts.load_text(f"runs:/{run_id}/{path}")
        except (MlflowException, OSError):
            return None
        return text

    def load_recipe(self, run_id: str) -> Recipe:
        """Return the recipe of a run that trained one.

        Raises:
            UserError: if there is no such run, or it has no recipe.
        """
        return stored_runs.load_recipe(self, run_id)

    def _is_active(self, run_id: str) -> bool:
        run = self.find_run(run_id)
        return run is not None and run.is_active

    # ------------------------------------------------------------------------------------ experiments

    @cached_property
    def experiment_id(self) -> str:
        """The id of the experiment, which is created when it is needed for the first time.

        Raises:
            UserError: if the experiment has been deleted, or its name cannot be that of a folder.
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
        if database is None:
            return str(self.client.create_experiment(self.experiment))
        check_name("experiment", self.experiment)
        location = artifact_uri(database.parent / "mlruns" / self.experiment)
        return str(self.client.create_experiment(self.experiment, artifact_location=location))

    def find_experiment_id(self, run_id: str) -> str | None:
        """Return the id of the experiment that a run belongs to; None if there is no such run."""
        return stored_runs.find_experiment_id(self, run_id)

    def save_trials_view(self, run_id: str, hyperparameters: Sequence[str]) -> None:
        """Save a view of trials, see `ui`, in the experiment of a study's run."""
        experiment_id = self.client.get_run(run_id).info.experiment_id
        for key, value in trials_view_tags(hyperparameters).items():
            self.client.set_experiment_tag(experiment_id, key, value)

    def runs_page_url(self, server: str, run_id: str | None) -> str:
        """Return the address, on a server of the UI, of the experiment of a run; without a run, of our experiment."""
        experiment_id = (run_id and self.find_experiment_id(run_id)) or self.experiment_id
        return runs_page_url(server, experiment_id, self.client.get_experiment(experiment_id).tags)
