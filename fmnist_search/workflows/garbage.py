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
from fmnist_search.results.study import TrialRow, leaders_of
from fmnist_search.search.study_store import Ledger
from fmnist_search.tracking.store import connect, reaching
from fmnist_search.workspace import Home, sqlite_file

YOUNG_SECONDS = 3600.0
"""What was written so lately may belong to something that is not yet at its end."""

PUT_ASIDE = re.compile(r" until \d{4}-\d\d-\d\d \d\d\.\d\d\.\d\d\.\d{6}$")
"""How the name of a study ends that --fresh has put aside."""
UNFINISHED = re.compile(r"tmp[a-z0-9_]{8}|.*\.part")
"""Names of files that are moved to their places when they are whole."""
SINGLE, ENSEMBLES = "single trainings", "ensembles of runs"
TRAININGS = "train"
"""The folder of the weights of single trainings, one below it for each run."""

REMOVABLE_KINDS = ("trial", "training")
"""Runs of finalists and of studies are left to `mlflow gc`: versions and studies, perhaps of others, lean on them."""


class Group(Enum):
    """Why something is left over."""

    ASIDE = "weights of studies that were put aside"
    GONE = "weights of studies that are gone"
    BEATEN = "weights of trials that are not among the best of their study"
    DELETED = "weights of trainings whose runs were deleted"
    UNFINISHED = "files that were never finished"
    MODELS = "models that no registered version refers to"
    RUNS = "runs that were deleted in MLflow"


@dataclass(frozen=True)
class Leftover:
    """One file, model or run: where it belongs, its name (a path or an id) and its size.

    `stamp` tells a file from another that has taken its place meanwhile.
    """

    group: Group
    place: str
    name: str
    bytes: int
    stamp: tuple[int, ...] = ()


def leftovers(home: Home, cache: Path, keep: int) -> list[Leftover]:
    """All that nothing needs, by group; of each study the weights of the `keep` best trials are needed.

    Raises:
        UserError: the MLflow store is out of reach.
    """
    with reaching(home.tracking_uri):
        client = connect(home.tracking_uri)
        deleted = _deleted_runs(client)
        found = [
            *_weights(home, keep, {str(run.info.run_id) for run in deleted}),
            *_unfinished(home.folder / "weights", cache),
            *_models(client),
            *(Leftover(Group.RUNS, _study(run), run.info.run_id, _size(run.info.artifact_uri)) for run in deleted),
        ]
    order = list(Group)
    return sorted(found, key=lambda item: (order.index(item.group), item.place, item.name))


def remove(home: Home, cache: Path, keep: int, listed: Collection[Leftover]) -> list[Leftover]:
    """Remove what was listed and is still left over; gives what was removed.

    On a server's store, MLflow's own are left to the server's `mlflow gc`.

    Raises:
        UserError: the MLflow store is out of reach.
    """
    still = set(leftovers(home, cache, keep))
    removed = [item for item in listed if item in still and _removed(home, item)]
    emptied = (Group.ASIDE, Group.GONE, Group.DELETED)
    for folder in {Path(item.name).parent for item in removed if item.group in emptied}:
        with contextlib.suppress(OSError):  # something is left in it
            folder.rmdir()
    return removed


def of_mlflow(item: Leftover) -> bool:
    """Whether it is MLflow's to remove."""
    return item.group in (Group.MODELS, Group.RUNS)


def is_ours_to_remove(home: Home, item: Leftover) -> bool:
    """Whether it can be removed from here: files, and what stands in a store that is a file of this machine."""
    return not of_mlflow(item) or sqlite_file(home.tracking_uri) is not None


# --------------------------------------------------------------------------------------- our files


def _weights(home: Home, keep: int, deleted_runs: Collection[str]) -> Iterator[Leftover]:
    weights = home.folder / "weights"
    if not weights.is_dir():
        return
    database = sqlite_file(home.storage_url)
    try:
        studies = set(Ledger.names(home.storage_url)) if database is None or database.exists() else set()
    except UserError:  # it cannot be read: who knows what it needs
        return
    aside = {name: PUT_ASIDE.sub("", name) for name in studies if PUT_ASIDE.search(name)}
    # While a study is put aside, its weights still stand under the name that the new one takes.
    moving = {name for renamed, name in aside.items() if not (weights / renamed).exists()}
    for folder in sorted(weights.iterdir()):
        if not folder.is_dir() or folder.name in moving:
            continue
        if folder.name == TRAININGS:
            for run_id in deleted_runs:
                yield from _files(Group.DELETED, SINGLE, (folder / run_id).glob("*.pt"))
        needed = _needed(home, folder.name, keep) if folder.name in studies else set()
        if needed is None:
            continue
        group = Group.BEATEN if folder.name in studies else Group.GONE
        group = Group.ASIDE if PUT_ASIDE.search(folder.name) else group
        yield from _files(group, folder.name, (path for path in folder.glob("*.pt") if path not in needed))


def _needed(home: Home, study: str, keep: int) -> set[Path] | None:
    """The weights that a study keeps: of its best trials, its champion's, and of all that have not ended.

    None where it cannot be read, so that everything may be needed.
    """
    if PUT_ASIDE.search(study):
        return set()
    try:
        ledger = Ledger.find(home.storage_url, study)
        rows, champion = ledger.rows(), ledger.champion
    except UserError:
        return None
    kept = {row.number for row in _best(rows, max(keep, ledger.config.finalists.recipes))}
    kept |= {champion[1].confirmed.trial} if champion else set()
    beaten = {home.weights(study, row.number) for row in rows if row.number not in kept}
    return set((home.folder / "weights" / study).glob("*.pt")) - beaten


def _best(rows: list[TrialRow], count: int) -> list[TrialRow]:
    """The best completed trials, as many as it takes to have `count` recipes among them."""
    leaders, recipes = leaders_of(rows), dict[str, None]()
    for place, row in enumerate(leaders):
        if len(recipes | {row.recipe.key(): None}) > count:
            return leaders[:place]
        recipes[row.recipe.key()] = None
    return leaders


def _unfinished(*folders: Path) -> Iterator[Leftover]:
    for folder in folders:
        yield from _files(
            Group.UNFINISHED, str(folder), (path for path in folder.rglob("*") if UNFINISHED.fullmatch(path.name))
        )


def _files(group: Group, place: str, paths: Iterator[Path]) -> Iterator[Leftover]:
    for path in paths:
        try:
            known = path.stat()
        except FileNotFoundError:  # somebody was faster
            continue
        if path.is_file() and time.time() - known.st_mtime > YOUNG_SECONDS:
            yield Leftover(group, place, str(path), known.st_size, _stamp(known))


def _stamp(known: os.stat_result) -> tuple[int, ...]:
    return known.st_ino, known.st_mtime_ns, known.st_size


# ------------------------------------------------------------------------------------------ MLflow


def _models(client: MlflowClient) -> Iterator[Leftover]:
    """Models of ours that no version of any registered model comes from."""
    versions = _all(client.search_model_versions)
    sources = {str(version.source) for version in versions}
    runs = {version.run_id for version in versions}
    experiments = [experiment.experiment_id for experiment in _all(client.search_experiments)]
    for model in _all(partial(client.search_logged_models, experiment_ids=experiments)):
        known = model.source_run_id in runs or any(model.model_id in source for source in sources)
        old = time.time() - model.creation_timestamp / 1000 > YOUNG_SECONDS
        if not known and old and (place := _place_of_model(client, model)):
            yield Leftover(Group.MODELS, place, model.model_id, _size(model.artifact_location))


def _place_of_model(client: MlflowClient, model: LoggedModel) -> str | None:
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
    experiments = [e.experiment_id for e in _all(partial(client.search_experiments, view_type=ViewType.ALL))]
    deleted = _all(partial(client.search_runs, experiments, run_view_type=ViewType.DELETED_ONLY))
    registered = {version.run_id for version in _all(client.search_model_versions)} if deleted else set()
    return [
        run
        for run in deleted
        if run.data.tags.get("kind") in REMOVABLE_KINDS
        and "family" in run.data.tags
        and run.info.status not in ("RUNNING", "SCHEDULED")
        and run.info.run_id not in registered
        and not (run.outputs and run.outputs.model_outputs)
    ]


def _study(run: Run) -> str:
    return str(run.data.tags.get("study", SINGLE))


def _all(search: Callable[..., PagedList[Any]]) -> list[Any]:
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def _size(uri: str) -> int:
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


def _removed(home: Home, item: Leftover) -> bool:
    if not is_ours_to_remove(home, item):
        return False
    try:
        if item.group is Group.MODELS:
            _remove_model(home, item.name)
        elif item.group is Group.RUNS:
            _remove_run(home, item.name)
        elif _stamp(Path(item.name).stat()) == item.stamp:
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


def _remove_model(home: Home, model_id: str) -> None:
    store = _get_store(home.tracking_uri)  # type: ignore[no-untyped-call]
    model = store.get_logged_model(model_id)
    store.delete_logged_model(model_id)
    get_artifact_repository(model.artifact_location).delete_artifacts()  # type: ignore[no-untyped-call]
    store._hard_delete_logged_model(model_id)


def _remove_run(home: Home, run_id: str) -> None:
    store = _get_store(home.tracking_uri)  # type: ignore[no-untyped-call]
    run = store.get_run(run_id)
    if run.info.lifecycle_stage != LifecycleStage.DELETED:  # somebody has restored it
        raise MlflowException(f"run {run_id} is not deleted")
    get_artifact_repository(run.info.artifact_uri).delete_artifacts()  # type: ignore[no-untyped-call]
    store._hard_delete_run(run_id)
