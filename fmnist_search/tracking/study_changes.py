"""The runs of a study, deleted or renamed together. Repeating either changes nothing more."""

from __future__ import annotations

from collections.abc import Collection

from fmnist_search.tracking import tag_names
from fmnist_search.tracking.run_listing import search_children
from fmnist_search.tracking.store import MlflowStore


def delete_study_runs(store: MlflowStore, run_id: str, kept: Collection[str]) -> int:
    """Delete the run of a study and those below it, except those of the ids `kept`; return how many are deleted.

    This is MLflow's soft delete, which `mlflow runs restore` undoes. The study's own run is deleted last.
    """
    study_run = store.find_run(run_id)
    if study_run is None:
        return 0
    below = [str(run.info.run_id) for run in search_children(store, study_run.experiment_id, run_id)]
    deleted = [each for each in (*below, *([run_id] if study_run.is_active else [])) if each not in kept]
    for each in deleted:
        store.client.delete_run(each)
    return len(deleted)


def rename_study_runs(store: MlflowStore, run_id: str, study_file: str, renamed: str) -> int:
    """Give the run of a study its new name, and those below it the tag; return how many there are.

    `study_file` replaces the artifact. Runs that were deleted stay as they are.
    """
    study_run = store.find_run(run_id)
    if study_run is None:
        return 0
    below = search_children(store, study_run.experiment_id, run_id)
    for run in below:
        store.set_tags(str(run.info.run_id), {tag_names.STUDY: renamed})
    if study_run.is_active:
        store.client.log_text(run_id, study_file, "study.toml")
        store.client.update_run(run_id, name=renamed)
        store.set_tags(run_id, {tag_names.STUDY: renamed, tag_names.OPTUNA_STUDY: renamed})
    return len(below) + study_run.is_active
