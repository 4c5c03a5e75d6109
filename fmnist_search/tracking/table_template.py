"""The tables of a new MLflow store, copied from those of an earlier one.

For a new SQLite store MLflow runs all migrations of its history, which takes a second. Afterwards the user's cache
holds a store of this version of MLflow without rows, and the next new store is a copy of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.store.db.utils import _get_latest_schema_revision

from fmnist_search.files import atomic_write, make_private_folder
from fmnist_search.workspace import lock_file, template_folder

LOCK_TIMEOUT_SECONDS = 60
UNCHANGED_SECONDS = 10.0
"""A process that creates tables does not take longer for one of them."""
POLL_SECONDS = 0.1


def default_template() -> Path:
    """Return the file of the template for this version of MLflow, which may not exist."""
    return template_folder() / f"mlflow-{mlflow.__version__}.db"


@contextlib.contextmanager
def creation_lock(database: Path | None) -> Iterator[None]:
    """Let the processes of a user open a SQLite store one after the other: two that create its tables at once fail.

    If the lock cannot be taken, the body runs without it.
    """
    with contextlib.ExitStack() as stack:
        if database:
            with contextlib.suppress(OSError):  # the cache is not writable, or the lock is held for too long
                path = lock_file(f"tables of {database}")
                make_private_folder(path.parent)
                path.touch()  # fails at once if the folder cannot be written, while FileLock would wait
                stack.enter_context(FileLock(path, timeout=LOCK_TIMEOUT_SECONDS))
        yield


def copy_template(database: Path, template: Path) -> None:
    """Create a store from the template, unless the store exists or the template does not or is damaged.

    Raises:
        OSError: if the folder cannot be written.
    """
    if database.exists() or not _is_sound(template):
        return
    with tempfile.TemporaryDirectory(dir=database.parent) as folder:
        copy = shutil.copyfile(template, Path(folder, database.name))
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(copy, database)


def wait_for_tables(database: Path) -> None:
    """Wait while another process creates the tables of a store, such as MLflow's server, which takes no lock for it.

    Two processes that create them at once fail. Tables that do not change any more are not waited for: the process was
    killed, or they are of another version of MLflow.
    """
    state, since = _schema_state(database), time.monotonic()
    while not _is_latest(state) and time.monotonic() - since < UNCHANGED_SECONDS:
        if time.time() - _changed_at(database) > UNCHANGED_SECONDS:
            return
        time.sleep(POLL_SECONDS)
        if (found := _schema_state(database)) != state:
            state, since = found, time.monotonic()


def has_all_tables(database: Path) -> bool:
    """Return whether a store has the tables of this version of MLflow."""
    return _is_latest(_schema_state(database))


def _is_latest(state: tuple[int, str]) -> bool:
    return bool(state[1] == _get_latest_schema_revision())  # type: ignore[no-untyped-call]


def _schema_state(database: Path) -> tuple[int, str]:
    """Return a number that grows with each change of a table, and MLflow's name of the last migration.

    Raises:
        sqlite3.DatabaseError: if the file is damaged, or no database.
    """
    version, revision, address = 0, "", f"{database.as_uri()}?mode=ro"
    is_missing = contextlib.suppress(sqlite3.OperationalError)
    with is_missing, contextlib.closing(sqlite3.connect(address, uri=True)) as store:
        (version,) = store.execute("PRAGMA schema_version").fetchone()
        (revision,) = store.execute("SELECT version_num FROM alembic_version").fetchone() or [""]
    return version, revision


def _changed_at(database: Path) -> float:
    files = (database, *(database.with_name(f"{database.name}-{kind}") for kind in ("wal", "journal")))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def save_template(database: Path, template: Path) -> None:
    """Keep the tables of a store that MLflow has just created; do nothing if that fails, or the store is in use."""
    with contextlib.suppress(OSError, sqlite3.Error):
        make_private_folder(template.parent)
        with (
            contextlib.closing(sqlite3.connect(database)) as store,
            contextlib.closing(sqlite3.connect(":memory:")) as copy,
        ):
            store.backup(copy)
            rows = [copy.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("runs", "experiments")]
            if rows != [0, 1]:
                return
            copy.execute("DELETE FROM experiments")  # MLflow creates the default one, which names the store's folder
            copy.commit()
            with atomic_write(template) as file:
                file.write(copy.serialize())


def _is_sound(template: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(f"{template.as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute("PRAGMA quick_check").fetchone() == ("ok",))
    except sqlite3.Error:
        return False
