"""Which process delivers the events of an outbox: one at a time for each store.

The lease is a row in the outbox. It ends with its process, and a process that is stopped or hangs loses it within
seconds, so that the events of other processes do not wait for it. If such a process goes on in the middle of an event,
two processes may write the same event, which is stored once.
"""

from __future__ import annotations

import math
import threading
import time
import uuid

from fmnist_search.processes import describe_process, is_known_to_have_ended, process_identity, process_namespace
from fmnist_search.tracking.outbox_file import OutboxFile

RENEWAL_SECONDS = 3.0
LEASE_SECONDS = 15.0
"""A lease that was not renewed for so long is free."""


class SenderLease:
    """The lease of one sender, for the events of one store."""

    def __init__(self, file: OutboxFile, store_uri: str, seconds: float = LEASE_SECONDS):
        self._file = file
        self._store_uri = store_uri
        self._seconds = seconds
        self._token = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._renewed_at = -math.inf

    def acquire(self) -> bool:
        """Return whether this sender has the lease, which it takes if it is free."""
        with self._lock:
            if time.monotonic() - self._renewed_at < min(RENEWAL_SECONDS, self._seconds):
                return True
            self._renewed_at = -math.inf
            if self._other_holder():
                return False
            with self._file.transaction() as connection:
                if self._other_holder():
                    return False
                connection.execute(
                    "INSERT OR REPLACE INTO senders VALUES (?, ?, ?, ?)",
                    (self._store_uri, f"{process_identity()} {process_namespace()}", self._token, time.time()),
                )
            self._renewed_at = time.monotonic()
            return True

    def renew(self) -> None:
        """Keep the lease, if this sender has it, while an event takes long."""
        with self._lock:
            if self._renewed_at == -math.inf:
                return
            statement = "UPDATE senders SET renewed = ? WHERE store = ? AND token = ?"
            renewed = self._file.execute(statement, time.time(), self._store_uri, self._token)
            self._renewed_at = time.monotonic() if renewed else -math.inf

    def release(self) -> None:
        """Give up the lease, if this sender has it."""
        with self._lock:
            if self._renewed_at > -math.inf:
                self._renewed_at = -math.inf
                statement = "DELETE FROM senders WHERE store = ? AND token = ?"
                self._file.execute(statement, self._store_uri, self._token)

    @property
    def holder(self) -> str:
        """The process of another sender that has the lease, as a text for a message; empty if there is none."""
        process = self._other_holder()
        return describe_process(process) if process else ""

    def _other_holder(self) -> str:
        """Return the process whose sender has the lease, as it is stored; empty if none has it but this one."""
        query = "SELECT process, renewed FROM senders WHERE store = ? AND token != ?"
        for process, renewed in self._file.select(query, self._store_uri, self._token):
            if abs(time.time() - renewed) <= self._seconds and not _has_ended(process):
                return str(process)
        return ""


def _has_ended(process: str) -> bool:
    """Return whether a stored process is known to have ended; one of another container cannot be seen."""
    host, number, started, namespace = process.split(maxsplit=3)
    return is_known_to_have_ended(f"{host} {number} {started}", namespace)
