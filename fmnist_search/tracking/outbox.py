"""The outbox: events on their way to MLflow. An event is on disk before its training goes on, until it is stored.

One SQLite file serves all processes of a machine. It survives a process that is killed and a store that is down. An
event that is sent twice is stored once: times are fixed when an event happens, and a run is looked up by its key
before it would be created a second time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fmnist_search.errors import UserError
from fmnist_search.files import make_private_folder
from fmnist_search.sqlite_files import disk_full_error, is_disk_full
from fmnist_search.text import first_line, redact
from fmnist_search.tracking.events import Event, EventKind, RunProgress

BUSY_TIMEOUT_SECONDS = 60.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, store TEXT NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL,
    body TEXT NOT NULL, content BLOB, later INTEGER NOT NULL, tried INTEGER NOT NULL DEFAULT 0, refused TEXT);
CREATE INDEX IF NOT EXISTS next_event ON events (store, later, number) WHERE refused IS NULL;
CREATE TABLE IF NOT EXISTS runs (address TEXT PRIMARY KEY, run_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS progress (run TEXT PRIMARY KEY, epoch INTEGER NOT NULL, outcome TEXT);
"""

INSERT_EVENT = "INSERT INTO events (store, run, kind, body, content, later) VALUES (?, ?, ?, ?, ?, ?)"
UPDATE_PROGRESS = """
INSERT INTO progress (run, epoch, outcome) VALUES (?, ?, ?) ON CONFLICT (run)
DO UPDATE SET epoch = max(epoch, excluded.epoch), outcome = coalesce(excluded.outcome, outcome)
"""


class EventRejected(Exception):
    """The store answers, and will never take this event."""


class StoreUnavailable(Exception):
    """The store cannot be reached, or takes nothing at the moment."""


class Outbox:
    """The events for one store, in order. Every method may be called from any thread."""

    def __init__(self, path: Path, store_uri: str):
        """Open the file, which is created if it is missing.

        Raises:
            UserError: if it cannot be opened or written, or is not an outbox.
        """
        self.path = path
        self.store_uri = redact(store_uri)
        self._lock = threading.Lock()
        self._sender_lock = FileLock(self.lock_path, thread_local=False)
        try:
            self._connection = self._open()
            if self.store_uri != store_uri:  # earlier versions stored passwords
                self._execute("UPDATE events SET store = ? WHERE store = ?", self.store_uri, store_uri)
        except (OSError, sqlite3.Error) as error:
            raise outbox_error(path, error) from error

    def _open(self) -> sqlite3.Connection:
        make_private_folder(self.path.parent)
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        made = self.path.with_suffix(".made.lock")
        made.touch()  # fails at once if the folder cannot be written, while FileLock would wait
        with FileLock(made):  # creating the tables in two processes at once would fail
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(SCHEMA)
        # A killed process loses nothing by this; a power failure may lose the last moments.
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    @property
    def lock_path(self) -> Path:
        """The file that the sender of this store locks. Another store has its own, since it may be down."""
        store = hashlib.sha256(self.store_uri.encode()).hexdigest()[:8]
        return self.path.with_name(f"{self.path.stem}-{store}.lock")

    def close(self) -> None:
        """Close the file, and shrink it if it is empty. A second call does nothing."""
        self._sender_lock.release()
        # The file may be in use by another process, and it may be closed already.
        with contextlib.suppress(sqlite3.OperationalError, sqlite3.ProgrammingError):
            if not self._execute("SELECT COUNT(*) FROM events").fetchone()[0]:
                self._execute("VACUUM")
        self._connection.close()

    def put(self, *events: Event, progress: RunProgress | None = None) -> int:
        """Store events, and with them the progress of their run, all or none; return the number of the last event.

        An outcome is on the disk when this returns: Optuna, which is told next, survives a power failure as well.
        """
        with self._lock, self._transaction(sync=bool(progress and progress.outcome)) as connection:
            for event in events:
                body = json.dumps(dict(event.body))
                values = (self.store_uri, event.run_key, event.kind, body, event.content, event.deferred)
                number = connection.execute(INSERT_EVENT, values).lastrowid
            if progress:
                outcome = progress.outcome and json.dumps(dict(progress.outcome))
                connection.execute(UPDATE_PROGRESS, (events[0].run_key, progress.epochs, outcome))
        assert number is not None
        return number

    def progress(self, run_key: str) -> RunProgress | None:
        """Return the progress of the run with this key; None if none is stored."""
        found = self._execute("SELECT epoch, outcome FROM progress WHERE run = ?", run_key).fetchone()
        return RunProgress(found[0], json.loads(found[1]) if found[1] else None) if found else None

    def forget_progress(self, run_key: str) -> None:
        """Remove the progress of a run that has ended."""
        self._execute("DELETE FROM progress WHERE run = ?", run_key)

    def next_event(self) -> Event | None:
        """Return the event that is to be sent next, and mark it as attempted; None if there is none."""
        found = self._execute(
            "SELECT number, run, kind, body, content, later, tried FROM events "
            "WHERE store = ? AND refused IS NULL ORDER BY later, number LIMIT 1",
            self.store_uri,
        ).fetchone()
        if found is None:
            return None
        number, run, kind, body, content, later, tried = found
        if not tried:
            self._execute("UPDATE events SET tried = 1 WHERE number = ?", number)
        return Event(run, kind, json.loads(body), content, bool(later), number, bool(tried))

    @property
    def has_pending(self) -> bool:
        """Whether an event is still to be sent, by this process or by another."""
        query = "SELECT EXISTS (SELECT 1 FROM events WHERE store = ? AND refused IS NULL)"
        return bool(self._execute(query, self.store_uri).fetchone()[0])

    def update_body(self, event: Event, body: Mapping[str, Any]) -> Event:
        """Store another body for an event, and return the event with it."""
        self._execute("UPDATE events SET body = ? WHERE number = ?", json.dumps(dict(body)), event.number)
        return dataclasses.replace(event, body=body)

    def mark_delivered(self, event: Event) -> None:
        """Remove an event that the store has taken."""
        self._execute("DELETE FROM events WHERE number = ?", event.number)

    def reject(self, event: Event, reason: str) -> None:
        """Mark an event that the store will never take as rejected, and with it all events of its run."""
        self._execute(
            "UPDATE events SET refused = ? WHERE store = ? AND run = ?", reason, self.store_uri, event.run_key
        )

    def retry_rejected(self) -> None:
        """Make all rejected events pending again."""
        self._execute("UPDATE events SET refused = NULL WHERE store = ?", self.store_uri)

    def discard_rejected(self) -> None:
        """Delete all rejected events."""
        self._execute("DELETE FROM events WHERE store = ? AND refused IS NOT NULL", self.store_uri)

    def pending_count(self, last_number: int | None = None) -> int:
        """Return the number of events that are still to be sent, of those up to a number."""
        limit = 2**62 if last_number is None else last_number
        query = "SELECT COUNT(*) FROM events WHERE store = ? AND refused IS NULL AND number <= ?"
        return int(self._execute(query, self.store_uri, limit).fetchone()[0])

    @property
    def last_number(self) -> int:
        """The number of the newest event; 0 if the outbox is empty."""
        return int(self._execute("SELECT MAX(number) FROM events WHERE store = ?", self.store_uri).fetchone()[0] or 0)

    def rejected_counts(self) -> dict[str, int]:
        """Return the number of rejected events for each reason."""
        query = "SELECT refused, COUNT(*) FROM events WHERE store = ? AND refused IS NOT NULL GROUP BY refused"
        return dict(self._execute(query, self.store_uri).fetchall())

    def waiting_runs(self) -> set[str]:
        """Return the keys of the runs of which an event is still here, pending or rejected."""
        return {key for (key,) in self._execute("SELECT DISTINCT run FROM events WHERE store = ?", self.store_uri)}

    def store_uris(self) -> list[str]:
        """Return the stores that events wait for, also others than this one."""
        return [uri for (uri,) in self._execute("SELECT DISTINCT store FROM events").fetchall()]

    def readdress(self, former_uris: Iterable[str]) -> int:
        """Let the events for former addresses of this store wait for this one; return their number."""
        statement = "UPDATE events SET store = ? WHERE store = ?"
        return sum(self._execute(statement, self.store_uri, uri).rowcount for uri in former_uris)

    def run_id(self, run_key: str) -> str | None:
        """Return the id of the run with this key; None before MLflow has created it."""
        found = self._execute("SELECT run_id FROM runs WHERE address = ?", run_key).fetchone()
        return str(found[0]) if found else None

    def remember_run(self, run_key: str, run_id: str) -> None:
        """Store the id of the run with this key."""
        self._execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", run_key, run_id)

    def forget_run(self, run_key: str) -> None:
        """Forget the id of the run with this key, so that its events create it again."""
        self._execute("DELETE FROM runs WHERE address = ?", run_key)

    def run_key(self, stored: str) -> str:
        """Return the key of a run, which is given by its id or its key."""
        query = "SELECT address FROM runs WHERE run_id = ? ORDER BY address = run_id LIMIT 1"
        found = self._execute(query, stored).fetchone()
        return str(found[0]) if found else stored

    def creates(self, run_key: str) -> bool:
        """Return whether an event that creates the run with this key is still here, pending or rejected."""
        query = "SELECT EXISTS (SELECT 1 FROM events WHERE store = ? AND run = ? AND kind = ?)"
        return bool(self._execute(query, self.store_uri, run_key, EventKind.CREATE_RUN.value).fetchone()[0])

    def try_lock(self) -> bool:
        """Return whether this sender has the lock, which only one sender of the outbox has at a time."""
        if not self._sender_lock.is_locked:
            try:
                self._sender_lock.acquire(timeout=0)
            except Timeout:
                return False
        return True

    def unlock(self) -> None:
        """Release the lock, so that another sender may take it."""
        self._sender_lock.release()

    @contextlib.contextmanager
    def _transaction(self, *, sync: bool) -> Iterator[sqlite3.Connection]:
        """Make all statements of the context or none. With `sync`, a power failure loses nothing of them."""
        if sync:
            self._connection.execute("PRAGMA synchronous=FULL")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:
                yield self._connection
        finally:
            if sync:
                self._connection.execute("PRAGMA synchronous=NORMAL")

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        with self._lock:
            return self._connection.execute(statement, values)


def outbox_error(path: Path, error: Exception) -> UserError:
    """Return the error of an outbox that cannot be opened."""
    if is_disk_full(error, path):
        return disk_full_error(f"outbox {path}")
    return UserError(
        f"outbox {path}: cannot be opened ({first_line(error)}); make it writable, or, if it is damaged, move it away, "
        "and MLflow does not get the events in it"
    )
