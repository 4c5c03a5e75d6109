"""Models and runs that MLflow holds and nothing needs any more: found, and removed for good."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, LoggedModel, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.entities import PagedList
from mlflow.tracking._tracking_service.utils import _get_store

from fmnist_search.artifact_root import ArtifactRoot
from fmnist_search.tracking import tag_names

REMOVABLE_KINDS = (tag_names.TRIAL_RUN, tag_names.TRAINING_RUN)
"""Runs of finalists and of studies are left to `mlflow gc`, because versions and studies refer to them."""


@dataclass(frozen=True)
class Removable:
    """A logged model or a deleted run that nothing needs, by its id, with the size of its artifacts in bytes.

    `study` is None for the model of an ensemble of runs, and for the run of a single training.
    """

    id: str
    study: str | None
    size_bytes: int
    artifact_uri: str


def unregistered_models(client: MlflowClient, created_before: float) -> Iterator[Removable]:
    """Yield models of finalists and ensembles that no version of any registered model comes from.

    Models that were created after `created_before`, in Unix seconds, are left out.
    """
    versions = _all_pages(client.search_model_versions)
    sources = {str(version.source) for version in versions}
    runs = {version.run_id for version in versions}
    experiments = [experiment.experiment_id for experiment in _all_pages(client.search_experiments)]
    for model in _all_pages(partial(client.search_logged_models, experiment_ids=experiments)):
        registered = model.source_run_id in runs or any(model.model_id in source for source in sources)
        if not registered and model.creation_timestamp / 1000 < created_before:
            yield from _as_unused(client, model)


def _as_unused(client: MlflowClient, model: LoggedModel) -> Iterator[Removable]:
    """Yield the model, if it is the model of a finalist or of an ensemble of runs."""
    try:
        tags = client.get_run(model.source_run_id).data.tags if model.source_run_id else {}
    except MlflowException:
        return
    kind, study = tags.get(tag_names.KIND), tags.get(tag_names.STUDY)
    if kind == tag_names.ENSEMBLE_RUN and tag_names.MEMBERS in tags:
        yield Removable(model.model_id, None, _artifact_bytes(client, model.artifact_location), model.artifact_location)
    elif kind == tag_names.FINALIST_RUN and study is not None:
        yield Removable(
            model.model_id, study, _artifact_bytes(client, model.artifact_location), model.artifact_location
        )


def deleted_runs(client: MlflowClient) -> list[Removable]:
    """Return the deleted runs of trials and trainings that have ended and that no version or model comes from."""
    experiments = [e.experiment_id for e in _all_pages(partial(client.search_experiments, view_type=ViewType.ALL))]
    deleted = _all_pages(partial(client.search_runs, experiments, run_view_type=ViewType.DELETED_ONLY))
    registered = {version.run_id for version in _all_pages(client.search_model_versions)} if deleted else set()
    return [
        Removable(
            id=run.info.run_id,
            study=run.data.tags.get(tag_names.STUDY),
            size_bytes=_artifact_bytes(client, run.info.artifact_uri),
            artifact_uri=str(run.info.artifact_uri),
        )
        for run in deleted
        if _is_removable(run) and run.info.run_id not in registered
    ]


def _is_removable(run: Run) -> bool:
    return (
        run.data.tags.get(tag_names.KIND) in REMOVABLE_KINDS
        and tag_names.FAMILY in run.data.tags
        and run.info.status not in ("RUNNING", "SCHEDULED")
        and not (run.outputs and run.outputs.model_outputs)
    )


# `mlflow gc` does the same with a model and with a run. The command itself, given runs, also removes every deleted
# experiment and model of the store, no matter whose they are. It deletes artifacts wherever the store says they lie: in
# a project that was copied, those of the original.


def is_own(tracking_uri: str, artifact_uri: str) -> bool:
    """Return whether artifacts belong to this store, which is a SQLite file, and to no other project."""
    root = ArtifactRoot.of_store(tracking_uri)
    return root is not None and root.owns(artifact_uri)


def remove_model(tracking_uri: str, model_id: str) -> bool:
    """Remove a logged model and its files.

    Return False if it is gone already, or if its files may belong to another project.
    """
    with contextlib.suppress(MlflowException):
        store = _get_store(tracking_uri)  # type: ignore[no-untyped-call]
        model = store.get_logged_model(model_id)
        if not is_own(tracking_uri, model.artifact_location):
            return False
        store.delete_logged_model(model_id)
        files = get_artifact_repository(model.artifact_location, tracking_uri=tracking_uri)
        files.delete_artifacts()  # type: ignore[no-untyped-call]
        store._hard_delete_logged_model(model_id)
        return True
    return False


def remove_run(tracking_uri: str, run_id: str) -> bool:
    """Remove a deleted run and its artifacts.

    Return False if it is gone already or has been restored, or if its artifacts may belong to another project.
    """
    with contextlib.suppress(MlflowException):
        store = _get_store(tracking_uri)  # type: ignore[no-untyped-call]
        run = store.get_run(run_id)
        if run.info.lifecycle_stage != LifecycleStage.DELETED or not is_own(tracking_uri, run.info.artifact_uri):
            return False
        files = get_artifact_repository(run.info.artifact_uri, tracking_uri=tracking_uri)
        files.delete_artifacts()  # type: ignore[no-untyped-call]
        store._hard_delete_run(run_id)
        return True
    return False


def _all_pages(search: Callable[..., PagedList[Any]]) -> list[Any]:
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def _artifact_bytes(client: MlflowClient, uri: str) -> int:
    """Return the size of a folder of artifacts; 0 if it cannot be read."""
    try:
        return _bytes_below(get_artifact_repository(uri, tracking_uri=client.tracking_uri), None)
    except (MlflowException, OSError):
        return 0


def _bytes_below(repository: ArtifactRepository, path: str | None) -> int:
    return sum(
        _bytes_below(repository, item.path) if item.is_dir else item.file_size or 0
        for item in repository.list_artifacts(path)
    )
