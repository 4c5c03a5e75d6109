"""What commands that only read want to know of an outbox: it is neither created nor changed."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_search.sqlite_files import open_for_reading
from fmnist_search.text import redact
from fmnist_search.tracking.outbox_file import outbox_error


@dataclass(frozen=True)
class OutboxReader:
    """Reads an outbox; without a connection it is empty. `store_uris` are the addresses of one store."""

    connection: sqlite3.Connection | None
    store_uris: tuple[str, str]

    def run_id(self, run_key: str) -> str | None:
        """Return the id of the run with this key; None if MLflow has not created it."""
        found = self._select("SELECT run_id FROM runs WHERE address = ?", run_key)
        return str(found[0][0]) if found else None

    def pending_count(self) -> int:
        """Return the number of events that are still to be sent."""
        found = self._select("SELECT COUNT(*) FROM events WHERE store IN (?, ?) AND refused IS NULL", *self.store_uris)
        return int(found[0][0]) if found else 0

    def rejected_counts(self) -> dict[str, int]:
        """Return the number of rejected events for each reason."""
        query = (
            "SELECT refused, COUNT(*) FROM events WHERE store IN (?, ?) AND refused IS NOT NULL "
            "GROUP BY refused ORDER BY refused"
        )
        return {str(reason): int(count) for reason, count in self._select(query, *self.store_uris)}

    def _select(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(query, values).fetchall() if self.connection else []


@contextlib.contextmanager
def read_outbox(path: Path, store_uri: str) -> Iterator[OutboxReader]:
    """Open the outbox of a store for reading; one that does not exist is empty.

    Raises:
        OutboxError: if it cannot be read.
    """
    uris = (redact(store_uri), store_uri)  # earlier versions stored passwords
    if not path.exists():
        yield OutboxReader(None, uris)
        return
    try:
        with open_for_reading(path) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            yield OutboxReader(connection if {"events", "runs"} <= tables else None, uris)
    except (OSError, sqlite3.Error) as error:
        raise outbox_error(path, error) from error
