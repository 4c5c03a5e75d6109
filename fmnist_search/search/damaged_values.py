"""Values in a storage that are not what was stored: SQLite has no checksums, so it reads them without an error."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from fmnist_search.errors import UserError
from fmnist_search.text import first_line

_DAMAGED = """
SELECT EXISTS (SELECT 1 FROM studies WHERE typeof(study_name) != 'text') OR EXISTS (
    SELECT 1 FROM trials
    WHERE typeof(number) != 'integer' OR state NOT IN ('RUNNING', 'COMPLETE', 'PRUNED', 'FAIL', 'WAITING'))
"""


def check_types(connection: sqlite3.Connection) -> None:
    """Check values in Optuna's tables by which studies and trials are found.

    Raises:
        sqlite3.DatabaseError: if one of them is damaged.
    """
    if connection.execute(_DAMAGED).fetchone()[0]:
        damaged = sqlite3.DatabaseError("a study without a name, or a trial without a number or a state")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged


@contextlib.contextmanager
def damaged_values(name: str, *passed: type[Exception]) -> Iterator[None]:
    """Turn the errors of values that cannot be read into an error for the user; `name` says where they are stored.

    Errors of the types `passed` are those of something else.

    Raises:
        UserError: if a value is not of the form in which it was stored.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, (UserError, *passed)):
            raise
        raise UserError(
            f"{name}: what is stored cannot be read ({type(error).__name__}: {first_line(error)}), so the storage is "
            "damaged; put a copy of it in its place, or begin anew in another folder (--workdir)"
        ) from error
