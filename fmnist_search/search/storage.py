"""Optuna's storage of a workspace: opened by URL, and created on request."""

from __future__ import annotations

import sqlite3
import weakref

import optuna
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.errors import UserError
from fmnist_search.files import is_missing
from fmnist_search.search.sqlite_storage import open_existing_sqlite, open_sqlite
from fmnist_search.search.storage_url import connect_arguments, shown_url
from fmnist_search.sqlite_files import database_error
from fmnist_search.text import first_line
from fmnist_search.workspace import sqlite_path

NO_STUDY_YET = (
    "holds no study yet; run `fmnist-search search STUDY.toml` first (`fmnist-search studies copy quick` writes "
    "quick.toml)"
)


def open_storage(url: str, *, create: bool = True) -> optuna.storages.RDBStorage:
    """Return the storage of a URL. SQLite is set to write-ahead logging, with which readers never wait.

    With `create`, a missing SQLite database is created, together with its folders; without, the storage can be read
    where nothing can be written.

    Raises:
        UserError: if the storage cannot be reached, is damaged, or cannot be written by `create`; if it is missing and
            `create` is false.
    """
    database = sqlite_path(url)
    if database and not create and is_missing(database):
        raise UserError(f"{database.parent}: {NO_STUDY_YET}")
    try:
        if database:
            storage = open_sqlite(database) if create else open_existing_sqlite(database)
        else:
            storage = _open_server(url)
    except (OSError, sqlite3.Error, SQLAlchemyError, ImportError, RuntimeError) as error:
        if database and (problem := database_error(error, f"storage {database}", database)):
            raise problem from error
        raise UserError(
            f"storage {shown_url(url)}: cannot be opened ({first_line(error)}); check that it exists and can be "
            f"{'written' if create else 'read'}, or choose another folder with --workdir"
        ) from error
    # The connection that is closed last moves the write-ahead log into the database file.
    weakref.finalize(storage, storage.engine.dispose)
    return storage


def _open_server(url: str) -> optuna.storages.RDBStorage:
    settings = {"connect_args": connect_arguments(url), "pool_pre_ping": True}
    return optuna.storages.RDBStorage(url, engine_kwargs=settings)
