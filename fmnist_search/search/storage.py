"""Where Optuna keeps a search: one kind of storage, by URL."""

from __future__ import annotations

import sqlite3
import weakref
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.errors import UserError
from fmnist_search.text import first_line
from fmnist_search.workspace import sqlite_path

BUSY_TIMEOUT_SECONDS = 60
"""Seconds that a writer waits for its turn."""


def open_storage(url: str, *, create: bool = True) -> optuna.storages.RDBStorage:
    """The storage behind a URL; SQLite in WAL mode, so that readers never wait. `create` makes it where it is missing.

    Raises:
        UserError: it cannot be reached or written, or is missing and not to be made.
    """
    database = sqlite_path(url)
    if database and not create and not database.exists():
        raise UserError(f"{database.parent}: holds no study yet; run `fmnist-search search studies/quick.toml` first")
    try:
        if database:
            database.parent.mkdir(parents=True, exist_ok=True)
            # Two processes that make the tables at once would trip over each other.
            lock = database.with_suffix(".lock")
            lock.touch()  # fails at once where nothing can be written; FileLock would wait
            with FileLock(lock, timeout=BUSY_TIMEOUT_SECONDS):
                _enable_wal(database)
                quoted = str(database).replace("%", "%25").replace("?", "%3F")
                engine = {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS, "factory": _Connection}}
                return _close_at_exit(optuna.storages.RDBStorage(f"sqlite:///{quoted}", engine_kwargs=engine))
        return _close_at_exit(optuna.storages.RDBStorage(url))
    except (OSError, sqlite3.Error, SQLAlchemyError, ImportError, RuntimeError) as error:
        shown = database or sqlalchemy.make_url(url).render_as_string()
        raise UserError(
            f"storage {shown}: cannot be opened ({first_line(error)}); check that it is there and writable, "
            "or name another place with --workdir"
        ) from error


def _close_at_exit(storage: optuna.storages.RDBStorage) -> optuna.storages.RDBStorage:
    """Close its connections with the process: the last one that is closed brings all into SQLite's one file."""
    weakref.finalize(storage, storage.engine.dispose)
    return storage


class _Connection(sqlite3.Connection):
    """Leaves it to the operating system when a commit reaches the disk, which spares each some milliseconds.

    A killed process loses nothing. After a power cut the last commits may be missing, and what is there is whole.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.execute("PRAGMA synchronous=NORMAL")


def _enable_wal(database: Path) -> None:
    """Write-ahead logging is set once: it stays in the file."""
    connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_SECONDS)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")  # fails here, in one clear place, where the file cannot be written
        connection.rollback()
    finally:
        connection.close()
