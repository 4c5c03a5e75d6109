"""The address of Optuna's storage: how it is shown, and how a database is connected. This needs no Optuna."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, StaticPool

from fmnist_search.sqlite_files import open_for_reading
from fmnist_search.workspace import sqlite_path

POSTGRESQL_ARGUMENTS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""Settings of libpq with which a connection to a machine that is gone fails within half a minute, not within hours."""


def shown_url(url: str | sa.URL) -> str:
    """Return the path of a SQLite file, or an address without its password."""
    if isinstance(url, str) and (database := sqlite_path(url, "storage")):
        return str(database)
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return str(parsed.database)
    return parsed.render_as_string(hide_password=True)


def connect_arguments(url: str | sa.URL) -> dict[str, Any]:
    """Return the arguments with which a driver package connects to a server."""
    is_libpq = sa.make_url(url).drivername in ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
    return dict(POSTGRESQL_ARGUMENTS) if is_libpq else {}


@contextlib.contextmanager
def open_read_only(url: str) -> Iterator[sa.Engine]:
    """Yield an engine that only reads, and that creates nothing.

    Raises:
        sqlite3.Error: if it is that of a SQLite file that cannot be read.
    """
    with contextlib.ExitStack() as stack:
        if database := sqlite_path(url):
            connection = stack.enter_context(open_for_reading(database))
            engine = sa.create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
        else:
            engine = sa.create_engine(url, connect_args=connect_arguments(url), poolclass=NullPool)
        stack.callback(engine.dispose)
        yield engine


def create_table(engine: sa.Engine, table: sa.Table) -> None:
    """Create a table, unless there is one.

    Raises:
        SQLAlchemyError: if it cannot be created.
    """
    try:
        table.create(engine, checkfirst=True)
    except SQLAlchemyError:  # another process may have created it since the check
        if not sa.inspect(engine).has_table(table.name):
            raise
