"""Runs of an MLflow store that is a SQLite file, read without MLflow.

Importing MLflow and opening a store with it takes seconds; a command that only reads a few runs need not wait for it.
Tables and columns are those of MLflow 3 (mlflow/store/tracking/dbmodels/models.py). If they are not there, or the run's
artifacts are elsewhere, MLflow itself reads the store.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fmnist_search.artifact_root import check_artifacts
from fmnist_search.sqlite_files import open_for_reading
from fmnist_search.tracking.stored_runs import RunReader, StoredRun
from fmnist_search.workspace import artifact_path, sqlite_path


class LocalStore:
    """Reads runs from the SQLite file of an MLflow store."""

    def __init__(self, uri: str, database: Path):
        self.uri = uri
        self._database = database

    def is_readable(self) -> bool:
        """Return whether the file has the tables and columns that this class reads."""
        try:
            self.find_run("")
            self.metric_history("", "")
        except (sqlite3.Error, UnicodeDecodeError):
            return False
        return True

    def find_run(self, run_id: str) -> StoredRun | None:
        """Return a run, which may be deleted; None if the store has no such run."""
        with self._open() as database:
            found = database.execute(
                "SELECT name, experiment_id, lifecycle_stage, artifact_uri FROM runs WHERE run_uuid = ?", (run_id,)
            ).fetchone()
            tags = database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)).fetchall()
            metrics = database.execute(
                "SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?", (run_id,)
            ).fetchall()
        if found is None:
            return None
        name, experiment_id, stage, artifacts = found
        values = {key: math.nan if is_nan else float(value) for key, value, is_nan in metrics}
        return StoredRun(run_id, str(name), str(experiment_id), stage == "active", dict(tags), values, str(artifacts))

    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Return the logged points of a metric as (step, value), in no particular order."""
        with self._open() as database:
            points = database.execute(
                "SELECT step, value, is_nan FROM metrics WHERE run_uuid = ? AND key = ?", (run_id, key)
            ).fetchall()
        return [(step, math.nan if is_nan else float(value)) for step, value, is_nan in points]

    def read_text(self, run_id: str, path: str) -> str | None:
        """Return a text artifact of a run; None if the run has no such artifact.

        Raises:
            UserError: if the artifacts are missing, or the project was moved or copied since they were written.
        """
        with self._open() as database:
            found = database.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
        if found is None:
            return None
        check_artifacts(self.uri, found[0], f"run {run_id!r}")
        folder = artifact_path(found[0])
        if folder is None:
            with _open_with_mlflow(self.uri) as reader:
                return reader.read_text(run_id, path)
        try:
            return (folder / path).read_text()
        except OSError:
            return None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file for reading; a search may write to it at the same time."""
        with open_for_reading(self._database) as database:
            yield database


@contextlib.contextmanager
def open_run_reader(uri: str) -> Iterator[RunReader]:
    """Open a store to read runs, without MLflow if the store is a SQLite file that can be read without it.

    Raises:
        UserError: if the store cannot be reached or read.
    """
    database = sqlite_path(uri)
    if database and database.is_file() and (store := LocalStore(uri, database)).is_readable():
        yield store
        return
    with _open_with_mlflow(uri) as reader:
        yield reader


@contextlib.contextmanager
def _open_with_mlflow(uri: str) -> Iterator[RunReader]:
    from fmnist_search.tracking.connection import store_errors
    from fmnist_search.tracking.store import MlflowStore

    with store_errors(uri):
        yield MlflowStore(uri, "fmnist-search")
