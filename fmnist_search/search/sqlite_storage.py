"""Optuna's storage in a SQLite file: opened by processes that write it and by those that only read it."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock

from fmnist_search.files import make_private_folder
from fmnist_search.search.damaged_values import check_types, damaged_values
from fmnist_search.sqlite_files import (
    OpenFile,
    check_sound,
    copy_for_reading,
    database_error,
    is_unwritable,
    replaced_error,
)
from fmnist_search.workspace import sqlite_uri

BUSY_TIMEOUT_SECONDS = 60
"""Seconds that a writer waits for another one."""
FIRST_TABLE, VERSION_TABLE, LAST_TABLE = "studies", "version_info", "alembic_version"
"""The first table that Optuna creates, the one that names the version, and the last one."""


def open_sqlite(database: Path) -> optuna.storages.RDBStorage:
    """Return the storage of a file, which is created if it is missing. It is set to write-ahead logging.

    Raises:
        OSError, sqlite3.Error: if the file cannot be written, or is not a database.
    """
    make_private_folder(database.parent)
    # Two processes that create the tables at the same time would fail.
    with _creation_lock(database):
        is_compatible = _prepare(database)
        return _storage(database, database, is_compatible=is_compatible)


def open_existing_sqlite(database: Path) -> optuna.storages.RDBStorage:
    """Return the storage of a file that exists. Nothing needs to be writable as long as nothing is written.

    Raises:
        sqlite3.Error: if the file cannot be read, or has no tables of Optuna.
    """
    try:
        if not _is_complete(database):
            # Optuna would complete the tables, beside the process that creates them, and one of the two would fail.
            _wait_for_creation(database)
        return _storage(database, database, is_compatible=_check_version(database), creates=False)
    except sqlite3.OperationalError as error:
        if not is_unwritable(error) or not database.is_file():
            raise
        folder = tempfile.TemporaryDirectory(prefix="fmnist-search-")
        copy = copy_for_reading(database, Path(folder.name))
        storage = _storage(copy, database, is_compatible=_check_version(copy), creates=False)
        sqlalchemy.event.listen(storage.engine, "engine_disposed", lambda _: folder.cleanup())
        return storage


def _creation_lock(database: Path) -> FileLock:
    """Return the lock of the processes that create the tables.

    Raises:
        OSError: if the folder cannot be written; taking the lock would wait then.
    """
    path = database.with_suffix(".lock")
    path.touch()
    return FileLock(path, timeout=BUSY_TIMEOUT_SECONDS)


def _wait_for_creation(database: Path) -> None:
    """Wait until no process creates the tables; where nothing can be written, none does."""
    if database.with_suffix(".lock").exists():
        with contextlib.suppress(OSError), _creation_lock(database):
            pass


def _storage(file: Path, database: Path, *, is_compatible: bool, creates: bool = True) -> optuna.storages.RDBStorage:
    """Return the storage in `file`, whose errors name `database`."""
    storage = _Storage(
        database,
        sqlite_uri(file).replace("{", "{{").replace("}", "}}"),  # which Optuna takes for a template
        engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS, "factory": _Connection}},
        skip_compatibility_check=is_compatible,
        skip_table_creation=is_compatible or not creates,
    )
    _name_file_in_errors(storage.engine, file, database)
    return storage


def _name_file_in_errors(engine: sqlalchemy.Engine, file: Path, database: Path) -> None:
    """Turn errors of a full disk, of a damaged and of a deleted file into errors for the user."""
    name, opened = f"storage {database}", OpenFile(file)

    def on_error(context: sqlalchemy.engine.ExceptionContext) -> None:
        if opened.is_deleted:
            raise replaced_error(name, is_deleted=True) from context.original_exception
        if error := database_error(context.original_exception, name, database):
            raise error from context.original_exception

    def on_checkout(*_: object) -> None:
        if not opened.is_in_place:
            raise replaced_error(name, is_deleted=opened.is_deleted)

    sqlalchemy.event.listen(engine, "handle_error", on_error)
    sqlalchemy.event.listen(engine, "checkout", on_checkout)


def _prepare(database: Path) -> bool:
    """Set write-ahead logging, which stays in the file; return whether this version of Optuna made the tables.

    Raises:
        sqlite3.Error: if the file is not a database or cannot be written.
    """
    with closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")  # fails if the file cannot be written
        connection.rollback()
        names = _table_names(connection)
    # A process that was killed while it created the tables leaves some of them.
    is_new = not names or (FIRST_TABLE in names and VERSION_TABLE not in names)
    return not is_new and _check_version(database)


def _table_names(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _is_complete(database: Path) -> bool:
    """Return whether Optuna has made all tables; the row of the last one says which migrations they have had.

    Raises:
        sqlite3.Error: if the file cannot be read, or is damaged.
    """
    with closing(_open_existing(database)) as connection:
        if LAST_TABLE not in _table_names(connection):
            return False
        return bool(connection.execute(f"SELECT version_num FROM {LAST_TABLE}").fetchone())


def _open_existing(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.as_uri()}?mode=rw", timeout=BUSY_TIMEOUT_SECONDS, uri=True)


def _check_version(database: Path) -> bool:
    """Return whether this version of Optuna made the tables; check that the file is sound.

    Optuna checks its tables as well, but reads all its migrations for that, which takes longer than loading a study.

    Raises:
        sqlite3.Error: if the file cannot be read, is damaged, or has no tables of Optuna.
    """
    with closing(_open_existing(database)) as connection:
        try:
            made_with = connection.execute(f"SELECT library_version FROM {VERSION_TABLE}").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # that of a missing table
                raise
            raise sqlite3.OperationalError("it is empty, or the database of another program") from None
        check_sound(connection)
        check_types(connection)
    return bool(made_with == (optuna.__version__,))


class _Storage(optuna.storages.RDBStorage):
    """A storage whose errors name its file, also those of values that are not what Optuna has stored."""

    def __init__(self, database: Path, url: str, **settings: Any):
        self.database = database
        super().__init__(url, **settings)


def _with_named_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def read(self: _Storage, *arguments: Any, **settings: Any) -> Any:
        with damaged_values(f"storage {self.database}", KeyError):  # that of a study or a trial that does not exist
            return method(self, *arguments, **settings)

    return read


READING_METHODS = (
    *("get_all_studies", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs"),
    *("get_trial", "get_all_trials", "_get_trials"),
)
"""The methods of Optuna that read values; its cache calls `_get_trials`."""
for _name in READING_METHODS:
    setattr(_Storage, _name, _with_named_errors(getattr(optuna.storages.RDBStorage, _name)))


class _Connection(sqlite3.Connection):
    """Lets the operating system decide when a commit is written to the disk, which saves some milliseconds each.

    A killed process loses nothing. After a power failure the last commits may be missing, but the database is intact.
    """

    def __init__(self, database: str, *arguments: Any, **settings: Any):
        # A file that was deleted is not created again, without tables.
        super().__init__(f"{Path(database).as_uri()}?mode=rw", *arguments, **{**settings, "uri": True})
        self.execute("PRAGMA synchronous=NORMAL")
