"""The SQLite file of an outbox: statements and transactions from any thread, and errors that name the file."""

from __future__ import annotations

import contextlib
import functools
import logging
import shlex
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fmnist_search.errors import UserError
from fmnist_search.files import make_private_folder
from fmnist_search.sqlite_files import (
    check_sound,
    disk_full_error,
    file_identity,
    is_damaged,
    is_disk_full,
    replaced_error,
)
from fmnist_search.text import first_line

log = logging.getLogger(__name__)

BUSY_TIMEOUT_SECONDS = 60.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, store TEXT NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL,
    body TEXT NOT NULL, content BLOB, later INTEGER NOT NULL, tried INTEGER NOT NULL DEFAULT 0, refused TEXT);
CREATE INDEX IF NOT EXISTS next_event ON events (store, later, number) WHERE refused IS NULL;
CREATE INDEX IF NOT EXISTS run_events ON events (store, run, number) WHERE refused IS NULL;
CREATE TABLE IF NOT EXISTS runs (address TEXT PRIMARY KEY, run_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS progress (run TEXT PRIMARY KEY, epoch INTEGER NOT NULL, outcome TEXT, writer TEXT);
CREATE TABLE IF NOT EXISTS senders (
    store TEXT PRIMARY KEY, process TEXT NOT NULL, token TEXT NOT NULL, renewed REAL NOT NULL);
"""


class OutboxError(UserError):
    """The outbox cannot be read or written."""


class OutboxFile:
    """The file of an outbox, which is created if it is missing.

    Every method raises OutboxError, which names the file and the remedy, if the file is damaged, locked or gone, or
    if its disk is full.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.RLock()
        with self._named_errors():
            self._connection = self._open()
            self._identity = file_identity(path)

    def _open(self) -> sqlite3.Connection:
        make_private_folder(self.path.parent)
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            made = self.path.with_suffix(".made.lock")
            made.touch()  # fails at once if the folder cannot be written, while FileLock would wait
            # Creating the tables in two processes at once would fail.
            with FileLock(made, timeout=BUSY_TIMEOUT_SECONDS):
                connection.execute("PRAGMA journal_mode=WAL")
                check_sound(connection)
                connection.executescript(SCHEMA)
            # A killed process loses nothing by this; a power failure may lose the last moments.
            connection.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query. All are fetched at once: no other thread could write while some are left."""
        with self._lock, self._named_errors():
            return self._connection.execute(query, values).fetchall()

    def execute(self, statement: str, *values: object) -> int:
        """Execute a statement that changes rows, and return their number."""
        with self._lock, self._named_errors():
            return self._connection.execute(statement, values).rowcount

    @contextlib.contextmanager
    def transaction(self, *, sync: bool = False) -> Iterator[sqlite3.Connection]:
        """Make all statements of the context or none. With `sync`, a power failure loses nothing of them."""
        with self._lock, self._named_errors():
            if file_identity(self.path) != self._identity:
                raise OutboxError(*replaced_error(f"outbox {self.path}").lines)
            if sync:
                self._connection.execute("PRAGMA synchronous=FULL")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                with self._connection:
                    yield self._connection
            finally:
                if sync:
                    self._connection.execute("PRAGMA synchronous=NORMAL")

    def close(self) -> None:
        """Close the file, and shrink it if it holds no events. A second call does nothing."""
        with self._lock:
            with contextlib.suppress(sqlite3.Error):  # in use by another process, damaged, or closed already
                if not self._connection.execute("SELECT COUNT(*) FROM events").fetchone()[0]:
                    self._connection.execute("VACUUM")
            self._connection.close()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # a statement of ours is wrong
            raise
        except (OSError, sqlite3.Error) as error:
            raise outbox_error(self.path, error) from error


def outbox_error(path: Path, error: Exception) -> OutboxError:
    """Return the error of an outbox that cannot be read or written."""
    if is_disk_full(error, path):
        return OutboxError(*disk_full_error(f"outbox {path}").lines)
    detail, code = first_line(error), getattr(error, "sqlite_errorcode", 0) & 0xFF
    if is_damaged(error):
        move = shlex.join(["mv", str(path), str(path.with_name(f"damaged-{path.name}"))])
        return OutboxError(
            f"outbox {path}: is damaged ({detail}); move it away with `{move}`; MLflow does not get the events in it, "
            "and `fmnist-search sync --rebuild STUDY` writes the runs that MLflow lacks again"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or isinstance(error, Timeout):
        return OutboxError(
            f"outbox {path}: another process has locked it for {BUSY_TIMEOUT_SECONDS:.0f} s ({detail}); end or "
            "continue that process, then run the same command again"
        )
    return OutboxError(f"outbox {path}: cannot be opened or written ({detail}); make the file and its folder writable")


def warn_once(error: OutboxError) -> None:
    """Log a warning, once per process, that a command which only reads goes on without the outbox."""
    _warn(str(error))


@functools.cache
def _warn(message: str) -> None:
    log.warning("warning: %s", message)
