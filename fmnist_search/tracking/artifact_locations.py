"""Where a local store records the artifacts of this program's runs."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fmnist_search.artifact_root import RELOCATE, ArtifactRoot, check_existing_artifacts
from fmnist_search.errors import UserError
from fmnist_search.tracking import tag_names
from fmnist_search.workspace import artifact_path, sqlite_path


def check_project(tracking_uri: str) -> list[Path]:
    """Check that a project was not moved or copied since its artifacts were written.

    Artifacts written now would go to the old folder. Return the folders outside the project that it uses nevertheless.

    Raises:
        UserError: if it was.
    """
    root = ArtifactRoot.of_store(tracking_uri)
    outside = [path for path in our_locations(tracking_uri) if root and not root.includes(path)]
    for path in outside:
        if root and root.find_counterpart(path):
            raise UserError(
                f"tracking {tracking_uri}: records artifacts in {path}, but the project was moved or copied to "
                f"{root.project}; {RELOCATE}"
            )
    return outside


def check_artifacts_exist(tracking_uri: str) -> list[Path]:
    """Check that all artifacts of this program lie where a SQLite store says; return the folders outside the project.

    Raises:
        UserError: if the project was moved or copied, or folders of experiments or models are missing.
    """
    outside = check_project(tracking_uri)
    with open_tables(tracking_uri) as database:
        models = [] if database is None else database.execute(_OUR_MODELS, (tag_names.KIND,)).fetchall()
    for path in our_locations(tracking_uri):
        check_existing_artifacts(tracking_uri, str(path), f"tracking {tracking_uri}")
    for name, version, uri in models:
        check_existing_artifacts(tracking_uri, uri, f"model 'models:/{name}/{version}'")
    return outside


def our_locations(tracking_uri: str) -> list[Path]:
    """Return the folders of this machine in which a SQLite store records the runs of this program, in order.

    There is one for each experiment, unless the addresses of some runs were changed.
    """
    with open_tables(tracking_uri) as database:
        found = [] if database is None else database.execute(_OUR_LOCATIONS, (tag_names.KIND,)).fetchall()
    return sorted({path for (uri,) in found if uri and (path := artifact_path(uri))})


_OUR_LOCATIONS = """
SELECT DISTINCT
    CASE WHEN artifact_uri LIKE '%/' || runs.run_uuid || '/artifacts'
        THEN SUBSTR(artifact_uri, 1, LENGTH(artifact_uri) - LENGTH(runs.run_uuid) - LENGTH('//artifacts'))
        ELSE artifact_uri END
FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid WHERE key = ?
"""

_OUR_MODELS = """
SELECT name, version, storage_location FROM model_versions
WHERE storage_location IS NOT NULL AND run_id IN (SELECT run_uuid FROM tags WHERE key = ?)
"""


@contextlib.contextmanager
def open_tables(tracking_uri: str) -> Iterator[sqlite3.Connection | None]:
    """Open a SQLite store for reading; yield None if it is none, or has not the tables of MLflow yet."""
    path = sqlite_path(tracking_uri)
    if path is None or not path.is_file():
        yield None
        return
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30)) as database:
        try:
            database.execute("SELECT artifact_uri FROM runs LIMIT 1")
        except sqlite3.Error:
            yield None
        else:
            yield database
