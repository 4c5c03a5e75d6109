"""Optuna's storage of a workspace: opened by URL, and created on request."""

from __future__ import annotations

import re
import shlex
import sqlite3
import weakref

import optuna
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.errors import UserError
from fmnist_search.files import is_missing
from fmnist_search.search.postgresql_storage import open_postgresql
from fmnist_search.search.sqlite_storage import open_existing_sqlite, open_sqlite
from fmnist_search.search.storage_url import shown_url
from fmnist_search.sqlite_files import database_error
from fmnist_search.text import first_line, redact
from fmnist_search.workspace import sqlite_path

NO_STUDY_YET = (
    "holds no study yet; run `fmnist-search search STUDY.toml` first (`fmnist-search studies copy quick` writes "
    "quick.toml)"
)


class NoStorageError(UserError):
    """There is no storage yet: no file, or no tables of Optuna."""


def open_storage(url: str, *, create: bool = True) -> optuna.storages.RDBStorage:
    """Return the storage of a URL. SQLite is set to write-ahead logging, with which readers never wait.

    With `create`, a missing SQLite database is created, together with its folders, and so are missing tables in
    PostgreSQL; without, the storage can be read where nothing can be written.

    Raises:
        NoStorageError: if it is missing and `create` is false.
        UserError: if the storage cannot be reached, is damaged or of another version of Optuna, or if it cannot be
            written by `create`.
    """
    database = sqlite_path(url, "storage")
    if database and not create and is_missing(database):
        raise NoStorageError(f"{database.parent}: {NO_STUDY_YET}")
    try:
        if database:
            storage = open_sqlite(database) if create else open_existing_sqlite(database)
        else:
            opened = open_postgresql(url, create=create)
            if opened is None:
                raise NoStorageError(f"storage {shown_url(url)}: {NO_STUDY_YET}")
            storage = opened
    except RuntimeError as error:
        raise _version_error(url, error) from error
    except (OSError, sqlite3.Error, SQLAlchemyError, UnicodeDecodeError) as error:
        if database and (problem := database_error(error, f"storage {database}", database)):
            raise problem from error
        raise UserError(
            f"storage {shown_url(url)}: cannot be opened ({first_line(error)}); check that it exists and can be "
            f"{'written' if create else 'read'}, or choose another folder with --workdir"
        ) from error
    # The connection that is closed last moves the write-ahead log into the database file.
    weakref.finalize(storage, storage.engine.dispose)
    return storage


def _version_error(url: str, error: RuntimeError) -> UserError:
    """Return the error of tables that another version of Optuna made; Optuna's own names the command to upgrade."""
    name, is_older = f"storage {shown_url(url)}", "storage upgrade" in str(error)
    made_with = re.search(r"set up by optuna ([^\s)]+)", str(error))
    maker = f"by Optuna {made_with[1]}" if made_with else "by another version of Optuna"
    if is_older:
        address = shlex.quote(redact(url))
        return UserError(
            f"{name}: was made {maker}, which is older; copy it, then upgrade it with `optuna storage upgrade "
            f"--storage {address}`"
        )
    return UserError(
        f"{name}: was made {maker}, which is newer than {optuna.__version__}; upgrade with `pip install -U optuna`, or "
        "give another --storage or --workdir"
    )
