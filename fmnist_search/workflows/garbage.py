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
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, LoggedModel, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.entities import PagedList
from mlflow.tracking._tracking_service.utils import _get_store

from fmnist_search.errors import UserError
from fmnist_search.results.study import TrialRecord, rank_trials
from fmnist_search.search.study_store import StudyStore
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

REMOVABLE_KINDS = ("trial", "training")
"""Runs of finalists and of studies are left to `mlflow gc`: versions and studies, perhaps of others, lean on them."""


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
        deleted = _deleted_runs(client)
        found = [
            *_unneeded_weights(workspace, keep, {str(run.info.run_id) for run in deleted}),
            *_incomplete_files(workspace.folder / "weights", cache),
            *_unregistered_models(client),
            *(
                GarbageItem(GarbageKind.RUNS, _study_name(run), run.info.run_id, _artifact_bytes(run.info.artifact_uri))
                for run in deleted
            ),
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
    kept |= {champion[1].confirmed.trial} if champion else set()
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


# ------------------------------------------------------------------------------------------ MLflow


def _unregistered_models(client: MlflowClient) -> Iterator[GarbageItem]:
    """Models of ours that no version of any registered model comes from."""
    versions = _all_pages(client.search_model_versions)
    sources = {str(version.source) for version in versions}
    runs = {version.run_id for version in versions}
    experiments = [experiment.experiment_id for experiment in _all_pages(client.search_experiments)]
    for model in _all_pages(partial(client.search_logged_models, experiment_ids=experiments)):
        known = model.source_run_id in runs or any(model.model_id in source for source in sources)
        old = time.time() - model.creation_timestamp / 1000 > MIN_AGE_SECONDS
        if not known and old and (place := _model_owner(client, model)):
            yield GarbageItem(GarbageKind.MODELS, place, model.model_id, _artifact_bytes(model.artifact_location))


def _model_owner(client: MlflowClient, model: LoggedModel) -> str | None:
    """The study whose finalist it is, or that it is an ensemble of runs; None for a model that is not ours."""
    try:
        tags = client.get_run(model.source_run_id).data.tags if model.source_run_id else {}
    except MlflowException:
        return None
    if tags.get("kind") == "ensemble" and "members" in tags:
        return ENSEMBLES
    return tags.get("study") if tags.get("kind") == "finalist" else None


def _deleted_runs(client: MlflowClient) -> list[Run]:
    """Deleted runs of ours that are at their end, and that no version or model comes from."""
    experiments = [e.experiment_id for e in _all_pages(partial(client.search_experiments, view_type=ViewType.ALL))]
    deleted = _all_pages(partial(client.search_runs, experiments, run_view_type=ViewType.DELETED_ONLY))
    registered = {version.run_id for version in _all_pages(client.search_model_versions)} if deleted else set()
    return [
        run
        for run in deleted
        if run.data.tags.get("kind") in REMOVABLE_KINDS
        and "family" in run.data.tags
        and run.info.status not in ("RUNNING", "SCHEDULED")
        and run.info.run_id not in registered
        and not (run.outputs and run.outputs.model_outputs)
    ]


def _study_name(run: Run) -> str:
    return str(run.data.tags.get("study", SINGLE_TRAININGS))


def _all_pages(search: Callable[..., PagedList[Any]]) -> list[Any]:
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def _artifact_bytes(uri: str) -> int:
    """Bytes of a folder of artifacts; 0 where it cannot be looked into."""
    try:
        return _bytes_below(get_artifact_repository(uri), None)
    except (MlflowException, OSError):
        return 0


def _bytes_below(repository: ArtifactRepository, path: str | None) -> int:
    return sum(
        _bytes_below(repository, item.path) if item.is_dir else item.file_size or 0
        for item in repository.list_artifacts(path)
    )


# ---------------------------------------------------------------------------------------- removing


def _remove_item(workspace: Workspace, item: GarbageItem) -> bool:
    if not is_removable(workspace, item):
        return False
    try:
        if item.kind is GarbageKind.MODELS:
            _remove_model(workspace, item.name)
        elif item.kind is GarbageKind.RUNS:
            _remove_run(workspace, item.name)
        elif _file_stamp(Path(item.name).stat()) == item.file_stamp:
            Path(item.name).unlink()
        else:
            return False
    except (FileNotFoundError, MlflowException):  # somebody was faster
        return False
    except OSError as error:
        raise UserError(f"{item.name}: cannot be removed ({error.strerror}); the rest is still there") from None
    return True


# What `mlflow gc` does with a model and with a run. The command itself, given runs, also removes every deleted
# experiment and model of the store, whosever they are.


def _remove_model(workspace: Workspace, model_id: str) -> None:
    store = _get_store(workspace.tracking_uri)  # type: ignore[no-untyped-call]
    model = store.get_logged_model(model_id)
    store.delete_logged_model(model_id)
    get_artifact_repository(model.artifact_location).delete_artifacts()  # type: ignore[no-untyped-call]
    store._hard_delete_logged_model(model_id)


def _remove_run(workspace: Workspace, run_id: str) -> None:
    store = _get_store(workspace.tracking_uri)  # type: ignore[no-untyped-call]
    run = store.get_run(run_id)
    if run.info.lifecycle_stage != LifecycleStage.DELETED:  # somebody has restored it
        raise MlflowException(f"run {run_id} is not deleted")
    get_artifact_repository(run.info.artifact_uri).delete_artifacts()  # type: ignore[no-untyped-call]
    store._hard_delete_run(run_id)
