"""Which errors of a database pass by themselves: it is gone, restarts, is locked or cannot be written for a while."""

from __future__ import annotations

import sqlite3
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy.engine import ExceptionContext

from fmnist_search.text import first_line

BUSY_SECONDS = 2
"""Seconds that one try waits for another writer of a SQLite file."""

SQLITE_CODES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}

POSTGRESQL_CODES = {"25006", "25P03", "57P01", "57P02", "57P03", "57P05"}
"""Read-only transaction; idle in a transaction for too long; the server shuts down, crashed, or is starting up."""


class StorageUnreachable(Exception):
    """Raised by an operation on a database for an error that may pass by itself."""


def raise_outages(rdb: RDBStorage) -> None:
    """Let a storage raise `StorageUnreachable` for errors that may pass, and connect anew after each of them.

    Optuna would hide such an error behind one of its own, and repeat some operations by itself.
    """

    @sa.event.listens_for(rdb.engine, "handle_error")
    def convert(context: ExceptionContext) -> None:
        error = context.original_exception
        if context.is_disconnect or _may_pass(error):
            context.is_disconnect = True  # a connection that was opened read-only would stay so
            raise StorageUnreachable(first_line(error)) from error

    if rdb.engine.dialect.name == "sqlite":
        _shorten_busy_timeout(rdb)


def _shorten_busy_timeout(rdb: RDBStorage) -> None:
    @sa.event.listens_for(rdb.engine, "connect")
    def shorten(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")

    rdb.remove_session()
    rdb.engine.dispose()  # connections in the pool were opened before


def limit_idle_transactions(engine: sa.Engine, seconds: float) -> None:
    """Let PostgreSQL end a transaction whose process sends nothing: one that was frozen would keep its locks.

    Connections in the engine's pool are closed, because they have no limit. Other databases know no such limit.
    """
    if engine.dialect.name != "postgresql":
        return

    @sa.event.listens_for(engine, "connect")
    def limit(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = {seconds * 1000:.0f}")
        connection.commit()

    engine.dispose()


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in SQLITE_CODES
    if getattr(error, "sqlstate", None) in POSTGRESQL_CODES:
        return True
    return type(error).__module__.startswith("psycopg") and any(
        kind.__name__ in ("OperationalError", "InterfaceError") for kind in type(error).__mro__
    )
