"""Operations on the database of a driver, repeated while the database is out of reach."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.errors import UserError
from fmnist_search.files import is_missing
from fmnist_search.search.lease import Lease, LeaseLost
from fmnist_search.search.outages import StorageUnreachable, raise_outages
from fmnist_search.search.storage_url import shown_url
from fmnist_search.sqlite_files import FileReplacedError

OUTAGE_SECONDS = 120.0
"""Seconds for which an operation is retried while the database does not answer or cannot be written."""

MESSAGE_SECONDS = 3.0
"""Seconds of an outage after which it is reported."""

LONGEST_PAUSE_SECONDS = 2.0
"""The longest pause between two tries."""

T = TypeVar("T")


class OutageRetries:
    """Runs operations on a database, each for up to `outage_seconds` while the database cannot be used.

    `on_message` gets a line when an outage has lasted `MESSAGE_SECONDS`, and one when the database is back.
    """

    def __init__(self, rdb: RDBStorage, lease: Lease | None, on_message: Callable[[str], None], outage_seconds: float):
        self._rdb = rdb
        self._lease = lease
        self._on_message = on_message
        self._outage_seconds = outage_seconds
        self._outage = _Outage(outage_seconds)
        raise_outages(rdb)

    def run(self, operation: Callable[[], T], committed: Callable[[], T | None] = lambda: None) -> T:
        """Return what an operation returns, which is repeated while the database is out of reach.

        After a failure, `committed` returns the result if the operation was committed although it failed.

        Raises:
            UserError: if the outage lasts longer than `outage_seconds`.
        """
        deadline = time.monotonic() + self._outage_seconds
        attempt = 0
        while True:
            try:
                result = committed() if attempt else None
                result = operation() if result is None else result
            except StorageUnreachable as error:
                attempt += 1
                self._wait(str(error), attempt, deadline)
            except FileReplacedError as error:
                attempt += 1
                if error.is_deleted or not self._is_file_missing or time.monotonic() > deadline:
                    raise
                self._wait("the file is missing", attempt, deadline)
            except LeaseLost:
                raise
            except Exception:  # Optuna refuses what contradicts the writes of a successor before the lease is checked
                with contextlib.suppress(StorageUnreachable, SQLAlchemyError):
                    self.verify_lease()
                raise
            else:
                if message := self._outage.end():
                    self._on_message(f"storage {self._shown}: {message}")
                return result

    def verify_lease(self) -> None:
        """Check in the database that the lease is held.

        Raises:
            LeaseLost: if another process has taken it over.
        """
        if self._lease is not None:
            self._lease.verify(self._rdb.engine)

    def _wait(self, reason: str, attempt: int, deadline: float) -> None:
        if message := self._outage.note(reason):
            self._on_message(f"storage {self._shown}: {message}")
        if time.monotonic() > deadline:
            raise UserError(
                f"storage {self._shown}: has not answered for {self._outage_seconds:g} s ({reason}); what was stored "
                "before is kept: run the same command again when the database is back",
                exit_code=1,
            )
        # Many processes that wait for one database do not come back at the same moment.
        time.sleep(random.uniform(0.0, min(LONGEST_PAUSE_SECONDS, 0.05 * 2.0**attempt)))

    @property
    def _is_file_missing(self) -> bool:
        url = self._rdb.engine.url
        return url.get_backend_name() == "sqlite" and is_missing(Path(str(url.database)))

    @property
    def _shown(self) -> str:
        return shown_url(self._rdb.engine.url)


class _Outage:
    """Since when the database has been out of reach, for all threads, and whether that was reported."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._is_reported = False

    def note(self, reason: str) -> str | None:
        """Note that an operation failed; return the message, once per outage."""
        with self._lock:
            now = time.monotonic()
            if self._began_at is None:
                self._began_at = now
            if self._is_reported or now - self._began_at < MESSAGE_SECONDS:
                return None
            self._is_reported = True
        return f"does not answer ({reason}); it is tried again for up to {self._seconds:g} s, and nothing is lost"

    def end(self) -> str | None:
        """Note that an operation succeeded; return the message if an outage was reported."""
        if self._began_at is None:
            return None
        with self._lock:
            began_at, is_reported = self._began_at, self._is_reported
            self._began_at, self._is_reported = None, False
        if began_at is None or not is_reported:
            return None
        return f"answers again after {time.monotonic() - began_at:.0f} s"
