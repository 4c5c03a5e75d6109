"""The connection to an MLflow store, and the classification of its errors."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.uri import is_local_uri
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.errors import UserError
from fmnist_search.files import private_files
from fmnist_search.processes import stopped_users
from fmnist_search.sqlite_files import database_error, is_disk_full, is_replaced
from fmnist_search.text import first_line
from fmnist_search.tracking.outbox import DiskFull, EventRejected, StoreLocked, StoreReplaced, StoreUnavailable
from fmnist_search.tracking.table_template import (
    LOCK_TIMEOUT_SECONDS,
    copy_template,
    creation_lock,
    default_template,
    has_all_tables,
    save_template,
    wait_for_tables,
)
from fmnist_search.workspace import check_folder_is_writable, sqlite_path

STORE_ERRORS: tuple[type[Exception], ...] = (MlflowException, SQLAlchemyError, requests.RequestException)
STORE_OR_DISK_ERRORS: tuple[type[Exception], ...] = (*STORE_ERRORS, OSError)
PROBE_TIMEOUT_SECONDS, CALL_TIMEOUT_SECONDS = 5, 30
CREATION_LOCK = 0x6D6C666C6F77
"""Key of the advisory lock of processes that create MLflow's tables in PostgreSQL."""
TIMEOUT_ARGUMENTS = {
    **dict.fromkeys(("psycopg", "psycopg2", "pymysql", "mysqldb"), "connect_timeout"),
    **dict.fromkeys(("pg8000", "pyodbc"), "timeout"),
}
"""By driver, the argument with the seconds after which it gives up to connect."""
PERMANENT_ERRORS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_CONFLICT"}
"""Error codes of MLflow after which an event need not be sent again."""
MAX_DETAIL = 300
"""Characters of an error's message that are kept."""
TRANSIENT_STATUS = {401, 403, 408, 425, 429}
"""HTTP status codes from 400 to 499 that may change later, or with other credentials."""


@contextlib.contextmanager
def classified_errors(uri: str) -> Iterator[None]:
    """Turn the errors of a store into `StoreUnavailable`, if they may pass, or `EventRejected`."""
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 500
        kind = EventRejected if 400 <= status < 500 and status not in TRANSIENT_STATUS else StoreUnavailable
        raise kind(first_line(error)[:MAX_DETAIL]) from error
    except MlflowException as error:
        if is_locked(error):
            raise StoreLocked(lock_detail(uri)) from error
        _raise_failure_of_file(error, uri)
        kind = EventRejected if error.error_code in PERMANENT_ERRORS else StoreUnavailable
        raise kind(first_line(error)[:MAX_DETAIL]) from error
    except STORE_OR_DISK_ERRORS as error:
        _raise_failure_of_file(error, uri)
        raise StoreUnavailable(first_line(error)[:MAX_DETAIL]) from error


def _raise_failure_of_file(error: Exception, uri: str) -> None:
    """Raise what is wrong with the files of a store, if the error comes from a full disk or a deleted database."""
    database = sqlite_path(uri)
    if is_disk_full(error, database):
        if isinstance(error, OSError):
            detail = str(error.filename or "that of artifacts or of temporary files")
        else:
            detail = str(database or first_line(error)[:MAX_DETAIL])
        raise DiskFull(detail) from error
    if database and is_replaced(error):
        raise StoreReplaced(str(database)) from error


def is_locked(error: Exception) -> bool:
    """Return whether a store does not answer because another process writes to its SQLite file all the time."""
    return "database is locked" in str(error) or "database table is locked" in str(error)


def lock_detail(uri: str) -> str:
    """Return what is known about why a SQLite store is locked."""
    database = sqlite_path(uri)
    stopped = stopped_users(database) if database else []
    if not stopped:
        return "database is locked"
    return f"process {stopped[0]} is stopped and has it open; `kill -CONT {stopped[0]}` continues it"


def current_tracking_uri() -> str:
    """Return the address of the store that the caller, or the environment, has set for MLflow."""
    return str(mlflow.get_tracking_uri())


def connect(uri: str, template: Path | None = None) -> MlflowClient:
    """Return a client of a store, after a call that the store has answered.

    A new SQLite store is copied from `template`, by default that of the user's cache, or saved as the template.

    Raises:
        UserError: if the store does not answer within seconds, or is a file store.
    """
    if is_local_uri(uri):  # type: ignore[no-untyped-call]
        raise UserError(
            f"tracking {uri}: is a file store, which MLflow no longer maintains; use a database such as "
            "sqlite:///mlflow.db, to which `mlflow migrate-filestore --source FOLDER --target sqlite:///mlflow.db` "
            "copies its content"
        )
    database = sqlite_path(uri)
    with (
        store_errors(uri, OSError, sqlite3.Error, UnicodeDecodeError),
        short_timeouts(PROBE_TIMEOUT_SECONDS, retries=0),
        private_files(),
        creation_lock(database),
        _probed(uri, database),
    ):
        is_new = database is not None and not database.exists()
        template = template or default_template()
        if database and is_new:
            copy_template(database, template)
        client = _first_answer(uri, database)
        if database and is_new and not template.exists():
            save_template(database, template)
    return client


def _first_answer(uri: str, database: Path | None) -> MlflowClient:
    """Return a client of a store that has answered; MLflow creates the tables of a new one.

    If another program creates them at the same time, in which case MLflow fails, this one goes on once they are there.
    """
    if database and database.exists():
        wait_for_tables(database)
    try:
        return _ask(uri)
    except Exception:
        if not database or has_all_tables(database):
            raise
        wait_for_tables(database)
        return _ask(uri)


def _ask(uri: str) -> MlflowClient:
    client = MlflowClient(uri)
    client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def _probed(uri: str, database: Path | None) -> Iterator[None]:
    """Connect to a store that is a database once. MLflow itself tries it ten times, which takes minutes.

    In PostgreSQL, one process at a time is in the context: two that create MLflow's tables at once fail.

    Raises:
        UserError: if its folder cannot be written, or the driver of the database is not installed.
        SQLAlchemyError, sqlite3.Error: if the database cannot be reached.
    """
    if database and not database.exists():
        check_folder_is_writable(database.parent, "work in another folder, or give another --tracking-uri")
    elif database:
        address = f"{database.as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(address, timeout=PROBE_TIMEOUT_SECONDS, uri=True)) as connection:
            connection.execute("PRAGMA schema_version")
    elif uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
        url = sqlalchemy.make_url(uri)
        try:
            name = TIMEOUT_ARGUMENTS.get(url.get_driver_name())
            timeout = {name: PROBE_TIMEOUT_SECONDS} if name else {}
            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=timeout)
        except ImportError as error:
            raise UserError(
                f"tracking {uri}: needs the package {error.name}, which is missing; install it, or for PostgreSQL "
                "`pip install 'fmnist-search[postgres]'`, and write postgresql+psycopg://"
            ) from None
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_SECONDS * 1000}")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CREATION_LOCK})")
            yield
            return
    yield


@contextlib.contextmanager
def store_errors(uri: str, *extra_errors: type[Exception]) -> Iterator[None]:
    """Turn the errors of a store, and `extra_errors`, into a `UserError` of one line.

    Raises:
        UserError: if the store cannot be reached or written, is damaged, refuses the user, or was made by another
            MLflow version.
    """
    silence_library_logs()
    database = sqlite_path(uri)
    if database and not database.parent.is_dir():
        raise UserError(f"tracking {uri}: there is no folder {database.parent}; create it, or give another address")
    try:
        yield
    except (*STORE_ERRORS, *extra_errors) as error:
        if database and (problem := database_error(error, f"tracking {uri}", database)):
            raise problem from error
        detail = first_line(error)[:MAX_DETAIL]
        if "out-of-date database schema" in detail:
            raise UserError(
                f"tracking {uri}: was created by another version of MLflow; make a copy of it, then run "
                f"`mlflow db upgrade {uri}`"
            ) from error
        if is_locked(error):
            raise UserError(
                f"tracking {uri}: another process has locked the database ({lock_detail(uri)}); end or continue that "
                "process, then run the same command again"
            ) from error
        if (status := _denied_status(error)) == 401:
            raise UserError(
                f"tracking {uri}: the server does not accept {_credentials()}; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to valid ones"
            ) from error
        if status == 403:
            raise UserError(
                f"tracking {uri}: {_credentials()} lacks a permission for this ({detail}); ask the administrator of "
                "the server for it"
            ) from error
        raise UserError(
            f"tracking {uri}: the store cannot be reached or written ({detail}); check MLFLOW_TRACKING_URI or "
            "--tracking-uri, and that its server is running"
        ) from error


@contextlib.contextmanager
def permission_errors(subject: str, remedy: str) -> Iterator[None]:
    """Turn the refusal of a server because of a missing permission into a `UserError` that names the resource."""
    try:
        yield
    except STORE_ERRORS as error:
        if _denied_status(error) != 403:
            raise
        raise UserError(f"{subject}: the server does not permit this to {_credentials()}; {remedy}") from error


def _denied_status(error: Exception) -> int | None:
    """Return 401 if a server does not know the user, 403 if the user lacks a permission, else None."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code if error.response.status_code in (401, 403) else None
    codes = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}
    return codes.get(error.error_code) if isinstance(error, MlflowException) else None


def _credentials() -> str:
    """Return a description of what the client tells a server about the user, without a secret."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        return f"the user {user!r}"
    return "the token" if os.environ.get("MLFLOW_TRACKING_TOKEN") else "a user without a name"


@contextlib.contextmanager
def short_timeouts(seconds: int = CALL_TIMEOUT_SECONDS, *, retries: int = 1) -> Iterator[None]:
    """Make MLflow's HTTP calls answer or fail within seconds; by default a closed port blocks for over a minute."""
    settings = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    _TIMEOUTS.enter(settings)
    try:
        yield
    finally:
        _TIMEOUTS.leave(settings)


def create_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str], start_ms: int = 0) -> str:
    """Create a run, which by default starts now, and return its id.

    MLflow would repeat a request that was not answered, and create the run twice.
    """
    with short_timeouts(retries=0):
        return str(client.create_run(experiment_id, start_ms or None, dict(tags), name).info.run_id)


class _EnvironmentSettings:
    """Settings of the environment that several threads make for a while; the last one of these holds.

    Threads need not end in the order in which they began, and the user's own settings come back after the last one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: list[Mapping[str, str]] = []
        self._before: Mapping[str, str | None] = {}

    def enter(self, settings: Mapping[str, str]) -> None:
        with self._lock:
            if not self._active:
                self._before = {name: os.environ.get(name) for name in settings}
            self._active.append(settings)
            os.environ.update(settings)

    def leave(self, settings: Mapping[str, str]) -> None:
        with self._lock:
            self._active.remove(settings)
            for name, value in (self._active[-1] if self._active else self._before).items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


_TIMEOUTS = _EnvironmentSettings()


def silence_library_logs() -> None:
    """Silence the migrations that a new store logs, and the traceback of a store that fails."""
    for name in ("alembic", "mlflow.store", "mlflow.tracking", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
