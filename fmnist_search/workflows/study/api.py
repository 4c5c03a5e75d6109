"""What can be done with a study: run it, promote its best, preview it, look at it."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from dataclasses import dataclass

from fmnist_search.config.sections import Finalists
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.execution.backend import BackendFactory, make_backend
from fmnist_search.execution.capacity import worker_count
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import ModelSummary
from fmnist_search.results.study import StopReason, StudySummary
from fmnist_search.results.training import Stopper
from fmnist_search.search.preview import preview_recipes
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.training.autotune import measure_throughput
from fmnist_search.training.callbacks import never_stop
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.jobs import open_sender
from fmnist_search.workflows.lookup import summarize
from fmnist_search.workflows.study.session import open_session, resolve_runtime, study_execution
from fmnist_search.workflows.study.stopping import current_stop_reason
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
    backend_factory: BackendFactory = make_backend,
) -> StudySummary:
    """Run a study to the end of its budget, or go on with it where it stopped, and find its champion.

    Every trial is a run in MLflow. The observer sees each epoch of every trial and may end it; the listener hears
    what happens. With `fresh`, an earlier study of that name is put aside. What is not `tracked` leaves nothing in
    MLflow, and has no champion. `backend_factory` starts the workers that run the trials.

    Raises:
        UserError: no images, no such device, a store out of reach, or a stored study that searches something else.
    """
    workspace = workspace or Workspace.resolve()
    with open_session(
        workspace,
        config,
        callback or StudyCallback(),
        fresh=fresh,
        for_search=True,
        tracked=tracked,
        backend_factory=backend_factory,
    ) as session:
        session.enqueue_starts()
        ledger = session.study_store
        started, before = time.monotonic(), len(ledger.trial_records())
        ending = session.search(stopper)
        champion = session.promote_best(config.finalists, force=False) if ending.is_final else None
        if session.context.interrupt_handler.requested:
            ending = StopReason.INTERRUPTED
        summary = summarize(
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
    if summarize(workspace, ledger, StopReason.OPEN).best is None:
        raise UserError(f"study {name!r}: has no completed trial to promote; search on first", exit_code=3)
    with open_session(workspace, ledger.config, callback or StudyCallback()) as session:
        config = ledger.config
        champion = session.promote_best((settings or config.finalists).for_dataset(config.data.dataset), force=True)
        ending = StopReason.INTERRUPTED if session.context.interrupt_handler.requested else current_stop_reason(ledger)
        summary = summarize(workspace, ledger, ending, champion=champion)
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
