"""The deletion and the renaming of a study in Optuna's storage, in MLflow and in the folder of this program.

Both hold the lease of the study, so that nothing searches it meanwhile. If a process dies in between, the same command
finishes what it has begun, and no search begins before that: `search.study_changes`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fmnist_search.errors import UserError
from fmnist_search.registry.study_versions import registered_runs, rename_study_of_versions, study_versions
from fmnist_search.search.lease import Lease
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_changes import StudyToChange
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.study_changes import delete_study_runs, rename_study_runs
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.lookup import load_study
from fmnist_search.workflows.sending import SYNC_TIMEOUT, open_sender
from fmnist_search.workspace import Workspace, check_study_name


@dataclass(frozen=True)
class StudyChange:
    """What was deleted or renamed: the number of trials and of MLflow's runs.

    `versions` are the addresses of the registered models of the study, which stay.
    """

    study: str
    trials: int
    runs: int
    versions: tuple[str, ...]


def delete_study(study: str, *, workspace: Workspace | None = None) -> StudyChange:
    """Delete a study, its runs in MLflow, its weights, its checkpoints and its log.

    The runs are marked as deleted. Registered versions stay, and so do the runs that they come from.

    Raises:
        UserError: if there is no such study, a process searches or promotes it, or MLflow does not answer.
    """
    workspace = workspace or Workspace.resolve()
    study_store, command = load_study(workspace, study), ["delete", study]
    with _changing(workspace, study_store) as stored, _study_runs(workspace, study_store) as mlflow_store:
        trials, runs, versions = len(study_store.trial_records()), 0, list[str]()
        stored.begin(command)
        if mlflow_store and study_store.run_id:
            versions = [version.uri for version in study_versions(mlflow_store.client, study)]
            runs = delete_study_runs(mlflow_store, study_store.run_id, registered_runs(mlflow_store.client))
        for path in workspace.study_paths(study):
            _remove(path)
        stored.delete()
    return StudyChange(study, trials, runs, tuple(versions))


def rename_study(study: str, renamed: str, *, workspace: Workspace | None = None) -> StudyChange:
    """Rename a study in both stores, its files, and the tags of its runs and versions.

    Raises:
        UserError: if there is no such study, a process searches or promotes it, another study or its files have the
            new name, or MLflow does not answer.
    """
    workspace = workspace or Workspace.resolve()
    study_store, command = load_study(workspace, study), ["rename", study, renamed]
    check_study_name("NEW", renamed)
    if renamed in StudyStore.study_names(workspace.storage_url):
        raise UserError(f"study {renamed!r}: exists already; give another name, or delete it first")
    paths = list(zip(workspace.study_paths(study), workspace.study_paths(renamed), strict=True))
    for path, new_path in paths:
        if path.exists() and new_path.exists():
            raise UserError(f"{new_path}: belongs to an earlier study of this name; remove it, or give another name")
    with (
        _changing(workspace, study_store, renamed) as stored,
        _study_runs(workspace, study_store) as mlflow_store,
    ):
        stored.begin(command)
        for path, new_path in paths:
            if path.exists():
                path.rename(new_path)
        trials, runs, versions = len(study_store.trial_records()), 0, list[str]()
        if mlflow_store and study_store.run_id:
            study_file = study_store.config.model_copy(update={"name": renamed}).to_toml()
            runs = rename_study_runs(mlflow_store, study_store.run_id, study_file, renamed)
            rename_study_of_versions(mlflow_store.client, study, renamed)
            versions = [version.uri for version in study_versions(mlflow_store.client, renamed)]
        stored.rename(renamed)
    return StudyChange(renamed, trials, runs, tuple(versions))


@contextlib.contextmanager
def _changing(workspace: Workspace, study_store: StudyStore, *further_names: str) -> Iterator[StudyToChange]:
    """Yield the stored study with the lease of the study, and of further names that no search may take meanwhile."""
    workspace.check_writable()
    name, execution = study_store.config.name, study_store.config.execution
    storage = open_storage(workspace.storage_url, create=False)
    with contextlib.ExitStack() as stack:
        for each in (name, *further_names):
            stack.enter_context(Lease.acquire(storage, each, execution.heartbeat_seconds, execution.lease_seconds))
        yield StudyToChange(storage, name)


@contextlib.contextmanager
def _study_runs(workspace: Workspace, study_store: StudyStore) -> Iterator[MlflowStore | None]:
    """Yield the store with the study's runs, after MLflow has received what waits for it; None without a run.

    Raises:
        UserError: if MLflow does not answer: a study whose runs cannot be changed stays as it is.
    """
    if study_store.run_id is None:
        yield None
        return
    with store_errors(workspace.tracking_uri):
        mlflow_store = MlflowStore(workspace.tracking_uri, study_store.config.experiment)
        with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
            has_pending = outbox.has_pending
        if has_pending:
            with open_sender(workspace, mlflow_store, StudyCallback()) as sender:
                if not sender.flush(SYNC_TIMEOUT):
                    name = study_store.config.name
                    raise UserError(f"study {name!r}: {sender.problem}; nothing was changed, try again later")
        yield mlflow_store


def _remove(path: Path) -> None:
    """Remove a file or a folder. Of a symbolic link, only the link is removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
