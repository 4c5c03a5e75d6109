"""Studies as they are stored: what commands read that train nothing.

The study comes from Optuna's storage alone, so that these functions import neither torch nor MLflow.
"""

from __future__ import annotations

import dataclasses
from contextlib import closing
from dataclasses import dataclass

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import Importances, StopReason, StudySummary, mean_overhead
from fmnist_search.search.analysis import boundary_warnings
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import resolve_run_ids
from fmnist_search.workflows.study.stopping import current_stop_reason
from fmnist_search.workspace import Workspace


def status(name: str, *, workspace: Workspace | None = None) -> StudySummary:
    """Return a study as it is stored.

    Raises:
        UserError: if there is no such study.
    """
    workspace = workspace or Workspace.resolve()
    study_store = StudyStore.load(workspace.storage_url, name)
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
        ended_by=stop_reason,
        new_trials=new_trials,
        seconds=seconds,
        run_id=study_store.run_id,
        champion=champion or (stored[1] if stored else None),
        overhead=mean_overhead(trials, study_store.tracking_seconds),
        searched_seconds=study_store.searched_seconds,
    )
    return dataclasses.replace(summary, edges=boundary_warnings(summary.ranked_trials, study_store.config.space))


def all_studies(*, workspace: Workspace | None = None) -> list[StudySummary]:
    """Return every study of a workspace; none if no study was ever run in it."""
    workspace = workspace or Workspace.resolve()
    try:
        names = StudyStore.study_names(workspace.storage_url)
    except UserError:
        return []
    return [status(name, workspace=workspace) for name in names]


def load_study_config(name: str, *, workspace: Workspace | None = None) -> StudyConfig:
    """Return the configuration with which a study last ran.

    Raises:
        UserError: if there is no such study.
    """
    return StudyStore.load((workspace or Workspace.resolve()).storage_url, name).config


def latest_study(*, workspace: Workspace | None = None) -> str:
    """Return the name of the study that was created last.

    Raises:
        UserError: if there is none.
    """
    workspace = workspace or Workspace.resolve()
    names = StudyStore.study_names(workspace.storage_url)
    if not names:
        raise UserError(f"{workspace.folder}: holds no study yet; run `fmnist-search search studies/quick.toml` first")
    return names[-1]


def latest_run(*, workspace: Workspace | None = None) -> str | None:
    """Return the id of the MLflow run of the study that was created last; None if there is no study."""
    url = (workspace or Workspace.resolve()).storage_url
    try:
        return StudyStore.load(url, StudyStore.study_names(url)[-1]).run_id
    except (UserError, IndexError):
        return None


def importance(name: str, *, workspace: Workspace | None = None) -> Importances:
    """Return the importances of a study's hyperparameters.

    Raises:
        UserError: if there is no such study, or too few of its trials have completed.
    """
    return StudyStore.load((workspace or Workspace.resolve()).storage_url, name).importances()


@dataclass(frozen=True)
class OutboxStatus:
    """Number of events that wait to be sent to MLflow, and of those that it rejected, by reason."""

    pending: int
    rejected: dict[str, int]


def outbox_status(*, workspace: Workspace | None = None) -> OutboxStatus:
    """Return how many events MLflow has not received."""
    workspace = workspace or Workspace.resolve()
    if not workspace.outbox_path.exists():
        return OutboxStatus(0, {})
    with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
        return OutboxStatus(outbox.pending_count(), outbox.rejected_counts())


def run_url(run_id: str, *, workspace: Workspace | None = None) -> str | None:
    """Return the address of a run's page in the MLflow UI; None if the store does not know the run.

    Raises:
        UserError: if the store is unreachable.
    """
    from fmnist_search.tracking.connection import store_errors
    from fmnist_search.tracking.store import MlflowStore
    from fmnist_search.tracking.ui import run_page_url

    uri = (workspace or Workspace.resolve()).tracking_uri
    with store_errors(uri):
        experiment = MlflowStore(uri, "fmnist-search").find_experiment_id(run_id)
    server = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    return run_page_url(server, experiment, run_id) if experiment else None
