"""Optuna's storage of a workspace: opened by URL, and created on request."""

from __future__ import annotations

import sqlite3
import weakref
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.errors import UserError
from fmnist_search.files import is_missing, make_private_folder
from fmnist_search.text import first_line
from fmnist_search.workspace import sqlite_path, sqlite_uri

NO_STUDY_YET = (
    "holds no study yet; run `fmnist-search search STUDY.toml` first (`fmnist-search studies copy quick` writes "
    "quick.toml)"
)
BUSY_TIMEOUT_SECONDS = 60
"""Seconds that a writer waits for another one."""


def open_storage(url: str, *, create: bool = True) -> optuna.storages.RDBStorage:
    """Return the storage of a URL. SQLite is set to write-ahead logging, with which readers never wait.

    With `create`, a missing SQLite database is created, together with its folders.

    Raises:
        UserError: if the storage cannot be reached or written, or if it is missing and `create` is false.
    """
    database = sqlite_path(url)
    if database and not create and is_missing(database):
        raise UserError(f"{database.parent}: {NO_STUDY_YET}")
    try:
        storage = _open_sqlite(database, create=create) if database else optuna.storages.RDBStorage(url)
    except (OSError, sqlite3.Error, SQLAlchemyError, ImportError, RuntimeError) as error:
        shown = database or sqlalchemy.make_url(url).render_as_string()
        raise UserError(
            f"storage {shown}: cannot be opened ({first_line(error)}); check that it exists and can be written, or "
            "choose another folder with --workdir"
        ) from error
    # The connection that is closed last moves the write-ahead log into the database file.
    weakref.finalize(storage, storage.engine.dispose)
    return storage


def _open_sqlite(database: Path, *, create: bool) -> optuna.storages.RDBStorage:
    if create:
        make_private_folder(database.parent)
    # Two processes that create the tables at the same time would fail.
    lock = database.with_suffix(".lock")
    lock.touch()  # fails at once if the folder cannot be written, while FileLock would wait
    with FileLock(lock, timeout=BUSY_TIMEOUT_SECONDS):
        is_compatible = _prepare(database, create=create)
        return optuna.storages.RDBStorage(
            sqlite_uri(database),
            engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS, "factory": _Connection}},
            skip_compatibility_check=is_compatible,
            skip_table_creation=is_compatible,
        )


def _prepare(database: Path, *, create: bool) -> bool:
    """Set write-ahead logging, which stays in the file; return whether this version of Optuna made the tables.

    Optuna checks its tables as well, but reads all its migrations for that, which takes longer than loading a study.

    Raises:
        sqlite3.Error: if the file is not a database or cannot be written, or has no tables of Optuna and `create` is
            false.
    """
    address = f"{database.as_uri()}?mode={'rwc' if create else 'rw'}"
    with closing(sqlite3.connect(address, timeout=BUSY_TIMEOUT_SECONDS, uri=True)) as connection:
        if create:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            made_with = connection.execute("SELECT library_version FROM version_info").fetchone()
        except sqlite3.OperationalError:  # no such table: the database is new
            if not create:
                raise sqlite3.OperationalError("it is empty, or the database of another program") from None
            made_with = None
        connection.rollback()
    return bool(made_with == (optuna.__version__,))


class _Connection(sqlite3.Connection):
    """Lets the operating system decide when a commit is written to the disk, which saves some milliseconds each.

    A killed process loses nothing. After a power failure the last commits may be missing, but the database is intact.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.execute("PRAGMA synchronous=NORMAL")
