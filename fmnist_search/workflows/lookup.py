"""Studies and runs as they are stored: what commands read that train nothing.

Studies come from Optuna's storage alone, so that these functions import neither torch nor MLflow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist_search.errors import UserError
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import StopReason, StudySummary, TrialRecord, mean_overhead
from fmnist_search.search.analysis import boundary_warnings
from fmnist_search.search.lease import current_driver
from fmnist_search.search.study_store import StudyStore
from fmnist_search.text import without_credentials
from fmnist_search.tracking.local_store import open_run_reader
from fmnist_search.tracking.outbox_reader import read_outbox
from fmnist_search.tracking.run_ref import resolve_run_ids
from fmnist_search.tracking.stored_runs import TrainedRun, find_experiment_id
from fmnist_search.tracking.ui import run_page_url
from fmnist_search.workflows.study.stopping import current_stop_reason
from fmnist_search.workspace import Workspace

if TYPE_CHECKING:
    from fmnist_search.models.classifier import Classifier
    from fmnist_search.tracking.store import MlflowStore


def load_study(workspace: Workspace, name: str | None = None) -> StudyStore:
    """Return a stored study, by default the one that was created last.

    Raises:
        UserError: if there is no such study, or none at all.
    """
    return StudyStore.load(workspace.storage_url, name)


def status(name: str | None = None, *, workspace: Workspace | None = None) -> StudySummary:
    """Return the summary of a stored study with its running trials, by default of the one that was created last.

    Raises:
        UserError: if there is no such study, or none at all.
    """
    workspace = workspace or Workspace.resolve()
    return summarize_current(workspace, load_study(workspace, name))


def summarize_current(workspace: Workspace, study_store: StudyStore) -> StudySummary:
    """Return the summary of a study that another process may search, with its running trials."""
    driver = current_driver(workspace.storage_url, study_store.config.name)
    running = study_store.running_trials(driver.started_at) if driver else []
    return dataclasses.replace(summarize_stored(workspace, study_store), running=tuple(running))


def summarize_stored(workspace: Workspace, study_store: StudyStore) -> StudySummary:
    """Return the summary of a study that does not run."""
    return summarize(workspace, study_store, current_stop_reason(study_store))


def summarize(
    workspace: Workspace,
    study_store: StudyStore,
    stop_reason: StopReason,
    new_trials: int = 0,
    seconds: float = 0.0,
    champion: Champion | None = None,
) -> StudySummary:
    """Return the summary of a study.

    `new_trials` and `seconds` are those of the session that ends; `champion` is by default the stored one.
    """
    stored, trials = study_store.champion, resolve_run_ids(workspace, study_store.trial_records())
    summary = StudySummary(
        name=study_store.config.name,
        question=study_store.config.question,
        trials=tuple(trials),
        stop_reason=stop_reason,
        new_trials=new_trials,
        seconds=seconds,
        run_id=study_store.run_id,
        champion=champion or (stored[1] if stored else None),
        overhead=mean_overhead(trials, study_store.tracking_seconds),
        searched_seconds=study_store.searched_seconds,
    )
    return dataclasses.replace(
        summary, boundary_warnings=boundary_warnings(summary.ranked_trials, study_store.config.space)
    )


def latest_run(workspace: Workspace) -> str | None:
    """Return the id of the MLflow run of the study that was created last; None if there is no study."""
    try:
        return load_study(workspace).run_id
    except UserError:
        return None


@dataclass(frozen=True)
class OutboxStatus:
    """Number of events that wait to be sent to MLflow, and of those that it rejected, by reason."""

    pending: int
    rejected: dict[str, int]


def outbox_status(*, workspace: Workspace | None = None) -> OutboxStatus:
    """Return how many events MLflow has not received."""
    workspace = workspace or Workspace.resolve()
    with read_outbox(workspace.outbox_path, workspace.tracking_uri) as outbox:
        return OutboxStatus(outbox.pending_count(), outbox.rejected_counts())


def run_url(run_id: str, *, workspace: Workspace | None = None) -> str | None:
    """Return the address of a run's page in the MLflow UI; None if the store does not know the run.

    Raises:
        UserError: if the store is unreachable.
    """
    uri = (workspace or Workspace.resolve()).tracking_uri
    with open_run_reader(uri) as reader:
        experiment = find_experiment_id(reader, run_id)
    server = without_credentials(uri) if uri.startswith("http") else "http://127.0.0.1:5000"
    return run_page_url(server, experiment, run_id) if experiment else None


def is_trial_number(text: str) -> bool:
    """Return whether the text is the number of a trial; the id of a run has 32 characters."""
    return text.isdecimal() and len(text) < 32


def resolve_runs(workspace: Workspace, runs: Sequence[str], study: str | None = None) -> list[str]:
    """Return the ids of runs, each given by its id or by the number of its trial in a study, by default the latest.

    Raises:
        UserError: if there is no such study or trial, or the trial has no run.
    """
    if not any(map(is_trial_number, runs)):
        return list(runs)
    study_store = load_study(workspace, study)
    trials = {trial.number: trial for trial in resolve_run_ids(workspace, study_store.trial_records())}
    name = study_store.config.name
    return [_run_of_trial(trials, run, name) if is_trial_number(run) else run for run in runs]


def _run_of_trial(trials: Mapping[int, TrialRecord], number: str, study: str) -> str:
    trial = trials.get(int(number))
    if trial is None:
        remedy = f"give a number from 0 to {max(trials)}, or the id of a run" if trials else "none has ended yet"
        raise UserError(f"trial {number}: study {study!r} has no such trial that ended; {remedy}")
    if not trial.run_id:
        raise UserError(f"trial {number}: of study {study!r} has no run in MLflow; give another")
    return trial.run_id


def load_run_classifier(workspace: Workspace, mlflow_store: MlflowStore, run: TrainedRun) -> Classifier:
    """Return the network of a run with its stored weights, in evaluation mode on the CPU.

    Raises:
        UserError: if no weights are stored, or they are damaged or belong to another network.
    """
    from fmnist_search.tracking.stored_training import load_stored_classifier

    return load_stored_classifier(mlflow_store, run, _find_trial_weights(workspace, run))


def _find_trial_weights(workspace: Workspace, run: TrainedRun) -> Path | None:
    """Return the file with the weights of the trial behind a run; None if there is none.

    The trial is found by its run: if its study was replaced with --fresh, its number is that of another trial now.
    """
    if run.study is None:
        return None
    names = [name for name in StudyStore.study_names(workspace.storage_url) if name.startswith(run.study)]
    for study in names:
        trials = StudyStore.load(workspace.storage_url, study).trial_records()
        for trial in resolve_run_ids(workspace, trials):
            path = workspace.weights_path(study, trial.number)
            if trial.run_id == run.run_id and path.is_file():
                return path
    return None
