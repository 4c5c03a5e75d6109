"""What nothing needs any more: kept weights, models and runs that can go, and their sizes.

What a registered version, a finalist or a study that can go on needs is never among it. A study may run at the same
time: a trial that has ended below the best never comes back among them, one that has not ended is not looked at, and
whatever is younger than an hour stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fmnist_search.errors import UserError
from fmnist_search.results.study import TrialRecord, rank_trials
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking import cleanup
from fmnist_search.tracking.connection import connect, store_errors
from fmnist_search.workspace import Workspace, sqlite_path

MIN_AGE_SECONDS = 3600.0
"""What was written so lately may belong to something that is not yet at its end."""

ARCHIVED_NAME = re.compile(r" until \d{4}-\d\d-\d\d \d\d\.\d\d\.\d\d\.\d{6}$")
"""How the name of a study ends that --fresh has put aside."""
TEMPORARY_FILE = re.compile(r"tmp[a-z0-9_]{8}|.*\.part")
"""Names of files that are moved to their places when they are whole."""
SINGLE_TRAININGS, ENSEMBLES = "single trainings", "ensembles of runs"
TRAININGS_FOLDER = "train"
"""The folder of the weights of single trainings, one below it for each run."""


class GarbageKind(Enum):
    """Why something is left over."""

    ASIDE = "weights of studies that were put aside"
    GONE = "weights of studies that are gone"
    BEATEN = "weights of trials that are not among the best of their study"
    DELETED = "weights of trainings whose runs were deleted"
    UNFINISHED = "files that were never finished"
    MODELS = "models that no registered version refers to"
    RUNS = "runs that were deleted in MLflow"


@dataclass(frozen=True)
class GarbageItem:
    """One file, model or run: where it belongs, its name (a path or an id) and its size.

    `file_stamp` tells a file from another that has taken its place meanwhile.
    """

    kind: GarbageKind
    owner: str
    name: str
    size_bytes: int
    file_stamp: tuple[int, ...] = ()


def find_garbage(workspace: Workspace, cache: Path, keep: int) -> list[GarbageItem]:
    """All that nothing needs, by group; of each study the weights of the `keep` best trials are needed.

    Raises:
        UserError: the MLflow store is out of reach.
    """
    with store_errors(workspace.tracking_uri):
        client = connect(workspace.tracking_uri)
        deleted = cleanup.deleted_runs(client)
        models = cleanup.unregistered_models(client, created_before=time.time() - MIN_AGE_SECONDS)
        found = [
            *_unneeded_weights(workspace, keep, {run.run_id for run in deleted}),
            *_incomplete_files(workspace.folder / "weights", cache),
            *(GarbageItem(GarbageKind.MODELS, m.study or ENSEMBLES, m.model_id, m.size_bytes) for m in models),
            *(GarbageItem(GarbageKind.RUNS, r.study or SINGLE_TRAININGS, r.run_id, r.size_bytes) for r in deleted),
        ]
    order = list(GarbageKind)
    return sorted(found, key=lambda item: (order.index(item.kind), item.owner, item.name))


def remove_garbage(workspace: Workspace, cache: Path, keep: int, items: Collection[GarbageItem]) -> list[GarbageItem]:
    """Remove what was listed and is still left over; gives what was removed.

    On a server's store, MLflow's own are left to the server's `mlflow gc`.

    Raises:
        UserError: the MLflow store is out of reach.
    """
    still = set(find_garbage(workspace, cache, keep))
    removed = [item for item in items if item in still and _remove_item(workspace, item)]
    emptied = (GarbageKind.ASIDE, GarbageKind.GONE, GarbageKind.DELETED)
    for folder in {Path(item.name).parent for item in removed if item.kind in emptied}:
        with contextlib.suppress(OSError):  # something is left in it
            folder.rmdir()
    return removed


def belongs_to_mlflow(item: GarbageItem) -> bool:
    """Whether it is MLflow's to remove."""
    return item.kind in (GarbageKind.MODELS, GarbageKind.RUNS)


def is_removable(workspace: Workspace, item: GarbageItem) -> bool:
    """Whether it can be removed from here: files, and what stands in a store that is a file of this machine."""
    return not belongs_to_mlflow(item) or sqlite_path(workspace.tracking_uri) is not None


# --------------------------------------------------------------------------------------- our files


def _unneeded_weights(workspace: Workspace, keep: int, deleted_runs: Collection[str]) -> Iterator[GarbageItem]:
    weights = workspace.folder / "weights"
    if not weights.is_dir():
        return
    database = sqlite_path(workspace.storage_url)
    try:
        studies = set(StudyStore.study_names(workspace.storage_url)) if database is None or database.exists() else set()
    except UserError:  # it cannot be read: who knows what it needs
        return
    aside = {name: ARCHIVED_NAME.sub("", name) for name in studies if ARCHIVED_NAME.search(name)}
    # While a study is put aside, its weights still stand under the name that the new one takes.
    moving = {name for renamed, name in aside.items() if not (weights / renamed).exists()}
    for folder in sorted(weights.iterdir()):
        if not folder.is_dir() or folder.name in moving:
            continue
        if folder.name == TRAININGS_FOLDER:
            for run_id in deleted_runs:
                yield from _old_files(GarbageKind.DELETED, SINGLE_TRAININGS, (folder / run_id).glob("*.pt"))
        needed = _needed_weights(workspace, folder.name, keep) if folder.name in studies else set()
        if needed is None:
            continue
        group = GarbageKind.BEATEN if folder.name in studies else GarbageKind.GONE
        group = GarbageKind.ASIDE if ARCHIVED_NAME.search(folder.name) else group
        yield from _old_files(group, folder.name, (path for path in folder.glob("*.pt") if path not in needed))


def _needed_weights(workspace: Workspace, study: str, keep: int) -> set[Path] | None:
    """The weights that a study keeps: of its best trials, its champion's, and of all that have not ended.

    None where it cannot be read, so that everything may be needed.
    """
    if ARCHIVED_NAME.search(study):
        return set()
    try:
        ledger = StudyStore.load(workspace.storage_url, study)
        rows, champion = ledger.trial_records(), ledger.champion
    except UserError:
        return None
    kept = {row.number for row in _best_records(rows, max(keep, ledger.config.finalists.recipes))}
    kept |= {champion[1].confirmed_score.trial} if champion else set()
    beaten = {workspace.weights_path(study, row.number) for row in rows if row.number not in kept}
    return set((workspace.folder / "weights" / study).glob("*.pt")) - beaten


def _best_records(records: list[TrialRecord], count: int) -> list[TrialRecord]:
    """The best completed trials, as many as it takes to have `count` recipes among them."""
    leaders, recipes = rank_trials(records), dict[str, None]()
    for place, row in enumerate(leaders):
        if len(recipes | {row.recipe.seed_independent_key(): None}) > count:
            return leaders[:place]
        recipes[row.recipe.seed_independent_key()] = None
    return leaders


def _incomplete_files(*folders: Path) -> Iterator[GarbageItem]:
    for folder in folders:
        yield from _old_files(
            GarbageKind.UNFINISHED,
            str(folder),
            (path for path in folder.rglob("*") if TEMPORARY_FILE.fullmatch(path.name)),
        )


def _old_files(kind: GarbageKind, owner: str, paths: Iterator[Path]) -> Iterator[GarbageItem]:
    for path in paths:
        try:
            known = path.stat()
        except FileNotFoundError:  # somebody was faster
            continue
        if path.is_file() and time.time() - known.st_mtime > MIN_AGE_SECONDS:
            yield GarbageItem(kind, owner, str(path), known.st_size, _file_stamp(known))


def _file_stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


# ---------------------------------------------------------------------------------------- removing


def _remove_item(workspace: Workspace, item: GarbageItem) -> bool:
    if not is_removable(workspace, item):
        return False
    try:
        if item.kind is GarbageKind.MODELS:
            return cleanup.remove_model(workspace.tracking_uri, item.name)
        if item.kind is GarbageKind.RUNS:
            return cleanup.remove_run(workspace.tracking_uri, item.name)
        if _file_stamp(Path(item.name).stat()) == item.file_stamp:
            Path(item.name).unlink()
            return True
    except FileNotFoundError:  # somebody was faster
        return False
    except OSError as error:
        raise UserError(f"{item.name}: cannot be removed ({error.strerror}); the rest is still there") from None
    return False
