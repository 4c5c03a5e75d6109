"""The outbox: events on their way to MLflow. An event is on disk before its training goes on, until it is stored.

One SQLite file serves all processes of a machine. It survives a process that is killed and a store that is down. An
event that is sent twice is stored once: times are fixed when an event happens, and a run is looked up by its key
before it would be created a second time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sqlite3
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmnist_search.text import redact
from fmnist_search.tracking.events import Event, EventKind, RunProgress, RunTakenOver
from fmnist_search.tracking.outbox_file import OutboxError, OutboxFile
from fmnist_search.tracking.sender_lease import SenderLease

MAX_EVENTS_AT_ONCE = 200
MAX_BYTES_AT_ONCE = 250_000
"""Bounds of what is sent of a run at once; a request to a server of MLflow has at most 1 MB."""

OF_NUMBERS = "WHERE number IN (SELECT value FROM json_each(?))"
INSERT_EVENT = "INSERT INTO events (store, run, kind, body, content, later) VALUES (?, ?, ?, ?, ?, ?)"
UPDATE_PROGRESS = """
INSERT INTO progress (run, epoch, outcome) VALUES (?, ?, ?) ON CONFLICT (run)
DO UPDATE SET epoch = max(epoch, excluded.epoch), outcome = coalesce(excluded.outcome, outcome)
"""
CLAIM_RUN = """
INSERT INTO progress (run, epoch, writer) VALUES (?, -1, ?) ON CONFLICT (run) DO UPDATE SET writer = excluded.writer
"""


class EventRejected(Exception):
    """The store answers, and will never take this event."""


class StoreUnavailable(Exception):
    """The store cannot be reached, or takes nothing at the moment. The message is the reason."""

    problem = "MLflow cannot be reached"


class StoreLocked(StoreUnavailable):
    """Another process has locked the database of the store."""

    problem = "another process has locked MLflow's database"


class DiskFull(StoreUnavailable):
    """The disk of the store's database, of its artifacts or of temporary files is full."""

    problem = "a disk is full"


class StoreReplaced(StoreUnavailable):
    """The file of the store was deleted or replaced while it was open."""

    problem = "MLflow's database was deleted or replaced"


class Outbox:
    """The events for one store, in order. Every method may be called from any thread."""

    def __init__(self, path: Path, store_uri: str):
        """Open the file, which is created if it is missing.

        Raises:
            OutboxError: if it cannot be opened or written, or is not an outbox. All methods raise it as well.
        """
        self.path = path
        self.store_uri = redact(store_uri)
        self._file = OutboxFile(path)
        self.lease = SenderLease(self._file, self.store_uri)
        if self.store_uri != store_uri:  # earlier versions stored passwords
            self._execute("UPDATE events SET store = ? WHERE store = ?", self.store_uri, store_uri)

    def close(self) -> None:
        """Close the file, and shrink it if it is empty. A second call does nothing."""
        with contextlib.suppress(OutboxError, sqlite3.ProgrammingError):  # it may be damaged, or closed already
            self.lease.release()
        self._file.close()

    def put(self, *events: Event, progress: RunProgress | None = None) -> int:
        """Store events, and with them the progress of their run, all or none; return the number of the last event.

        An outcome is on the disk when this returns: Optuna, which is told next, survives a power failure as well.

        Raises:
            RunTakenOver: if another writer has claimed the run since.
        """
        with self._file.transaction(sync=bool(progress and progress.outcome)) as connection:
            if progress and progress.writer:
                self._check_writer(connection, events[0].run_key, progress.writer)
            for event in events:
                body = json.dumps(dict(event.body))
                values = (self.store_uri, event.run_key, event.kind, body, event.content, event.deferred)
                number = connection.execute(INSERT_EVENT, values).lastrowid
            if progress:
                outcome = progress.outcome and json.dumps(dict(progress.outcome))
                connection.execute(UPDATE_PROGRESS, (events[0].run_key, progress.epochs, outcome))
        assert number is not None
        return number

    def claim_run(self, run_key: str) -> str:
        """Let only the caller store progress of a run from now on; return its name as a writer."""
        writer = uuid.uuid4().hex
        self._execute(CLAIM_RUN, run_key, writer)
        return writer

    @staticmethod
    def _check_writer(connection: sqlite3.Connection, run_key: str, writer: str) -> None:
        found = connection.execute("SELECT writer FROM progress WHERE run = ?", (run_key,)).fetchone()
        if found is None or found[0] != writer:
            raise RunTakenOver(
                f"run {run_key!r}: another process goes on with it; this one has stopped and written nothing since"
            )

    def progress(self, run_key: str) -> RunProgress | None:
        """Return the progress of the run with this key; None if none is stored."""
        found = self._select("SELECT epoch, outcome FROM progress WHERE run = ? AND epoch >= 0", run_key)
        return RunProgress(found[0][0], json.loads(found[0][1]) if found[0][1] else None) if found else None

    def forget_progress(self, run_key: str) -> None:
        """Remove the progress of a run that has ended."""
        self._execute("DELETE FROM progress WHERE run = ?", run_key)

    def next_events(self) -> list[Event]:
        """Return the events of one run that are to be sent next, in order, and mark them as attempted.

        They are those of the run that waits longest. A deferred event comes alone.
        """
        while numbers := self._next_numbers():
            query = f"SELECT number, run, kind, body, content, later, tried FROM events {OF_NUMBERS} ORDER BY number"
            rows = self._select(query, json.dumps(numbers))
            if any(not tried for *_, tried in rows):
                self._execute(f"UPDATE events SET tried = 1 {OF_NUMBERS} AND NOT tried", json.dumps(numbers))
            if events := self._decode(rows):
                return events
        return []

    def _next_numbers(self) -> list[int]:
        """Return the numbers of the events that are to be sent next, with a bounded content."""
        first = self._select(
            "SELECT run, later, number FROM events WHERE store = ? AND refused IS NULL ORDER BY later, number LIMIT 1",
            self.store_uri,
        )
        if not first or first[0][1]:
            return [number for *_, number in first]
        sizes = self._select(
            "SELECT number, length(body) + ifnull(length(content), 0) FROM events "
            "WHERE store = ? AND run = ? AND refused IS NULL AND NOT later ORDER BY number LIMIT ?",
            *(self.store_uri, first[0][0], MAX_EVENTS_AT_ONCE),
        )
        totals = itertools.accumulate(size for _, size in sizes)
        within = [number for (number, _), total in zip(sizes, totals, strict=True) if total <= MAX_BYTES_AT_ONCE]
        return within or [number for number, _ in sizes[:1]]

    def _decode(self, rows: list[tuple[Any, ...]]) -> list[Event]:
        """Return the events of rows up to the first that is damaged, which is rejected if it is the first of all."""
        events: list[Event] = []
        for number, run, kind, body, content, later, tried in rows:
            event = Event(run, kind, {}, content, bool(later), number, bool(tried))
            try:
                events.append(dataclasses.replace(event, body=json.loads(body)))
            except ValueError:
                if not events:
                    self.reject(event, "the event is damaged in the outbox")
                break
        return events

    @property
    def has_pending(self) -> bool:
        """Whether an event is still to be sent, by this process or by another."""
        query = "SELECT EXISTS (SELECT 1 FROM events WHERE store = ? AND refused IS NULL)"
        return bool(self._select(query, self.store_uri)[0][0])

    def stop_deferring(self, last_number: int) -> None:
        """Let the deferred events up to a number be sent in their order, before newer ones."""
        statement = "UPDATE events SET later = 0 WHERE store = ? AND later AND number <= ?"
        self._execute(statement, self.store_uri, last_number)

    def update_body(self, event: Event, body: Mapping[str, Any]) -> Event | None:
        """Store another body for an event, unless another process has; return the event as it is stored now.

        Return None if the event is not here any more: another process has delivered it.
        """
        statement = "UPDATE events SET body = ? WHERE number = ? AND body = ?"
        self._execute(statement, json.dumps(dict(body)), event.number, json.dumps(dict(event.body)))
        found = self._select("SELECT body FROM events WHERE number = ?", event.number)
        return dataclasses.replace(event, body=json.loads(found[0][0])) if found else None

    def mark_delivered(self, *events: Event) -> None:
        """Remove events that the store has taken, in one transaction."""
        numbers = json.dumps([event.number for event in events])
        self._execute(f"DELETE FROM events {OF_NUMBERS}", numbers)

    def reject(self, event: Event, reason: str, *, alone: bool = False) -> None:
        """Mark an event that the store will never take as rejected, and with it all events of its run.

        With `alone`, only the event is marked: the store takes others of the run.
        """
        where, values = (
            ("number = ?", (event.number,)) if alone else ("store = ? AND run = ?", (self.store_uri, event.run_key))
        )
        self._execute(f"UPDATE events SET refused = ? WHERE {where}", reason, *values)

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
        return int(self._select(query, self.store_uri, limit)[0][0])

    @property
    def last_number(self) -> int:
        """The number of the newest event; 0 if the outbox is empty."""
        return int(self._select("SELECT MAX(number) FROM events WHERE store = ?", self.store_uri)[0][0] or 0)

    def rejected_counts(self) -> dict[str, int]:
        """Return the number of rejected events for each reason."""
        query = "SELECT refused, COUNT(*) FROM events WHERE store = ? AND refused IS NOT NULL GROUP BY refused"
        return dict(self._select(query, self.store_uri))

    def waiting_runs(self) -> set[str]:
        """Return the keys of the runs of which an event is still here, pending or rejected."""
        return {key for (key,) in self._select("SELECT DISTINCT run FROM events WHERE store = ?", self.store_uri)}

    def store_uris(self) -> list[str]:
        """Return the stores that events wait for, also others than this one."""
        return [uri for (uri,) in self._select("SELECT DISTINCT store FROM events")]

    def readdress(self, former_uris: Iterable[str]) -> int:
        """Let the events for former addresses of this store wait for this one; return their number."""
        statement = "UPDATE events SET store = ? WHERE store = ?"
        return sum(self._execute(statement, self.store_uri, uri) for uri in former_uris)

    def run_id(self, run_key: str) -> str | None:
        """Return the id of the run with this key; None before MLflow has created it."""
        found = self._select("SELECT run_id FROM runs WHERE address = ?", run_key)
        return str(found[0][0]) if found else None

    def remember_run(self, run_key: str, run_id: str) -> None:
        """Store the id of the run with this key."""
        self._execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", run_key, run_id)

    def forget_run(self, run_key: str) -> None:
        """Forget the id of the run with this key, so that its events create it again."""
        self._execute("DELETE FROM runs WHERE address = ?", run_key)

    def run_key(self, stored: str) -> str:
        """Return the key of a run, which is given by its id or its key."""
        query = "SELECT address FROM runs WHERE run_id = ? ORDER BY address = run_id LIMIT 1"
        found = self._select(query, stored)
        return str(found[0][0]) if found else stored

    def creates(self, run_key: str) -> bool:
        """Return whether an event that creates the run with this key is still here, pending or rejected."""
        query = "SELECT EXISTS (SELECT 1 FROM events WHERE store = ? AND run = ? AND kind = ?)"
        return bool(self._select(query, self.store_uri, run_key, EventKind.CREATE_RUN.value)[0][0])

    def _select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._file.select(query, *values)

    def _execute(self, statement: str, *values: object) -> int:
        return self._file.execute(statement, *values)
