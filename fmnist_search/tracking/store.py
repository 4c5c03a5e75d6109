"""MLflow: where the store is, one run for a study, and the courier who writes events to it by `MlflowClient`.

The fluent interface is not used: its active run belongs to a thread. Optuna holds the truth of a search, MLflow
mirrors it; the two know each other by ids.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from mlflow.utils.uri import is_local_uri
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.config.toml_files import recipe_from_toml
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.tracking.outbox import Event, EventRejected, Outbox, StoreUnavailable
from fmnist_search.tracking.provenance import provenance_tags
from fmnist_search.tracking.run_logger import (
    RECIPE_FILE,
    RUN_KEY_TAG,
    EventSink,
    RunLogger,
    TrainingRunLogger,
    training_tags,
)
from fmnist_search.tracking.ui import runs_page_url, trials_view_tags
from fmnist_search.workspace import sqlite_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STORE_ERRORS: tuple[type[Exception], ...] = (MlflowException, SQLAlchemyError, requests.RequestException)
STORE_OR_DISK_ERRORS: tuple[type[Exception], ...] = (*STORE_ERRORS, OSError)
PROBE_TIMEOUT_SECONDS, CALL_TIMEOUT_SECONDS = 5, 30
PERMANENT_ERRORS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_CONFLICT"}
"""What MLflow answers when it will never take an event, however often it is sent."""
TRANSIENT_STATUS = {401, 403, 408, 425, 429}
"""HTTP answers of the 400s that another time, or another password, may change."""


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


# ------------------------------------------------------------------------------------------- the courier

Renderer = Callable[[Mapping[str, Any]], "str | Figure"]
"""Makes a text or a picture of figures that were kept until there was time for it."""


class MlflowWriter:
    """Writes events to a store, each so that it may come twice."""

    def __init__(self, client: MlflowClient, outbox: Outbox, renderers: Mapping[str, Renderer]):
        self._client = client
        self._outbox = outbox
        self._renderers = renderers
        self._experiment_ids: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Write an event.

        Raises:
            StoreUnavailable: the store does not take it now.
            Refused: the store will never take it.
        """
        with classified_errors():
            if event.kind == "open":
                self._create_run(event)
                return
            run_id = self._outbox.run_id(event.run_key)
            if run_id is None:
                raise EventRejected("its run could not be made")
            self._write_to_run(run_id, event)

    def _create_run(self, event: Event) -> None:
        if self._outbox.run_id(event.run_key):
            return
        body = event.body
        experiment_id = self._find_experiment_id(body["parent"])
        run_id = self._find_created_run(experiment_id, event.run_key) if event.attempted else None
        if run_id is None:
            made = self._client.create_run(experiment_id, body["at"], body["tags"], body["name"])
            run_id = str(made.info.run_id)
        self._outbox.remember_run(event.run_key, run_id)

    def _find_experiment_id(self, run_id: str) -> str:
        if run_id not in self._experiment_ids:
            self._experiment_ids[run_id] = str(self._client.get_run(run_id).info.experiment_id)
        return self._experiment_ids[run_id]

    def _find_created_run(self, experiment_id: str, run_key: str) -> str | None:
        found = self._client.search_runs([experiment_id], f"tags.{RUN_KEY_TAG} = '{run_key}'", ViewType.ALL, 1)
        return str(found[0].info.run_id) if found else None

    def _write_to_run(self, run_id: str, event: Event) -> None:
        body = event.body
        match event.kind:
            case "batch":
                self._client.log_batch(
                    run_id,
                    metrics=[Metric(*point) for point in body.get("metrics", ())],
                    params=[Param(key, value) for key, value in body.get("parameters", {}).items()],
                    tags=[RunTag(key, value) for key, value in body.get("tags", {}).items()],
                )
            case "parameters":
                held = self._client.get_run(run_id).data.params
                new = [Param(key, value) for key, value in body["values"].items() if key not in held]
                self._client.log_batch(run_id, params=new)
            case "file":
                self._log_file(run_id, body["path"], event.content or b"")
            case "drawing":
                self._log_rendered(run_id, body["path"], self._renderers[body["artist"]](body["of"]))
            case "dataset":
                dataset = Dataset(body["name"], body["digest"], "local", body["source"], profile=body["profile"])
                tag = InputTag(MLFLOW_DATASET_CONTEXT, "training")
                self._client.log_inputs(run_id, [DatasetInput(dataset, [tag])])
            case "end":
                spent = Metric("time/tracking_seconds", body["seconds"], body["at"], body["step"])
                self._client.log_batch(run_id, [spent])
                self._client.set_terminated(run_id, body["status"], body["at"])
            case unknown:
                raise EventRejected(f"an event of the kind {unknown!r}, which this version does not know")

    def _log_rendered(self, run_id: str, path: str, rendered: str | Figure) -> None:
        if isinstance(rendered, str):
            self._client.log_text(run_id, rendered, path)
        else:
            self._client.log_figure(run_id, rendered, path)

    def _log_file(self, run_id: str, path: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, Path(path).name)
            file.write_bytes(content)
            self._client.log_artifact(run_id, str(file), str(Path(path).parent) if "/" in path else None)


@contextlib.contextmanager
def classified_errors() -> Iterator[None]:
    """Tells what may pass from what is in vain, of all that a store throws."""
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 500
        kind = EventRejected if 400 <= status < 500 and status not in TRANSIENT_STATUS else StoreUnavailable
        raise kind(_first_line(error)) from error
    except MlflowException as error:
        kind = EventRejected if error.error_code in PERMANENT_ERRORS else StoreUnavailable
        raise kind(_first_line(error)) from error
    except STORE_OR_DISK_ERRORS as error:
        raise StoreUnavailable(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


# ---------------------------------------------------------------------------------------- reaching it


def connect(uri: str) -> MlflowClient:
    """A client of a store that answers within seconds.

    Raises:
        UserError: it does not.
    """
    if is_local_uri(uri):  # type: ignore[no-untyped-call]
        raise UserError(
            f"tracking {uri}: is a file store, which MLflow no longer keeps up; take a database such as "
            "sqlite:///mlflow.db, into which `mlflow migrate-filestore --source FOLDER --target sqlite:///mlflow.db` "
            "brings what it holds"
        )
    with store_errors(uri, OSError), short_timeouts(PROBE_TIMEOUT_SECONDS, retries=0):
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def store_errors(uri: str, *extra_errors: type[OSError]) -> Iterator[None]:
    """Turns what a store throws, and `extra_errors` such errors, into one line: out of reach, not writable, too old."""
    _silence_library_logs()
    database = sqlite_path(uri)
    if database and not database.parent.is_dir():
        raise UserError(f"tracking {uri}: there is no folder {database.parent}; make it, or name another place")
    try:
        yield
    except (*STORE_ERRORS, *extra_errors) as error:
        detail = _first_line(error)
        if "out-of-date database schema" in detail:
            raise UserError(
                f"tracking {uri}: was made by another version of MLflow; keep a copy of it, then run "
                f"`mlflow db upgrade {uri}`"
            ) from error
        if isinstance(error, MlflowException) and error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            raise UserError(
                f"tracking {uri}: the server refuses you ({detail}); set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            ) from error
        raise UserError(
            f"tracking {uri}: the store cannot be reached or written ({detail}); check MLFLOW_TRACKING_URI or "
            "--tracking-uri, and that its server is running"
        ) from error


@contextlib.contextmanager
def short_timeouts(seconds: int = CALL_TIMEOUT_SECONDS, *, retries: int = 1) -> Iterator[None]:
    """Calls that answer or fail within seconds: with MLflow's defaults a closed port hangs for over a minute."""
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _silence_library_logs() -> None:
    """A new store logs each of its migrations, and one that fails a traceback; nobody asked."""
    for name in ("alembic", "mlflow.store", "mlflow.tracking", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
