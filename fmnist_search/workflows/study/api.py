"""What can be done with a study: run it, promote its best, preview it, look at it."""

from __future__ import annotations

import dataclasses
import statistics
import time
from contextlib import closing
from dataclasses import dataclass

from fmnist_search.config.sections import Finalists
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.execution.capacity import worker_count
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import ModelSummary
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import Importances, StopReason, StudySummary, mean_overhead
from fmnist_search.results.training import Stopper
from fmnist_search.search.analysis import boundary_warnings
from fmnist_search.search.preview import preview_recipes
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import resolve_run_ids
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.ui import run_page_url
from fmnist_search.training.autotune import measure_throughput
from fmnist_search.training.callbacks import never_stop
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.jobs import open_sender
from fmnist_search.workflows.study.search_loop import reached_limit
from fmnist_search.workflows.study.session import open_session, resolve_runtime, study_execution
from fmnist_search.workspace import Workspace

SYNC_TIMEOUT = 15.0
"""Seconds to wait for a store that has gone."""
FORWARD_PASSES_PER_STEP = 3
"""A training step costs about as much as three forward passes."""


def run_study(
    config: StudyConfig,
    *,
    workspace: Workspace | None = None,
    fresh: bool = False,
    tracked: bool = True,
    stopper: Stopper = never_stop,
    callback: StudyCallback | None = None,
) -> StudySummary:
    """Run a study to the end of its budget, or go on with it where it stopped, and find its champion.

    Every trial is a run in MLflow. The observer sees each epoch of every trial and may end it; the listener hears
    what happens. With `fresh`, an earlier study of that name is put aside. What is not `tracked` leaves nothing in
    MLflow, and has no champion.

    Raises:
        UserError: no images, no such device, a store out of reach, or a stored study that searches something else.
    """
    workspace = workspace or Workspace.resolve()
    with open_session(
        workspace, config, callback or StudyCallback(), fresh=fresh, for_search=True, tracked=tracked
    ) as session:
        session.enqueue_starts()
        ledger = session.study_store
        started, before = time.monotonic(), len(ledger.trial_records())
        ending = session.search(stopper)
        champion = session.promote_best(config.finalists, force=False) if ending.is_final else None
        if session.context.interrupt_handler.requested:
            ending = StopReason.INTERRUPTED
        summary = _summarize_study(
            workspace, ledger, ending, len(ledger.trial_records()) - before, time.monotonic() - started, champion
        )
        session.close(summary)
    return summary


def promote(
    name: str,
    *,
    settings: Finalists | None = None,
    workspace: Workspace | None = None,
    callback: StudyCallback | None = None,
) -> StudySummary:
    """Confirm the best recipes of a study anew, and register the chosen one's model.

    `settings` are the study file's own where none are given.

    Raises:
        UserError: there is no such study, or it has no completed trial.
    """
    workspace = workspace or Workspace.resolve()
    ledger = StudyStore.load(workspace.storage_url, name)
    if _summarize_study(workspace, ledger, StopReason.OPEN).best is None:
        raise UserError(f"study {name!r}: has no completed trial to promote; search on first", exit_code=3)
    with open_session(workspace, ledger.config, callback or StudyCallback()) as session:
        config = ledger.config
        champion = session.promote_best((settings or config.finalists).for_dataset(config.data.dataset), force=True)
        ending = StopReason.INTERRUPTED if session.context.interrupt_handler.requested else _current_stop_reason(ledger)
        summary = _summarize_study(workspace, ledger, ending, champion=champion)
        session.close(summary)
    return summary


@dataclass(frozen=True)
class Preview:
    """What a study would do: its first recipes with their networks, and how long it would train at most."""

    recipes: tuple[tuple[Recipe, ModelSummary], ...]
    seconds: float | None


def preview(config: StudyConfig, count: int = 5) -> Preview:
    """Draw the first recipes of a study without starting it, and estimate its time if no trial were pruned.

    The estimate takes the multiply-adds of the drawn networks at the rate of a short measurement of this machine.

    Raises:
        UserError: a drawn network is refused, or there is no such device.
    """
    conditions = resolve_runtime(config, study_execution(config))
    drawn = list(preview_recipes(config, conditions.precision, count))
    recipes = tuple((sketch.recipe, sketch.summary) for sketch in drawn)
    limit = config.budget.minutes * 60 if config.budget.minutes else None
    if config.budget.trials is None:
        return Preview(recipes, limit)
    workers, _ = worker_count(config.execution.workers, conditions.execution, [sketch.step_bytes for sketch in drawn])
    mult_adds = statistics.fmean(sketch.summary.mult_adds for sketch in drawn)
    passes = FORWARD_PASSES_PER_STEP * config.data.training_count + config.data.validation
    epochs = config.budget.trials * config.budget.epochs
    seconds = epochs * passes * mult_adds / measure_throughput(conditions.execution, conditions.precision) / workers
    return Preview(recipes, min(seconds, limit or seconds))


def status(name: str, *, workspace: Workspace | None = None) -> StudySummary:
    """A study as it stands, read from Optuna alone.

    Raises:
        UserError: there is no such study.
    """
    workspace = workspace or Workspace.resolve()
    ledger = StudyStore.load(workspace.storage_url, name)
    return _summarize_study(workspace, ledger, _current_stop_reason(ledger))


@dataclass(frozen=True)
class OutboxStatus:
    """Events on their way to MLflow: how many wait, and how many it refused, by reason."""

    pending: int
    rejected: dict[str, int]


def outbox_status(*, workspace: Workspace | None = None) -> OutboxStatus:
    """What MLflow has not got of the record."""
    workspace = workspace or Workspace.resolve()
    if not workspace.outbox_path.exists():
        return OutboxStatus(0, {})
    with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
        return OutboxStatus(outbox.pending_count(), outbox.rejected_counts())


def sync(
    *,
    forget: bool = False,
    workspace: Workspace | None = None,
) -> int:
    """Send MLflow what it has not got, and what it refused once more; gives the number of events.

    With `forget`, what it refused is dropped instead.

    Raises:
        UserError: MLflow is out of reach, or refuses some of it.
    """
    workspace = workspace or Workspace.resolve()
    if not workspace.outbox_path.exists():
        return 0
    with store_errors(workspace.tracking_uri):
        tracking = MlflowStore(workspace.tracking_uri, "fmnist-search")
        with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
            if forget:
                outbox.discard_rejected()
            else:
                outbox.retry_rejected()
            events = outbox.pending_count()
            with open_sender(workspace, tracking, StudyCallback()) as sender:
                arrived = sender.flush(SYNC_TIMEOUT)
            refused = outbox.rejected_counts()
    if not arrived:
        raise UserError("sync: MLflow has gone out of reach; nothing is lost, run it again")
    if refused:
        raise UserError(
            *(f"sync: MLflow refuses {count} events: {reason}" for reason, count in refused.items()),
            "sync: mend what it names and run it again, or drop them with --forget",
        )
    return events


def importance(name: str, *, workspace: Workspace | None = None) -> Importances:
    """Which hyperparameters of a study decide; UserError where it is not there, or too few of its trials completed."""
    return StudyStore.load((workspace or Workspace.resolve()).storage_url, name).importances()


def all_studies(*, workspace: Workspace | None = None) -> list[StudySummary]:
    """Every study of a folder as it stands; none where nothing was ever run there."""
    url = (workspace or Workspace.resolve()).storage_url
    try:
        names = StudyStore.study_names(url)
    except UserError:
        return []
    return [status(name, workspace=workspace) for name in names]


def run_url(run_id: str, *, workspace: Workspace | None = None) -> str | None:
    """The address of a run's page in the MLflow UI; None where the store does not know the run."""
    uri = (workspace or Workspace.resolve()).tracking_uri
    with store_errors(uri):
        experiment = MlflowStore(uri, "fmnist-search").find_experiment_id(run_id)
    server = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    return run_page_url(server, experiment, run_id) if experiment else None


def load_study_config(name: str, *, workspace: Workspace | None = None) -> StudyConfig:
    """The configuration with which a study last ran; UserError where there is no such study."""
    return StudyStore.load((workspace or Workspace.resolve()).storage_url, name).config


def latest_study(*, workspace: Workspace | None = None) -> str:
    """The name of the study that was begun last; UserError where there is none."""
    workspace = workspace or Workspace.resolve()
    names = StudyStore.study_names(workspace.storage_url)
    if not names:
        raise UserError(f"{workspace.folder}: holds no study yet; run `fmnist-search search studies/quick.toml` first")
    return names[-1]


def latest_run(*, workspace: Workspace | None = None) -> str | None:
    """The MLflow run of the study that was begun last; None where there is no study."""
    url = (workspace or Workspace.resolve()).storage_url
    try:
        return StudyStore.load(url, StudyStore.study_names(url)[-1]).run_id
    except (UserError, IndexError):
        return None


def _summarize_study(
    workspace: Workspace,
    study_store: StudyStore,
    stop_reason: StopReason,
    new_trials: int = 0,
    seconds: float = 0.0,
    champion: Champion | None = None,
) -> StudySummary:
    known, rows = study_store.champion, resolve_run_ids(workspace, study_store.trial_records())
    summary = StudySummary(
        name=study_store.config.name,
        question=study_store.config.question,
        trials=tuple(rows),
        ended_by=stop_reason,
        new_trials=new_trials,
        seconds=seconds,
        run_id=study_store.run_id,
        champion=champion or (known[1] if known else None),
        overhead=mean_overhead(rows, study_store.tracking_seconds),
        searched_seconds=study_store.searched_seconds,
    )
    return dataclasses.replace(summary, edges=boundary_warnings(summary.ranked_trials, study_store.config.space))


def _current_stop_reason(study_store: StudyStore) -> StopReason:
    """Whether a study that does not run has reached a limit."""
    ending = reached_limit(study_store.config, study_store.trial_records(), study_store.searched_seconds)
    return ending or (StopReason.EXHAUSTED if study_store.is_exhausted else StopReason.OPEN)
