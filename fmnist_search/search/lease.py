"""The lease of a study: at most one process, its driver, searches or promotes a study at a time.

A lease is a row in a table beside Optuna's own, by the name of the study, since `--fresh` replaces the study but not
its name. All times are those of the database's clock.
"""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from fmnist_search.errors import UserError
from fmnist_search.files import is_missing
from fmnist_search.processes import (
    ProcessOwned,
    describe_process,
    has_ended,
    is_known_to_have_ended,
    process_identity,
    process_namespace,
)
from fmnist_search.search.outages import limit_idle_transactions
from fmnist_search.search.storage_url import create_table, open_read_only, shown_url
from fmnist_search.text import first_line
from fmnist_search.workspace import sqlite_path

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

RENEWAL_RETRY_SECONDS = 1.0
"""Seconds until a renewal that failed is tried again."""

RELEASE_SECONDS = 5.0
"""Seconds that the release of a lease waits for a renewal at the same time."""

DRIVERS = sa.Table(
    "fmnist_search_drivers",
    sa.MetaData(),
    sa.Column("study", sa.String, primary_key=True),
    sa.Column("session", sa.String, nullable=False),
    sa.Column("process", sa.String, nullable=False),
    sa.Column("namespace", sa.String, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("renewed_at", sa.Double, nullable=False),
    sa.Column("lease_seconds", sa.Double, nullable=False),
)


@dataclass(frozen=True)
class Driver(ProcessOwned):
    """The process that searches or promotes a study.

    `process` is its identity, `namespace` says which processes can see it, and `started_at` is the Unix time at which
    it took the lease. It renewed the lease `silent_seconds` ago, and others may take it over after `lease_seconds`
    without renewal.
    """

    study: str
    session: str
    process: str
    namespace: str
    started_at: float
    silent_seconds: float
    lease_seconds: float

    @property
    def is_visible(self) -> bool:
        """Whether this process can see whether it runs, and signal it."""
        return self.namespace == process_namespace() and has_ended(self.process) is not None

    @property
    def holds_lease(self) -> bool:
        """Whether it runs and renews its lease, as far as can be seen from here."""
        return not self.has_ended and self.silent_seconds <= self.lease_seconds

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended."""
        return is_known_to_have_ended(self.process, self.namespace)

    def __str__(self) -> str:
        return describe_process(self.process)


_SESSIONS: set[str] = set()
"""The sessions of this process that hold leases. One that could not be deleted, for example on a full disk, is free."""


class LeaseLost(UserError):
    """Raised by each write of a driver whose lease another process has taken over."""


class Lease:
    """The right of this process to change a study, renewed by a thread until it is released or lost.

    Others may take it over after `seconds` without renewal. `session` is a text that no other lease has. `took_over` is
    the driver that did not release the lease, if there was one: its process has ended or was silent.
    """

    def __init__(self, engine: sa.Engine, study: str, session: str, seconds: float, took_over: Driver | None):
        self.study = study
        self.seconds = seconds
        self.took_over = took_over
        self._engine = engine
        self.session = session
        self._holder = sa.select(DRIVERS.c.session, DRIVERS.c.process).where(DRIVERS.c.study == study)
        self._lost: LeaseLost | None = None
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(cls, storage: RDBStorage, study: str, heartbeat_seconds: float, lease_seconds: float) -> Lease:
        """Return the lease of a study, which this process renews every `heartbeat_seconds`.

        Raises:
            UserError: if another process drives the study, or if the storage cannot be written.
        """
        # A connection for each renewal: none is held for minutes, and none is dead after an outage.
        settings = storage.engine_kwargs.get("connect_args", {})
        engine = sa.create_engine(storage.engine.url, connect_args=settings, poolclass=NullPool)
        limit_idle_transactions(engine, lease_seconds / 2)
        session = uuid.uuid4().hex
        try:
            create_table(engine, DRIVERS)
            _SESSIONS.add(session)  # before another thread can find it in the table
            took_over = _take(engine, study, session, lease_seconds)
        except SQLAlchemyError as error:
            shown = shown_url(storage.engine.url)
            raise UserError(
                f"storage {shown}: the lease of study {study!r} cannot be stored ({_reason(error)}); try again when "
                "the database answers and can be written"
            ) from error
        lease = cls(engine, study, session, lease_seconds, took_over)
        lease._start_renewing(heartbeat_seconds)
        return lease

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    @property
    def is_lost(self) -> bool:
        """Whether it is known that another process has taken the lease over."""
        return self._lost is not None

    def check(self) -> None:
        """Check what the last renewal or the last write found; this does not ask the database.

        Raises:
            LeaseLost: if another process has taken the lease over.
        """
        if self._lost is not None:
            raise LeaseLost(*self._lost.lines)

    def verify(self, engine: sa.Engine) -> None:
        """Check in the database, through an engine, that the lease is held.

        Raises:
            LeaseLost: if another process has taken the lease over.
        """
        self.check()
        with engine.begin() as connection:
            self.check_in(connection)

    def check_in(self, connection: sa.Connection) -> None:
        """Check in a transaction that the lease is held, and keep others from taking it until the transaction ends.

        With SQLite, the transaction must have written something, because only then it keeps other writers out.

        Raises:
            LeaseLost: if another process has taken the lease over.
        """
        row = connection.execute(self._holder.with_for_update(read=True)).first()
        if row is None or row.session != self.session:
            self._lose(row.process if row else None)
            self.check()

    def release(self) -> None:
        """Stop renewing the lease, and delete it if it is still held; without the database it expires by itself."""
        if self._released.is_set():
            return
        self._released.set()
        if self._thread:
            self._thread.join(timeout=RELEASE_SECONDS)  # it may wait for a database that does not answer
        _SESSIONS.discard(self.session)
        with contextlib.suppress(SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(sa.delete(DRIVERS).where(self._is_ours()))
        self._engine.dispose()

    def _start_renewing(self, heartbeat_seconds: float) -> None:
        self._thread = threading.Thread(
            target=self._keep_renewing, args=(heartbeat_seconds,), name=f"lease of {self.study}", daemon=True
        )
        self._thread.start()

    def _keep_renewing(self, heartbeat_seconds: float) -> None:
        pause = heartbeat_seconds
        while not self._released.wait(pause) and not self.is_lost:
            try:
                self._renew()
                pause = heartbeat_seconds
            except SQLAlchemyError:  # the database is out of reach or locked
                pause = min(heartbeat_seconds, RENEWAL_RETRY_SECONDS)

    def _renew(self) -> None:
        with self._engine.begin() as connection:
            renewal = sa.update(DRIVERS).where(self._is_ours()).values(renewed_at=_database_time(self._engine))
            if connection.execute(renewal).rowcount == 0:
                row = connection.execute(self._holder).first()
                self._lose(row.process if row else None)

    def _is_ours(self) -> sa.ColumnElement[bool]:
        return (DRIVERS.c.study == self.study) & (DRIVERS.c.session == self.session)

    def _lose(self, process: str | None) -> None:
        successor = describe_process(process) if process else "another process, which has ended since"
        self._lost = LeaseLost(
            f"study {self.study!r}: this search was taken over by {successor} because it gave no sign for "
            f"{self.seconds:g} s; it has stopped and changed nothing since"
        )


def current_driver(url: str, study: str) -> Driver | None:
    """Return the driver of a study at present; None if no process drives it or there is no storage.

    Raises:
        UserError: if the storage cannot be read.
    """
    return next((driver for driver in current_drivers(url) if driver.study == study), None)


def current_drivers(url: str) -> list[Driver]:
    """Return the drivers of all studies of a storage, in the order in which they began.

    Raises:
        UserError: if the storage cannot be read.
    """
    database = sqlite_path(url)
    if database and is_missing(database):
        return []
    try:
        with open_read_only(url) as engine:
            rows = _read(engine) if sa.inspect(engine).has_table(DRIVERS.name) else []
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise UserError(
            f"storage {shown_url(url)}: cannot be read ({_reason(error)}); check that it exists and can be read"
        ) from error
    drivers = map(_to_driver, rows)
    return sorted((driver for driver in drivers if driver.holds_lease), key=lambda driver: driver.started_at)


def _take(engine: sa.Engine, study: str, session: str, lease_seconds: float) -> Driver | None:
    """Store a session as the holder of the lease; return the driver that it takes the lease from, or None.

    Of several processes that do this at once, one succeeds: a row is inserted once, and it is replaced only if it is
    still what was read.

    Raises:
        UserError: if another process holds the lease.
    """
    now = _database_time(engine)
    values: dict[str, Any] = {
        "session": session,
        "process": process_identity(),
        "namespace": process_namespace(),
        "started_at": now,
        "renewed_at": now,
        "lease_seconds": lease_seconds,
    }
    while True:
        row = next((row for row in _read(engine) if row.study == study), None)
        with engine.begin() as connection, contextlib.suppress(IntegrityError):  # another process was faster
            if row is None:
                connection.execute(sa.insert(DRIVERS).values(study=study, **values))
                return None
            driver = _to_driver(row)
            was_left = row.process == process_identity() and row.session not in _SESSIONS
            if driver.holds_lease and not was_left:
                raise UserError(_refusal(driver))
            is_unchanged = (
                (DRIVERS.c.study == study)
                & (DRIVERS.c.session == row.session)
                & (DRIVERS.c.renewed_at == row.renewed_at)
            )
            if connection.execute(sa.update(DRIVERS).where(is_unchanged).values(**values)).rowcount:
                return driver


def _read(engine: sa.Engine) -> Sequence[sa.Row[Any]]:
    age = (_database_time(engine) - DRIVERS.c.renewed_at).label("age")
    with engine.connect() as connection:
        return connection.execute(sa.select(DRIVERS, age)).all()


def _to_driver(row: sa.Row[Any]) -> Driver:
    return Driver(row.study, row.session, row.process, row.namespace, row.started_at, row.age, row.lease_seconds)


def _refusal(driver: Driver) -> str:
    day = "%H:%M" if time.time() - driver.started_at < 12 * 3600 else "%Y-%m-%d %H:%M"
    since = time.strftime(day, time.localtime(driver.started_at))
    problem = f"study {driver.study!r}: is searched by {driver} since {since}"
    if not driver.is_visible:
        remedy = "wait for it, or end it there"
    else:
        name = shlex.quote(driver.study)
        remedy = f"wait for it, follow it with `fmnist-search watch {name}`, or end it with `fmnist-search stop {name}`"
    if driver.silent_seconds > driver.lease_seconds / 2:
        remedy += (
            f"; it has given no sign for {driver.silent_seconds:.0f} s, and the study can be taken over after "
            f"{driver.lease_seconds:g} s"
        )
    return f"{problem}; {remedy}"


def _database_time(engine: sa.Engine) -> sa.ColumnElement[float]:
    """Return the expression of the present Unix time by the clock of a database."""
    if engine.dialect.name == "sqlite":
        return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)
    return sa.literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)", sa.Double)


def _reason(error: Exception) -> str:
    return first_line(getattr(error, "orig", None) or error)
