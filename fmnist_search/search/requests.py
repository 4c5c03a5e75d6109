"""Requests to the driver of a study, in a table beside Optuna's: so they reach a search in any process and machine.

Only the driver writes trials. Another process that wants a recipe to be tried, or a search or a trial to stop, stores a
request; the driver looks for requests after each epoch and before each new trial, and removes those that it has met.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.errors import UserError
from fmnist_search.search.storage import open_storage
from fmnist_search.search.storage_url import create_table, shown_url
from fmnist_search.text import first_line

REQUESTS = sa.Table(
    "fmnist_search_requests",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("study", sa.String, nullable=False),
    sa.Column("session", sa.String),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)


class RequestKind(StrEnum):
    """What is asked for; the values are stored and never change."""

    STOP = "stop"
    STOP_TRIAL = "stop-trial"
    ENQUEUE = "enqueue"


@dataclass(frozen=True)
class Request:
    """What another process asks of the driver of a study: to stop (`content` is empty), to stop the trial
    `content["trial"]`, or to try the values `content["values"]` of `content["source"]`.
    """

    number: int
    kind: RequestKind
    content: Mapping[str, Any]


def add_request(
    url: str, study: str, kind: RequestKind, content: Mapping[str, Any], session: str | None = None
) -> None:
    """Store a request to the driver with this session, or to the next driver of the study.

    Raises:
        UserError: if the storage cannot be written.
    """
    engine = open_storage(url, create=False).engine
    values = {"study": study, "session": session, "kind": kind.value, "content": json.dumps(dict(content))}
    try:
        create_table(engine, REQUESTS)
        with engine.begin() as connection:
            connection.execute(sa.insert(REQUESTS).values(created_at=time.time(), **values))
    except SQLAlchemyError as error:
        reason = first_line(getattr(error, "orig", None) or error)
        raise UserError(
            f"storage {shown_url(url)}: the request cannot be stored ({reason}); try again when the database answers"
        ) from error


def move_requests(storage: RDBStorage, study: str, renamed: str | None) -> None:
    """Let the requests to a study be those to the renamed one; None deletes them."""
    if not sa.inspect(storage.engine).has_table(REQUESTS.name):
        return
    of_study = REQUESTS.c.study == study
    with storage.engine.begin() as connection:
        connection.execute(
            sa.delete(REQUESTS).where(of_study)
            if renamed is None
            else sa.update(REQUESTS).where(of_study).values(study=renamed)
        )


class RequestInbox:
    """The requests to the driver of a study. While the database is out of reach, there are none."""

    def __init__(self, storage: RDBStorage, study: str, session: str):
        self._engine = storage.engine
        self._mine = (REQUESTS.c.study == study) & sa.or_(REQUESTS.c.session.is_(None), REQUESTS.c.session == session)
        stale = (REQUESTS.c.study == study) & (REQUESTS.c.session != session)
        with contextlib.suppress(SQLAlchemyError):  # a user who may not create tables searches without requests
            create_table(self._engine, REQUESTS)
            with self._engine.begin() as connection:
                connection.execute(sa.delete(REQUESTS).where(stale))

    def read(self) -> list[Request]:
        """Return the requests, the oldest first."""
        query = sa.select(REQUESTS).where(self._mine).order_by(REQUESTS.c.number)
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(query).all()
            return [Request(row.number, RequestKind(row.kind), json.loads(row.content)) for row in rows]
        except (SQLAlchemyError, UserError, ValueError):
            return []

    def remove(self, request: Request) -> None:
        """Remove a request that has been met.

        Raises:
            SQLAlchemyError: if the database is out of reach: the request is read again then.
        """
        with self._engine.begin() as connection:
            connection.execute(sa.delete(REQUESTS).where(REQUESTS.c.number == request.number))
