"""MLflow: one run for a study, one nested run for each training, through `MlflowClient` with explicit run ids.

The fluent interface is not used: its active run belongs to a thread. Optuna holds the truth of a search, MLflow
mirrors it; the two know each other by ids.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.config import recipe_from_toml, recipe_to_toml
from fmnist_search.data import Images
from fmnist_search.errors import UserError
from fmnist_search.places import sqlite_file
from fmnist_search.recipe import FAMILIES, Execution, Recipe, known_hyperparameters, text_of
from fmnist_search.results import EpochReport, Overhead, State, TrialResult
from fmnist_search.version import VERSION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATUS = {
    State.COMPLETED: "FINISHED",
    State.PRUNED: "KILLED",
    State.INTERRUPTED: "KILLED",
    State.FAILED: "FAILED",
}
STORE_ERRORS: tuple[type[Exception], ...] = (MlflowException, SQLAlchemyError, requests.RequestException)
PROBE_SECONDS = "5"
NOTE_LIMIT = 7_500
"""MLflow cuts a tag at 8,000 characters without a word; a longer note says itself where it goes on."""

RECIPE_FILE = "recipe.toml"


class Tracking:
    """One MLflow store, and the experiment of it that our runs belong to."""

    def __init__(self, uri: str, experiment: str):
        """Connect to a store.

        Raises:
            UserError: it cannot be reached or written.
        """
        self.uri = uri
        self.experiment = experiment
        self.client = connect(uri)

    def study_run(self, study: str, known_run_id: str | None) -> Run:
        """The run of a study: the one it had, one that `mlflow run` made for it, or a new one.

        Where the study has a run and `mlflow run` made another, that other becomes its child, and a pointer to it.
        """
        given = os.environ.get("MLFLOW_RUN_ID")
        run_id = known_run_id if known_run_id and self._exists(known_run_id) else None
        if run_id is None:
            run_id = given or self._create(study, {"study": study, "kind": "study"}, parent=None)
        elif given and given != run_id:
            self._point(given, study, run_id)
        run = Run(self, run_id)
        run.tags({"study": study, "kind": "study", "state": "running", **_provenance()})
        self.client.update_run(run_id, status="RUNNING", name=study)
        return run

    def training_run(
        self,
        name: str,
        recipe: Recipe,
        parameters: Sequence[str],
        tags: Mapping[str, str],
        parent: Run | None = None,
    ) -> TrainingRun:
        """A run for one training, below its study's where it has one; `parameters` names what it logs.

        A training that `mlflow run` started takes the run that was made for it.
        """
        every = {"family": recipe.model.family, "state": "running", **tags}
        if parent:
            return TrainingRun(self, self._create(name, every, parent), recipe, parameters)
        every |= _provenance()
        given = os.environ.get("MLFLOW_RUN_ID")
        if not given:
            return TrainingRun(self, self._create(name, every, parent), recipe, parameters)
        held = self.client.get_run(given).data.params
        run = TrainingRun(self, given, recipe, [name for name in parameters if name not in held])
        self.client.update_run(given, name=name)
        run.tags(every)
        return run

    def recipe_of(self, run_id: str) -> Recipe:
        """The recipe of a run that trained one.

        Raises:
            UserError: there is no such run, or it has no recipe.
        """
        if not self._exists(run_id):
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
        database = sqlite_file(self.uri)
        place = str(database.parent / "mlruns" / self.experiment) if database else None
        return str(self.client.create_experiment(self.experiment, artifact_location=place))

    def experiment_of(self, run_id: str) -> str | None:
        """The id of the experiment that a run belongs to; None where there is no such run."""
        return str(self.client.get_run(run_id).info.experiment_id) if self._exists(run_id) else None

    def _exists(self, run_id: str) -> bool:
        try:
            return str(self.client.get_run(run_id).info.lifecycle_stage) == "active"
        except MlflowException:
            return False

    def _create(self, name: str, tags: Mapping[str, str], parent: Run | None) -> str:
        below = {MLFLOW_PARENT_RUN_ID: parent.run_id} if parent else {}
        experiment_id = self.client.get_run(parent.run_id).info.experiment_id if parent else self.experiment_id
        run = self.client.create_run(experiment_id, run_name=name, tags={**below, **tags})
        return str(run.info.run_id)

    def _point(self, run_id: str, study: str, study_run_id: str) -> None:
        """Make the run that `mlflow run` created say where its study is."""
        note = f"Continues the study {study!r}: its trials are below the run {study_run_id}."
        for key, value in {MLFLOW_PARENT_RUN_ID: study_run_id, MLFLOW_RUN_NOTE: note, "study": study}.items():
            self.client.set_tag(run_id, key, value)
        self.client.set_terminated(run_id, "FINISHED")


class Run:
    """A run of MLflow, by its id."""

    def __init__(self, tracking: Tracking, run_id: str):
        self.tracking = tracking
        self.run_id = run_id
        self._client = tracking.client

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set several tags at once."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def parameters(self, values: Mapping[str, object]) -> None:
        """Log what does not change, leaving alone what the run already holds (`mlflow run` logs its own)."""
        held = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(value)) for key, value in values.items() if key not in held]
        self._client.log_batch(self.run_id, params=new)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log several figures at once."""
        self._client.log_batch(self.run_id, _metrics(values, step))

    def note(self, markdown: str) -> None:
        """The text that the run shows first; whole as `report.md`."""
        self.text("report.md", markdown)
        if len(markdown) > NOTE_LIMIT:
            markdown = f"{markdown[:NOTE_LIMIT]}\n\n... the rest stands in the artifact report.md\n"
        self._client.set_tag(self.run_id, MLFLOW_RUN_NOTE, markdown)

    def text(self, path: str, content: str) -> None:
        """Store a text as an artifact."""
        self._client.log_text(self.run_id, content, path)

    def figure(self, path: str, figure: Figure) -> None:
        """Store a picture as an artifact."""
        self._client.log_figure(self.run_id, figure, path)

    def dataset(self, images: Images, data: Mapping[str, object]) -> None:
        """Record which images it learns from; MLflow's digest holds 36 characters, the tags the full ones."""
        dataset = Dataset(
            name=str(data["dataset"]),
            digest=images.digest[:32],
            source_type="local",
            source=json.dumps({"name": data["dataset"], **data}),
            profile=json.dumps({"train": len(images.train), "validation": len(images.validation)}),
        )
        tag = InputTag(MLFLOW_DATASET_CONTEXT, "training")
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])
        self.tags({"dataset_digest": images.digest, "split_digest": images.split_digest})

    def end(self, status: str, state: str) -> None:
        """Close the run; the tag tells the truth where `mlflow run` sets its own status."""
        self._client.set_tag(self.run_id, "state", state)
        self._client.set_terminated(self.run_id, status)


class TrainingRun(Run):
    """The run of one training: an epoch is one `log_batch`, and the parameters go with the first."""

    def __init__(self, tracking: Tracking, run_id: str, recipe: Recipe, parameters: Sequence[str]):
        super().__init__(tracking, run_id)
        self._params = [Param(name, value) for name, value in _row(recipe, parameters).items()]
        self._held: list[Metric] = []
        self.text(RECIPE_FILE, recipe_to_toml(recipe))

    def epoch(self, report: EpochReport, last: bool, at: float) -> None:
        """Log an epoch that ended at that time; the last one waits for the figures of the whole training."""
        figures = {
            "train/loss": report.train_loss,
            "train/accuracy": report.train_accuracy,
            "val/loss": report.val_loss,
            "val/accuracy": report.val_accuracy,
            "time/epoch_seconds": report.seconds,
            "optimizer/learning_rate": report.learning_rate,
        }
        metrics = _metrics({key: value for key, value in figures.items() if value is not None}, report.epoch, at)
        if last:
            self._held = metrics
        else:
            self._client.log_batch(self.run_id, metrics, params=self._params)
            self._params = []

    def finish(self, result: TrialResult, overhead: Overhead) -> None:
        """Log how it ended and close the run."""
        summary = {
            "model/parameters": result.parameters,
            "time/trial_seconds": result.seconds,
            "time/overhead_seconds": overhead.seconds,
            "time/build_seconds": overhead.build,
            "time/capture_seconds": overhead.capture,
            "time/sampling_seconds": overhead.sampling,
            "time/tracking_seconds": overhead.tracking,
        }
        if result.best_val_accuracy is not None:
            summary["best/val_accuracy"] = result.best_val_accuracy
        metrics = self._held + _metrics(summary, len(result.epochs))
        tags = {
            "state": result.state.value,
            "reason": result.reason or "",
            "epochs": str(len(result.epochs)),
            "engine": result.preparation.engine,
        }
        self._client.log_batch(
            self.run_id,
            metrics,
            params=self._params,
            tags=[RunTag(key, value[:NOTE_LIMIT]) for key, value in tags.items()],
        )
        self._client.set_terminated(self.run_id, STATUS[result.state])


def _row(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """The named hyperparameters and the widths; what another family has and this one lacks is 0, or - for a text."""
    flat = recipe.flat()
    absent = {
        name: text_of("-" if spec.kind is str else 0)
        for family in FAMILIES.values()
        for name, spec in known_hyperparameters(family).items()
    }
    row = {name: text_of(flat[name]) if name in flat else absent[name] for name in names}
    return {**row, "model.widths": recipe.widths or "-"}


def _metrics(values: Mapping[str, float], step: int, at: float | None = None) -> list[Metric]:
    """Points of one moment: a point sent twice with one timestamp is stored once."""
    moment = int((time.time() if at is None else at) * 1000)
    return [Metric(key, float(value), moment, step) for key, value in values.items()]


# ---------------------------------------------------------------------------------------- reaching it


def connect(uri: str) -> MlflowClient:
    """A client of a store that answers within seconds.

    Raises:
        UserError: it does not.
    """
    with reaching(uri, OSError), _impatient():
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def reaching(uri: str, *also: type[OSError]) -> Iterator[None]:
    """Turns what a store throws, and `also` such errors, into one line: out of reach, not writable, too old."""
    _quiet_libraries()
    database = sqlite_file(uri)
    if database and not database.parent.is_dir():
        raise UserError(f"tracking {uri}: there is no folder {database.parent}; make it, or name another place")
    try:
        yield
    except (*STORE_ERRORS, *also) as error:
        detail = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"tracking {uri}: the store cannot be reached or written ({detail[:300]}); check MLFLOW_TRACKING_URI or "
            "--tracking-uri, and that its server is running"
        ) from error


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """A first call that answers within seconds: with MLflow's defaults a closed port hangs for over a minute."""
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": PROBE_SECONDS}
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


def _quiet_libraries() -> None:
    """A new store logs each of its migrations, and one that fails a traceback; nobody asked."""
    for name in ("alembic", "mlflow.store", "mlflow.tracking"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


# ------------------------------------------------------------------------------------------ provenance


def environment(execution: Execution) -> dict[str, Any]:
    """What shaped the numbers, apart from the recipe: machine, device, threads and versions."""
    libraries = ("torch", "torchvision", "optuna", "mlflow", "numpy")
    versions = {"fmnist-search": VERSION} | {name: metadata.version(name) for name in libraries}
    machine = {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}
    return {**vars(execution), **machine, "python": platform.python_version(), "versions": versions}


def command_line() -> str:
    """The command that was given, with the program's bare name."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _provenance() -> dict[str, str]:
    tags = {
        MLFLOW_SOURCE_NAME: "fmnist-search",
        MLFLOW_SOURCE_TYPE: "LOCAL",
        MLFLOW_USER: getpass.getuser(),
        "command": command_line()[:NOTE_LIMIT],
        "code_version": VERSION,
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags[MLFLOW_GIT_COMMIT] = commit
        tags["code_version"] += f"+{commit[:12]}" + (".dirty" if _git("status", "--porcelain", "-uno") else "")
    return tags


def _git(*arguments: str) -> str:
    """What git says of the folder that this package stands in; nothing where it is no checkout of ours."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
