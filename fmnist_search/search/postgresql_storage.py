"""Optuna's storage in PostgreSQL: opened, created by one process at a time, and its errors with their remedies."""

from __future__ import annotations

import importlib.util
import shlex

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from fmnist_search.errors import UserError
from fmnist_search.search.storage_url import connect_arguments, shown_url
from fmnist_search.sqlite_files import is_disk_full
from fmnist_search.text import first_line

VERSION_TABLE, LAST_TABLE = "version_info", "alembic_version"
"""The table that names the version of Optuna, and the last one that it creates."""
CREATION_LOCK = 0x666D6E697374
"""Key of the advisory lock of processes that create Optuna's tables."""

INSTALL_DRIVER = "`pip install 'fmnist-search[postgres]'`"

REMEDIES = {
    "password authentication failed": "check the password (PGPASSWORD, ~/.pgpass or the address)",
    "no password supplied": "give the password with PGPASSWORD, in ~/.pgpass or in the address",
    "read-only": "give the address of the server that can be written",
    "permission denied": "give the user the right to create tables in the database, or the address of another user",
    "could not translate host name": "check the name of the host in the address",
    "failed to resolve host": "check the name of the host in the address",
    "starting up": "try again when the server has started",
    "too many": "try again when other programs have closed their connections",
    "role": "check the name of the user in the address",
}
"""What to do about an error, by a part of its message; a connection that is refused has no code."""


def open_postgresql(url: str, *, create: bool) -> RDBStorage | None:
    """Return the storage of a database; None if Optuna's tables are missing or not complete and `create` is false.

    Raises:
        UserError: if the database cannot be reached, or written with `create`; if the driver package is missing.
        RuntimeError: if the tables are those of another version of Optuna.
    """
    try:
        return _open(url, create=create)
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
        raise _to_user_error(url, error) from error


def _open(url: str, *, create: bool) -> RDBStorage | None:
    settings = {"connect_args": connect_arguments(url), "pool_pre_ping": True}
    engine = sa.create_engine(url, connect_args=connect_arguments(url), poolclass=NullPool)
    with engine.connect() as connection:
        if create and connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on":
            raise UserError(f"storage {shown_url(url)}: is read-only; {REMEDIES['read-only']}")
        made_with = _made_with(connection)
        if made_with is None and not create:
            return None
        if create and made_with is None:
            # Two processes that create the tables at the same time would fail. The lock ends with the connection.
            connection.execute(sa.select(sa.func.pg_advisory_lock(CREATION_LOCK)))
        is_compatible = made_with == optuna.__version__
        return RDBStorage(
            url.replace("{", "{{").replace("}", "}}"),  # which Optuna takes for a template
            engine_kwargs=settings,
            skip_compatibility_check=is_compatible,
            skip_table_creation=is_compatible or not create,
        )


def _made_with(connection: sa.Connection) -> str | None:
    """Return the version of Optuna that made the tables; None before the last one has its row."""
    if not sa.inspect(connection).has_table(LAST_TABLE):
        return None
    if not connection.execute(sa.text(f"SELECT version_num FROM {LAST_TABLE}")).scalar():
        return None
    return str(connection.execute(sa.text(f"SELECT library_version FROM {VERSION_TABLE}")).scalar())


def _to_user_error(url: str, error: BaseException) -> UserError:
    name = f"storage {shown_url(url)}"
    if isinstance(error, ImportError | sa.exc.NoSuchModuleError):
        driver = sa.make_url(url).drivername
        if driver in ("postgresql", "postgresql+psycopg") and importlib.util.find_spec("psycopg") is None:
            return UserError(f"{name}: needs the package psycopg; install it with {INSTALL_DRIVER}")
        return UserError(
            f"{name}: the driver of {driver} is not installed; write postgresql:// and install psycopg with "
            f"{INSTALL_DRIVER}"
        )
    reason = first_line(getattr(error, "orig", None) or error.__cause__ or error)
    if is_disk_full(error):
        return UserError(f"{name}: cannot be written, the disk of the server is full; free some space there")
    lower = str(getattr(error, "orig", None) or error.__cause__ or error).lower()
    database = sa.make_url(url).database or ""
    if "database" in lower and "does not exist" in lower:
        remedy = f"create it with `createdb {shlex.quote(database)}`, or check the name in the address"
    else:
        remedy = next((remedy for part, remedy in REMEDIES.items() if part in lower), "")
        remedy = remedy or "start the server, or check the address (--storage or FMNIST_SEARCH_STORAGE)"
    return UserError(f"{name}: cannot be opened ({reason}); {remedy}")
