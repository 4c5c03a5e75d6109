"""What is on its way to MLflow: an event is on disk before its training goes on, and stays there until it is stored.

One SQLite file beside the studies serves every process of a machine. It outlives a process that is killed and a store
that is down; what is sent from it twice is stored once, since times are fixed when an event happens and a run is
looked for, by its address, before it is made a second time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

BUSY_TIMEOUT_SECONDS = 60.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, store TEXT NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL,
    body TEXT NOT NULL, content BLOB, later INTEGER NOT NULL, tried INTEGER NOT NULL DEFAULT 0, refused TEXT);
CREATE INDEX IF NOT EXISTS next_event ON events (store, later, number) WHERE refused IS NULL;
CREATE TABLE IF NOT EXISTS runs (address TEXT PRIMARY KEY, run_id TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Event:
    """Something to write to a run of MLflow.

    `run_key` is the run's address, `kind` says what `body` holds, `content` the bytes of a file. What can come
    `deferred` goes when nothing else is left. One that was `attempted` may have reached the store already.
    """

    run_key: str
    kind: str
    body: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    deferred: bool = False
    number: int = 0
    attempted: bool = False


class EventRejected(Exception):
    """The store is there and will never take this event."""


class StoreUnavailable(Exception):
    """The store cannot be reached, or takes nothing at the moment."""


class Outbox:
    """The events for one store, in their order; every method may be called from any thread."""

    def __init__(self, path: Path, store_uri: str):
        self.path = path
        self.store_uri = store_uri
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
        self._sender_lock = FileLock(path.with_suffix(".lock"), thread_local=False)
        with FileLock(path.with_suffix(".made.lock")):  # two processes that make the tables at once would trip
            self._execute("PRAGMA journal_mode=WAL")
            with self._lock:
                self._connection.executescript(SCHEMA)
        # A killed process loses nothing by this; a machine that loses its power may lose the last moments.
        self._execute("PRAGMA synchronous=NORMAL")

    def close(self) -> None:
        """Let go of the file, which shrinks once it is empty."""
        self._sender_lock.release()
        # Another process may be at it, and it may be closed already.
        with contextlib.suppress(sqlite3.OperationalError, sqlite3.ProgrammingError):
            if not self._execute("SELECT COUNT(*) FROM events").fetchone()[0]:
                self._execute("VACUUM")
        self._connection.close()

    def put(self, event: Event) -> int:
        """Keep an event; gives its number."""
        values = (
            self.store_uri,
            event.run_key,
            event.kind,
            json.dumps(dict(event.body)),
            event.content,
            event.deferred,
        )
        added = self._execute(
            "INSERT INTO events (store, run, kind, body, content, later) VALUES (?, ?, ?, ?, ?, ?)", *values
        )
        assert added.lastrowid is not None
        return added.lastrowid

    def next_event(self) -> Event | None:
        """The event that is to go next, marked as tried; None when there is none."""
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

    def update_body(self, event: Event, **extra: object) -> Event:
        """The event with more in its body, for good."""
        body = {**event.body, **extra}
        self._execute("UPDATE events SET body = ? WHERE number = ?", json.dumps(body), event.number)
        return dataclasses.replace(event, body=body)

    def mark_delivered(self, event: Event) -> None:
        """The store has it."""
        self._execute("DELETE FROM events WHERE number = ?", event.number)

    def reject(self, event: Event, reason: str) -> None:
        """The store will never take it: it is kept aside, with all that belongs to its run."""
        self._execute(
            "UPDATE events SET refused = ? WHERE store = ? AND run = ?", reason, self.store_uri, event.run_key
        )

    def retry_rejected(self) -> None:
        """Take back what was put aside."""
        self._execute("UPDATE events SET refused = NULL WHERE store = ?", self.store_uri)

    def discard_rejected(self) -> None:
        """Drop what was put aside."""
        self._execute("DELETE FROM events WHERE store = ? AND refused IS NOT NULL", self.store_uri)

    def pending_count(self, last_number: int | None = None) -> int:
        """How many events the store has still to get, of those up to a number."""
        limit = 2**62 if last_number is None else last_number
        query = "SELECT COUNT(*) FROM events WHERE store = ? AND refused IS NULL AND number <= ?"
        return int(self._execute(query, self.store_uri, limit).fetchone()[0])

    @property
    def last_number(self) -> int:
        """The number of the last event that was put in; 0 where none waits."""
        return int(self._execute("SELECT MAX(number) FROM events WHERE store = ?", self.store_uri).fetchone()[0] or 0)

    def rejected_counts(self) -> dict[str, int]:
        """How many events are put aside, by reason."""
        query = "SELECT refused, COUNT(*) FROM events WHERE store = ? AND refused IS NOT NULL GROUP BY refused"
        return dict(self._execute(query, self.store_uri).fetchall())

    # ------------------------------------------------------------------------------------------- runs

    def run_id(self, run_key: str) -> str | None:
        """The run behind an address; None before it was made."""
        found = self._execute("SELECT run_id FROM runs WHERE address = ?", run_key).fetchone()
        return str(found[0]) if found else None

    def remember_run(self, run_key: str, run_id: str) -> None:
        """Remember which run an address has got."""
        self._execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", run_key, run_id)

    # ---------------------------------------------------------------------------------------- sending

    def try_lock(self) -> bool:
        """Whether this process is the one that sends; it is from now on, where no other is."""
        if not self._sender_lock.is_locked:
            try:
                self._sender_lock.acquire(timeout=0)
            except Timeout:
                return False
        return True

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        with self._lock:
            return self._connection.execute(statement, values)
