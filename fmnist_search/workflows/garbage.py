"""Garbage: stored weights, models and runs that nothing needs any more, with their sizes.

What a registered version, a finalist or a study needs is never garbage. A study may run at the same time: a trial that
ended below the best ones never becomes one of them, a trial that has not ended is left alone, and so is everything that
is younger than an hour.
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
from fmnist_search.workspace import ARCHIVED_NAME, TRAININGS_FOLDER, Workspace

MIN_AGE_SECONDS = 3600.0
"""Younger files may belong to something that has not ended."""

TEMPORARY_FILE = re.compile(r"tmp[a-z0-9_]{8}|.*\.part")
"""Names of files that are renamed once they are complete."""
SINGLE_TRAININGS, ENSEMBLES = "single trainings", "ensembles of runs"


class GarbageKind(Enum):
    """Why something is garbage. `gc --json` prints the texts, so they do not change."""

    ARCHIVED = "weights of studies that were put aside"
    ORPHANED = "weights of studies that are gone"
    OUTRANKED = "weights of trials that are not among the best of their study"
    DELETED = "weights of trainings whose runs were deleted"
    CHECKPOINTS = "checkpoints of studies that are gone or were put aside"
    INCOMPLETE = "files that were never finished"
    MODELS = "models that no registered version refers to"
    RUNS = "runs that were deleted in MLflow"


@dataclass(frozen=True)
class GarbageItem:
    """One file, model or run: its owner, its name (a path or an id) and its size.

    `file_stamp` identifies the file, in case another takes its place. `location` is where the files are. An item is
    removable from here if its files lie in the folders of this project, and no symbolic link leads out of them. What
    belongs to a server, or may belong to another project, is not.
    """

    kind: GarbageKind
    owner: str
    name: str
    size_bytes: int
    file_stamp: tuple[int, ...] = ()
    location: str = ""
    is_removable: bool = True


def find_garbage(
    workspace: Workspace, cache: Path, keep: int, *, min_age: float = MIN_AGE_SECONDS
) -> list[GarbageItem]:
    """Return the garbage of a workspace, by kind. Of each study the weights of the `keep` best trials are needed.

    `cache` is the folder of the images. What is younger than `min_age` seconds is no garbage.

    Raises:
        UserError: if the MLflow store is unreachable, or the stored studies cannot be read.
    """
    with store_errors(workspace.tracking_uri):
        client = connect(workspace.tracking_uri)
        deleted = cleanup.deleted_runs(client)
        created_before = time.time() - min_age
        models = cleanup.unregistered_models(client, created_before=created_before)
        items = [
            *_unneeded_weights(workspace, keep, {run.id for run in deleted}, created_before),
            *_unneeded_checkpoints(workspace, created_before),
            *_incomplete_files(workspace.folder / "weights", _own_folder(workspace, "weights"), created_before),
            *_incomplete_files(cache, cache.resolve(), created_before),
            *(_stored_item(workspace, GarbageKind.MODELS, model, ENSEMBLES) for model in models),
            *(_stored_item(workspace, GarbageKind.RUNS, run, SINGLE_TRAININGS) for run in deleted),
        ]
    order = list(GarbageKind)
    return sorted(items, key=lambda item: (order.index(item.kind), item.owner, item.name))


def remove_garbage(
    workspace: Workspace,
    cache: Path,
    keep: int,
    items: Collection[GarbageItem],
    *,
    min_age: float = MIN_AGE_SECONDS,
) -> list[GarbageItem]:
    """Remove those items that are still garbage, and return them.

    Items that are not removable stay: nothing outside the folders of this project is deleted.

    Raises:
        UserError: if the MLflow store is unreachable.
    """
    garbage = set(find_garbage(workspace, cache, keep, min_age=min_age))
    removed = [item for item in items if item in garbage and _remove_item(workspace, item)]
    emptied = (GarbageKind.ARCHIVED, GarbageKind.ORPHANED, GarbageKind.DELETED, GarbageKind.CHECKPOINTS)
    for folder in {Path(item.name).parent for item in removed if item.kind in emptied}:
        with contextlib.suppress(OSError):  # the folder is not empty
            folder.rmdir()
    return removed


def _stored_item(
    workspace: Workspace, kind: GarbageKind, stored: cleanup.Removable, owner_without_study: str
) -> GarbageItem:
    return GarbageItem(
        kind,
        stored.study or owner_without_study,
        stored.id,
        stored.size_bytes,
        location=stored.artifact_uri,
        is_removable=cleanup.is_own(workspace.tracking_uri, stored.artifact_uri),
    )


# --------------------------------------------------------------------------------------- our files


def _unneeded_weights(
    workspace: Workspace, keep: int, deleted_runs: Collection[str], created_before: float
) -> Iterator[GarbageItem]:
    weights, own = workspace.folder / "weights", _own_folder(workspace, "weights")
    if not weights.is_dir():
        return
    studies = set(StudyStore.study_names(workspace.storage_url))
    archived = {name: ARCHIVED_NAME.sub("", name) for name in studies if ARCHIVED_NAME.search(name)}
    # While a study is being archived, its weights are still in the folder with the name of the new study.
    moving = {name for renamed, name in archived.items() if not (weights / renamed).exists()}
    for folder in sorted(weights.iterdir()):
        if not folder.is_dir() or folder.name in moving:
            continue
        if folder.name == TRAININGS_FOLDER:
            for run_id in deleted_runs:
                paths = (folder / run_id).glob("*.pt")
                yield from _old_files(GarbageKind.DELETED, SINGLE_TRAININGS, paths, own, created_before)
        needed = _needed_weights(workspace, folder.name, keep) if folder.name in studies else set()
        if needed is None:
            continue
        group = GarbageKind.OUTRANKED if folder.name in studies else GarbageKind.ORPHANED
        group = GarbageKind.ARCHIVED if ARCHIVED_NAME.search(folder.name) else group
        unneeded = (path for path in folder.glob("*.pt") if path not in needed)
        yield from _old_files(group, folder.name, unneeded, own, created_before)


def _needed_weights(workspace: Workspace, study: str, keep: int) -> set[Path] | None:
    """Return the weights that a study needs: of its best trials, of its champion, and of trials that have not ended.

    Return None if the study cannot be read, so that everything may be needed.
    """
    if ARCHIVED_NAME.search(study):
        return set()
    try:
        study_store = StudyStore.load(workspace.storage_url, study)
        records, champion = study_store.trial_records(), study_store.champion
    except UserError:
        return None
    needed = {record.number for record in best_records(records, max(keep, study_store.config.finalists.recipes))}
    needed |= {champion[1].confirmed_score.trial} if champion else set()
    unneeded = {workspace.weights_path(study, record.number) for record in records if record.number not in needed}
    return set((workspace.folder / "weights" / study).glob("*.pt")) - unneeded


def best_records(records: list[TrialRecord], count: int) -> list[TrialRecord]:
    """Return the best completed trials, up to `count` distinct recipes."""
    ranked, recipes = rank_trials(records), set[str]()
    for position, record in enumerate(ranked):
        recipes.add(record.recipe.seed_independent_key())
        if len(recipes) > count:
            return ranked[:position]
    return ranked


def _unneeded_checkpoints(workspace: Workspace, created_before: float) -> Iterator[GarbageItem]:
    """Yield the checkpoints of studies whose trials and finalists never go on; a search removes those of ended ones."""
    folders = workspace.checkpoints_folder("")
    if not folders.is_dir():
        return
    searched = {name for name in StudyStore.study_names(workspace.storage_url) if not ARCHIVED_NAME.search(name)}
    own = _own_folder(workspace, folders.name)
    for folder in sorted(folders.iterdir()):
        if folder.is_dir() and folder.name not in searched:
            files = (path for path in folder.rglob("*") if path.suffix in (".ckpt", ".json"))
            yield from _old_files(GarbageKind.CHECKPOINTS, folder.name, files, own, created_before)


def _own_folder(workspace: Workspace, name: str) -> Path:
    """Return a folder of the workspace, at which a symbolic link is not followed."""
    return workspace.folder.resolve() / name


def _incomplete_files(folder: Path, own: Path, created_before: float) -> Iterator[GarbageItem]:
    paths = (path for path in folder.rglob("*") if TEMPORARY_FILE.fullmatch(path.name))
    yield from _old_files(GarbageKind.INCOMPLETE, str(folder), paths, own, created_before)


def _old_files(
    kind: GarbageKind, owner: str, paths: Iterator[Path], own: Path, created_before: float
) -> Iterator[GarbageItem]:
    """Yield the files that are older; those outside the folder `own` are not removable."""
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:  # another process was faster
            continue
        if path.is_file() and stat.st_mtime < created_before:
            is_removable = path.parent.resolve().is_relative_to(own)
            yield GarbageItem(
                kind, owner, str(path), stat.st_size, _file_stamp(stat), location=str(path), is_removable=is_removable
            )


def _file_stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


# ---------------------------------------------------------------------------------------- removing


def _remove_item(workspace: Workspace, item: GarbageItem) -> bool:
    if not item.is_removable:
        return False
    try:
        if item.kind is GarbageKind.MODELS:
            return cleanup.remove_model(workspace.tracking_uri, item.name)
        if item.kind is GarbageKind.RUNS:
            return cleanup.remove_run(workspace.tracking_uri, item.name)
        if _file_stamp(Path(item.name).stat()) == item.file_stamp:
            Path(item.name).unlink()
            return True
    except FileNotFoundError:  # another process was faster
        return False
    except OSError as error:
        raise UserError(f"{item.name}: cannot be removed ({error.strerror}); the rest is still there") from None
    return False
