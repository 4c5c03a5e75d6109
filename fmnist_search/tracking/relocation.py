"""Relocation: the addresses in a store of a project that was moved or copied are rewritten for its present folder."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fmnist_search.artifact_root import ROOT_NAME, ArtifactRoot
from fmnist_search.errors import UserError
from fmnist_search.tracking.artifact_locations import open_tables, our_locations
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.workspace import Workspace, artifact_path, artifact_uri, sqlite_path

ADDRESSES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
    "trace_tags": ("value",),
}
"""The columns of MLflow's tables that may hold addresses of artifacts; older versions lack some of the tables."""
BACKUP_SUFFIX = ".before-relocate"
BUSY_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Relocation:
    """What was rewritten.

    `old_projects` are the folders that the addresses named before, `changed` is the number of rows by table, `events`
    that of the events that wait for the store, `backup` a copy of the database as it was before. `kept` are folders of
    experiments outside the project whose addresses were left, because the project has no copy of them. `uncopied` are
    folders of single runs or models that exist in an old project only, though the store now names them in this one.
    """

    project: Path
    old_projects: tuple[Path, ...] = ()
    changed: Mapping[str, int] = field(default_factory=dict)
    events: int = 0
    kept: tuple[Path, ...] = ()
    uncopied: tuple[Path, ...] = ()
    backup: Path | None = None


class _Address(NamedTuple):
    """The address in one cell of a table."""

    table: str
    column: str
    row: int
    path: Path


def relocate(workspace: Workspace) -> Relocation:
    """Rewrite the addresses of artifacts in the store of a project that was moved or copied.

    The store is a SQLite file, and its artifacts are in `mlruns` beside it. Everything is rewritten in one transaction,
    after the database was copied. A second call changes nothing.

    Raises:
        UserError: if the store is not a SQLite file of MLflow, or cannot be written.
    """
    database, root = sqlite_path(workspace.tracking_uri), ArtifactRoot.of_store(workspace.tracking_uri)
    if database is None or root is None:
        raise UserError(
            f"relocate: {workspace.tracking_uri} is not a SQLite file; where a server keeps artifacts is set with "
            "--artifacts-destination when it is started"
        )
    with open_tables(workspace.tracking_uri) as tables:
        if tables is None:
            raise UserError(f"relocate: {database} is no store of MLflow; run it in the folder of a project")
    try:
        with closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)) as connection:
            return _relocate(connection, workspace, database, root)
    except (sqlite3.Error, OSError) as error:
        raise UserError(f"relocate: {database} cannot be rewritten ({error}); nothing was changed") from None


def _relocate(connection: sqlite3.Connection, workspace: Workspace, database: Path, root: ArtifactRoot) -> Relocation:
    connection.execute("BEGIN IMMEDIATE")  # nothing else writes from here on
    outside = [address for address in _read_addresses(connection) if not root.includes(address.path)]
    old_projects = {found.old_project for address in outside if (found := root.find_counterpart(address.path))}
    targets = {address: _find_target(address.path, root, old_projects) for address in outside}
    moves = {address: target for address, target in targets.items() if target}
    left = {_location(address) for address, target in targets.items() if target is None}
    ours = our_locations(workspace.tracking_uri)
    kept = {path for path in left if path in ours or any(old in path.parents for old in old_projects)}
    result = Relocation(root.project, tuple(sorted(old_projects)), kept=tuple(sorted(kept)))
    if not moves:
        connection.rollback()
        return result
    backup = _copy(database)
    # The events come first: if this process is killed in between, the next call still knows the old folders.
    events = _move_events(workspace, database, old_projects)
    for address, target in moves.items():
        connection.execute(
            f"UPDATE {address.table} SET {address.column} = ? WHERE rowid = ?", (artifact_uri(target), address.row)
        )
    connection.commit()
    rows = {(address.table, address.row) for address in moves}
    return Relocation(
        project=root.project,
        old_projects=result.old_projects,
        changed=dict(Counter(table for table, _ in sorted(rows))),
        events=events,
        kept=result.kept,
        uncopied=tuple(sorted({a.path for a, target in moves.items() if a.path.exists() and not target.exists()})),
        backup=backup,
    )


def _read_addresses(connection: sqlite3.Connection) -> Iterator[_Address]:
    """Yield the addresses of artifacts in files of this machine."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, columns in ADDRESSES.items():
        for column in columns if table in tables else ():
            condition = "WHERE key = 'mlflow.artifactLocation'" if table == "trace_tags" else ""
            for row, uri in connection.execute(f"SELECT rowid, {column} FROM {table} {condition}").fetchall():
                if uri and (path := artifact_path(uri)):
                    yield _Address(table, column, row, path)


def _find_target(path: Path, root: ArtifactRoot, old_projects: Collection[Path]) -> Path | None:
    """Return where the artifacts of a path lie in the project; None if it has no folder of their experiment."""
    if found := root.find_counterpart(path):
        return found.path
    old = next((old for old in old_projects if old / ROOT_NAME in path.parents), None)
    return None if old is None or path.exists() else root.project / path.relative_to(old)


def _location(address: _Address) -> Path:
    """Return the folder of the experiment of an address."""
    levels = {"runs": 2, "logged_models": 3, "model_versions": 3}.get(address.table, 0)
    return address.path.parents[levels - 1] if levels else address.path


def _copy(database: Path) -> Path:
    """Copy the database as it is, and return the copy."""
    backup = database.with_name(database.name + BACKUP_SUFFIX)
    backup.unlink(missing_ok=True)
    backup.touch(database.stat().st_mode & 0o777)
    with (
        closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(backup)) as copy,
    ):
        source.backup(copy)
    return backup


def _move_events(workspace: Workspace, database: Path, old_projects: Collection[Path]) -> int:
    """Let the events that wait for the store in an old folder wait for the present one; return their number."""
    if not workspace.outbox_path.exists():
        return 0
    with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
        return outbox.readdress(
            [uri for uri in outbox.store_uris() if sqlite_path(uri) in {old / database.name for old in old_projects}]
        )
