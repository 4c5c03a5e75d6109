"""The run of a study in MLflow, and the runs of its trainings below it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from mlflow.entities import RunTag

from fmnist_search.text import escape_markdown
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.connection import connect
from fmnist_search.tracking.provenance import provenance_tags
from fmnist_search.tracking.run_listing import search_children
from fmnist_search.tracking.run_logger import TAG_LIMIT
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.stored_runs import StoredRun


@dataclass(frozen=True)
class StudyRun:
    """The run of a study.

    `message` says what replaces an earlier run that is gone, whose id is `replaced_id`, or where the run is.
    `continuation_id` is the run that `mlflow run` created although the study has this one.
    """

    run_id: str
    replaced_id: str | None = None
    message: str = ""
    continuation_id: str | None = None


def find_unstored_run(store: MlflowStore, session: str) -> str | None:
    """Return the run of a study that a session was the last to open; None if it opened none."""
    found = store.client.search_runs([store.experiment_id], f"tags.{tag_names.SESSION} = '{session}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def open_study_run(store: MlflowStore, study: str, existing_run_id: str | None, session: str | None = None) -> StudyRun:
    """Return the run of a study: the existing one, the one that `mlflow run` created, or a new one of this session.

    If the study has a run and `mlflow run` created another, the other becomes its child and refers to it. If the
    existing run is gone, the runs below it move below the new one.

    Raises:
        UserError: if MLFLOW_RUN_ID names no run, or the experiment is deleted or must not be written to.
    """
    given = store.given_run_id()
    existing = store.find_run(existing_run_id) if existing_run_id else None
    tags = {tag_names.STUDY: study, tag_names.KIND: tag_names.STUDY_RUN}
    if session:
        tags[tag_names.SESSION] = session
    if existing and existing.is_active:
        run_id = existing.run_id
        if tag_names.REASON in existing.tags:
            store.client.delete_tag(run_id, tag_names.REASON)  # of a search that failed
    else:
        run_id = given or store.create_run(study, tags)
    store.set_tags(run_id, {**tags, tag_names.STATE: "running", **provenance_tags()})
    store.client.update_run(run_id, status="RUNNING", name=study)
    if existing and existing.is_active and given and given != run_id:
        return StudyRun(run_id, None, _link_to_study_run(store, given, study, existing), given)
    if existing_run_id is None or run_id == existing_run_id:
        return StudyRun(run_id)
    if existing is None:
        return StudyRun(
            run_id,
            existing_run_id,
            f"its run {existing_run_id} is not in MLflow any more; the run {run_id} replaces it, and `fmnist-search "
            f"sync --rebuild {shlex.quote(study)}` writes the runs of its trials again",
        )
    moved = _move_children(store, existing.experiment_id, existing_run_id, run_id)
    return StudyRun(
        run_id,
        existing_run_id,
        f"its run {existing_run_id} was deleted in MLflow; the run {run_id} replaces it, and the {moved} runs below it "
        "were moved",
    )


def _link_to_study_run(store: MlflowStore, run_id: str, study: str, study_run: StoredRun) -> str:
    """Make the run that `mlflow run` created a child of the study's run, with a note; return what it says.

    MLflow shows a child below its parent only in the same experiment.
    """
    experiment = str(store.client.get_experiment(study_run.experiment_id).name)
    link = f"[{study_run.run_id}](#/experiments/{study_run.experiment_id}/runs/{study_run.run_id})"
    note = (
        f"Continues the study '{escape_markdown(study)}': its trials are below the run {link} in the experiment "
        f"'{escape_markdown(experiment)}'."
    )
    tags = {
        tag_names.PARENT_RUN_ID: study_run.run_id,
        tag_names.NOTE: note,
        tag_names.STUDY: study,
        tag_names.KIND: tag_names.CONTINUATION_RUN,
        tag_names.STATE: "running",
    }
    store.set_tags(run_id, tags)
    store.client.update_run(run_id, name=f"{study}, continued")
    return f"its trials are below the run {study_run.run_id} in the experiment {experiment!r}"


def explain_failed_run(tracking_uri: str, run_id: str, message: str) -> None:
    """Let the run that `mlflow run` created say why its command has failed, unless it says so already.

    A run that has ended is left alone: its id may be in the environment of a later command.
    """
    client = connect(tracking_uri)
    run = client.get_run(run_id)
    stored = run.data.tags
    if stored.get(tag_names.REASON) or run.info.status != "RUNNING":
        return
    tags = {tag_names.STATE: "failed", tag_names.REASON: message[:TAG_LIMIT]}
    if tag_names.NOTE not in stored:
        tags[tag_names.NOTE] = f"**Failed**: {escape_markdown(message)}"[:TAG_LIMIT]
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _move_children(store: MlflowStore, experiment_id: str, from_id: str, to_id: str) -> int:
    children = search_children(store, experiment_id, from_id)
    for run in children:
        store.client.set_tag(run.info.run_id, tag_names.PARENT_RUN_ID, to_id)
    return len(children)
