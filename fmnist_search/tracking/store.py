"""The MLflow store: its experiments and runs, through `MlflowClient`.

The fluent interface of MLflow is not used, because its active run belongs to a thread. Optuna's database is the source
of truth about a search, and MLflow mirrors it; each of the two stores the ids of the other.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from fmnist_search.artifact_root import ArtifactRoot, check_artifacts
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.tracking import stored_runs, tag_names
from fmnist_search.tracking.connection import connect, create_run, permission_errors
from fmnist_search.tracking.events import EventSink, MetricPoint
from fmnist_search.tracking.provenance import provenance_tags
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.stored_runs import StoredRun
from fmnist_search.tracking.training_run_logger import TrainingRunLogger, training_tags
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
        run = TrainingRunLogger(sink, run_id, recipe, parameters)
        run.describe(tags)
        run.log_recipe()
        return run

    def create_parent_run(self, name: str, tags: Mapping[str, str]) -> str:
        """Return the id of the run above several trainings: the one that `mlflow run` created, or a new one."""
        return self._use_or_create_run(name, {tag_names.STATE: "running", **tags, **provenance_tags()})

    def sibling_run(self, other_run_id: str, sink: EventSink, name: str, tags: Mapping[str, str]) -> RunLogger:
        """Create a run that trains nothing, in the experiment of another run."""
        every = {tag_names.STATE: "running", **tags, **provenance_tags()}
        experiment_id = self.client.get_run(other_run_id).info.experiment_id
        return RunLogger.existing(sink, create_run(self.client, experiment_id, name, every))

    def create_finished_run(self, experiment_id: str, run: FinishedRun) -> str:
        """Create a run with everything it holds, close it, and return its id."""
        tags = {key: value for key, value in run.tags.items() if value}
        run_id = create_run(self.client, experiment_id, run.name, {**tags, **provenance_tags()})
        metrics = [Metric(*point) for point in run.metrics]
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics[start : start + MAX_METRICS_PER_BATCH])
        self.client.log_batch(run_id, params=[Param(name, value) for name, value in run.params.items()])
        for path, content in run.texts.items():
            self.client.log_text(run_id, content, path)
        self.client.set_terminated(run_id, run.status)
        return run_id

    def given_run_id(self) -> str | None:
        """Return the id of the run that `mlflow run` has created for this command; None without one.

        Raises:
            UserError: if the store has no such run, or it is deleted.
        """
        given = os.environ.get(RUN_ID_VARIABLE)
        if not given:
            return None
        run = self.find_run(given)
        if run is None or not run.is_active:
            raise UserError(
                f"{RUN_ID_VARIABLE}: names the run {given!r}, which {'was deleted' if run else 'does not exist'} in "
                f"{self.uri}; unset the variable, or name the store that has the run"
            )
        return given

    def create_run(self, name: str, tags: Mapping[str, str]) -> str:
        """Create a run in the experiment, and return its id.

        Raises:
            UserError: if the experiment is deleted, or the user must not write to it.
        """
        experiment_id = self.experiment_id
        with self._experiment_permission():
            return create_run(self.client, experiment_id, name, tags)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run in one call."""
        with permission_errors(f"run {run_id!r}", "ask its owner for the permission EDIT"):
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _use_or_create_run(self, name: str, tags: Mapping[str, str]) -> str:
        given = self.given_run_id()
        if given is None:
            return self.create_run(name, tags)
        self.set_tags(given, tags)
        self.client.update_run(given, name=name)
        return given

    # ---------------------------------------------------------------------------------- reading runs

    def find_run(self, run_id: str) -> StoredRun | None:
        """Return a run, which may be deleted; None if the store has no such run."""
        try:
            with permission_errors(f"run {run_id!r}", "ask its owner for the permission READ"):
                run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter: no valid id
                return None
            raise
        info, is_active = run.info, str(run.info.lifecycle_stage) == "active"
        return StoredRun(
            run_id=run_id,
            name=str(info.run_name),
            experiment_id=str(info.experiment_id),
            is_active=is_active,
            tags=run.data.tags,
            metrics=run.data.metrics,
            artifact_uri=str(info.artifact_uri),
        )

    def find_run_with_tag(self, key: str, value: str) -> StoredRun | None:
        """Return a run of any experiment that has this tag and is not deleted; None if there is none."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        found = self.client.search_runs(experiments, f"tags.{key} = '{value}'", max_results=1)
        return self.find_run(found[0].info.run_id) if found else None

    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Return the logged points of a metric as (step, value), in no particular order."""
        return [(point.step, point.value) for point in self.client.get_metric_history(run_id, key)]

    def read_text(self, run_id: str, path: str) -> str | None:
        """Return a text artifact of a run; None if the run has no such artifact.

        Raises:
            UserError: if the artifacts are missing, or the project was moved or copied since they were written.
        """
        try:
            if sqlite_path(self.uri):
                check_artifacts(self.uri, self.client.get_run(run_id).info.artifact_uri, f"run {run_id!r}")
            with tempfile.TemporaryDirectory() as folder:
                return Path(self.client.download_artifacts(run_id, path, folder)).read_text()
        except (MlflowException, OSError):
            return None

    def load_recipe(self, run_id: str) -> Recipe:
        """Return the recipe of a run that trained one.

        Raises:
            UserError: if there is no such run, or it has no recipe.
        """
        return stored_runs.load_recipe(self, run_id)

    def has_finished(self, run_id: str) -> bool:
        """Return whether a run has ended as one whose training was completed."""
        return bool(self.client.get_run(run_id).info.status == "FINISHED")

    # ------------------------------------------------------------------------------------ experiments

    @cached_property
    def experiment_id(self) -> str:
        """The id of the experiment, which is created when it is needed for the first time.

        Raises:
            UserError: if the experiment has been deleted, its name cannot be that of a folder, or the user must neither
                read nor create it.
        """
        with self._experiment_permission():
            return self._find_or_create_experiment()

    def _experiment_permission(self) -> contextlib.AbstractContextManager[None]:
        return permission_errors(
            f"experiment {self.experiment!r}",
            "ask its owner for the permission EDIT, or name another (--set experiment=NAME, or in the study file)",
        )

    def _find_or_create_experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found and found.lifecycle_stage == "deleted":
            raise UserError(
                f"experiment {self.experiment!r}: has been deleted in {self.uri}; restore it with "
                f"`mlflow experiments restore -x {found.experiment_id}`, or name another in the study file"
            )
        if found:
            return str(found.experiment_id)
        root, location = ArtifactRoot.of_store(self.uri), None
        if root:
            check_name("experiment", self.experiment)
            location = artifact_uri(root.folder / self.experiment)
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=location))
        except MlflowException as error:
            created = self.client.get_experiment_by_name(self.experiment)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or created is None:
                raise
            return str(created.experiment_id)  # another process was faster

    def find_experiment_id(self, run_id: str) -> str | None:
        """Return the id of the experiment that a run belongs to; None if there is no such run."""
        return stored_runs.find_experiment_id(self, run_id)

    def save_trials_view(self, run_id: str, hyperparameters: Sequence[str]) -> None:
        """Save a view of trials, see `ui`, in the experiment of a study's run."""
        experiment_id = self.client.get_run(run_id).info.experiment_id
        for key, value in trials_view_tags(hyperparameters).items():
            set_tag = partial(self.client.set_experiment_tag, experiment_id, key, value)
            try:
                set_tag()
            except MlflowException:  # MLflow refuses one of two processes that set a tag for the first time at once
                set_tag()

    def runs_page_url(self, server: str, run_id: str | None) -> str:
        """Return the address, on a server of the UI, of the experiment of a run; without a run, of our experiment."""
        experiment_id = (run_id and self.find_experiment_id(run_id)) or self.experiment_id
        return runs_page_url(server, experiment_id, self.client.get_experiment(experiment_id).tags)
