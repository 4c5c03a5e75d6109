"""The opening of a session: whatever a study needs to train is looked up, taken and started, in a fixed order."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import load_images
from fmnist_search.execution.backend import Backend
from fmnist_search.files import private_files
from fmnist_search.search.driver_storage import DriverStorage
from fmnist_search.search.lease import Lease, LeaseLost
from fmnist_search.search.requests import RequestInbox, move_requests
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_changes import check_unchanging
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import displayed_names
from fmnist_search.text import first_line
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.artifact_locations import check_project
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import NullRunLogger, RunLogger
from fmnist_search.tracking.sender import NullSender, Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.study_runs import StudyRun, find_unstored_run, open_study_run
from fmnist_search.tracking.system_metrics import log_system_metrics
from fmnist_search.training.trial_checkpoints import TrialCheckpoints
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.interruption import Interruption, interrupt_on_signals
from fmnist_search.workflows.jobs import JobContext
from fmnist_search.workflows.registration import check_registration
from fmnist_search.workflows.repairing import make_stores_agree
from fmnist_search.workflows.sending import MANY_WORKERS, open_sender
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.network_budget import check_space
from fmnist_search.workflows.study.requests import StudyRequests
from fmnist_search.workflows.study.run_logging import StudyRunLogger
from fmnist_search.workflows.study.running import announced
from fmnist_search.workflows.study.runtime import resolve_runtime, stored_runtime
from fmnist_search.workflows.study.session import Session
from fmnist_search.workflows.study.warm_start import load_warm_starts
from fmnist_search.workflows.study.workers import choose_streams
from fmnist_search.workflows.tuning import precision_warning
from fmnist_search.workspace import Workspace


@dataclass(frozen=True)
class SessionOptions:
    """What a session is opened for.

    With `fresh`, an earlier study of that name is archived first. `warm_starts` says whether the recipes of `[start]`
    are loaded. A model is registered under `model_name`, unless that is None.
    """

    fresh: bool = False
    warm_starts: bool = False
    model_name: str | None = None
    tracking: TrackingOptions = TrackingOptions()


@contextlib.contextmanager
def open_session(
    workspace: Workspace, config: StudyConfig, backend: Backend, callback: StudyCallback, options: SessionOptions
) -> Iterator[Session]:
    """Yield a session of a study that is ready to train, while the workers of `backend` import their libraries.

    Whatever can be missing or refused (images, device, store, experiment, permissions, recipes to start with, a study
    that differs) is looked up before the study is opened, archived or created.
    """
    tracking = options.tracking
    with contextlib.ExitStack() as stack:
        stack.enter_context(private_files())
        interruption = stack.enter_context(interrupt_on_signals())
        announcement = stack.enter_context(contextlib.ExitStack())  # closed after the sender
        stack.enter_context(store_errors(workspace.tracking_uri))
        source = DataSource.from_workspace(workspace)
        images = load_images(config.data, source)
        for folder in check_project(workspace.tracking_uri) if tracking.enabled else ():
            callback.on_message(f"{config.name}: this project has artifacts outside of it, in {folder}")
        mlflow_store = MlflowStore(workspace.tracking_uri, config.experiment) if tracking.enabled else None
        if options.warm_starts:
            check_space(config)
        warm_starts = load_warm_starts(workspace, config, mlflow_store) if options.warm_starts else ()
        if mlflow_store and options.model_name:
            check_registration(mlflow_store, options.model_name)
        StudyStore.find(workspace.storage_url, config, fresh=options.fresh)  # refuses what differs
        lease, storage, inbox = stack.enter_context(_leased_storage(workspace, config, callback, fresh=options.fresh))
        stored = None if options.fresh else StudyStore.find_in(storage, config)
        runtime = stored_runtime(stored, backend, callback) if stored else None
        if runtime is None:
            backend.wait_until_ready()  # the measurement needs a quiet machine
            runtime = resolve_runtime(config, backend)
        sender: Sender | NullSender = NullSender()
        study_run: RunLogger = NullRunLogger()
        if mlflow_store:
            run_id = _find_study_run(mlflow_store, stored, lease, fresh=options.fresh)
            opened = open_study_run(mlflow_store, config.name, run_id, lease.session)
            workers = MANY_WORKERS if config.execution.backend == "ray" else backend.size
            sender = stack.enter_context(open_sender(workspace, mlflow_store, callback, workers))
            study_run = _log_to(opened, sender, config.name, callback)
        stack.enter_context(_fail_on_error(study_run))
        if mlflow_store and opened.continuation_id:
            continuation = RunLogger.existing(sender, opened.continuation_id)
            stack.enter_context(_ended(continuation, interruption))
        study_store = _open_study_store(workspace, storage, config, sender, fresh=options.fresh)
        if mlflow_store:
            study_store.run_id = study_run.run_key  # soon, because a search that is killed before leaves its run open
        announcement.enter_context(announced(workspace.sessions_folder, config.name))
        study_store.runtime = runtime
        checkpoints = _recover_trials(workspace, study_store, sender, callback)
        if warning := backend.run_on_worker(precision_warning, runtime.execution, runtime.precision):
            callback.on_message(f"{config.name}: {warning}")
        backend.configure(runtime.execution)
        choose_streams(config, backend, runtime.execution)
        images = images.to(backend.images_device)
        known = [record.recipe for record in study_store.trial_records()]  # a start recipe may be of an earlier session
        names = displayed_names(config, [*(start.example(config) for start in warm_starts), *known])
        if mlflow_store:
            mlflow_store.save_trials_view(study_run.run_key, names)
            repair = partial(_make_stores_agree, workspace, mlflow_store, callback)
            if stored:
                sender.run_when_idle(partial(repair, config.name, is_searched=True))
            if study_store.archived_as:
                sender.run_when_idle(partial(repair, study_store.archived_as, is_searched=False))
        requests = StudyRequests(inbox, config.name, interruption, callback.on_message)
        has_plots = tracking.plot_interval is not None
        context = JobContext(sender, callback, interruption, has_plots, tracking.flush_timeout, requests.check)
        plot_interval = math.inf if tracking.plot_interval is None else tracking.plot_interval
        study_logger = StudyRunLogger(study_run, study_store, context, plot_interval)
        study_logger.log_start(images, runtime, backend.size)
        stack.enter_context(log_system_metrics(study_run))
        yield Session(
            workspace=workspace,
            study_store=study_store,
            checkpoints=checkpoints,
            source=source,
            images=images,
            mlflow_store=mlflow_store,
            study_run=study_run,
            study_logger=study_logger,
            backend=backend,
            context=context,
            warm_starts=warm_starts,
            parameter_names=names,
            requests=requests,
        )


@contextlib.contextmanager
def _leased_storage(
    workspace: Workspace, config: StudyConfig, callback: StudyCallback, *, fresh: bool
) -> Iterator[tuple[Lease, DriverStorage, RequestInbox]]:
    """Yield the right to change the study, Optuna's storage with it, and what other processes ask of its holder.

    Raises:
        UserError: if another process has the right.
    """
    rdb, execution = open_storage(workspace.storage_url), config.execution
    with Lease.acquire(rdb, config.name, execution.heartbeat_seconds, execution.lease_seconds) as lease:
        check_unchanging(rdb, config.name)
        if fresh:
            move_requests(rdb, config.name, None)  # they were made for the study that is archived
        if driver := lease.took_over:
            silence = f"has given no sign for {driver.silent_seconds:.0f} s"
            cause = "was killed" if driver.has_ended else silence
            callback.on_message(f"{config.name}: goes on where {driver} left it, which {cause}")
        yield lease, DriverStorage(rdb, lease, callback.on_message), RequestInbox(rdb, config.name, lease.session)


def _find_study_run(store: MlflowStore, stored: StudyStore | None, lease: Lease, *, fresh: bool) -> str | None:
    """Return the id of the study's run, also of one that a search created and was killed before it stored the id."""
    if stored and stored.run_id:
        return stored.run_id
    return find_unstored_run(store, lease.took_over.session) if lease.took_over and not fresh else None


def _open_study_store(
    workspace: Workspace, storage: DriverStorage, config: StudyConfig, sender: Sender | NullSender, *, fresh: bool
) -> StudyStore:
    study_store = StudyStore.open_in(storage, config, fresh=fresh, find_outcome=partial(_find_outcome, sender))
    if study_store.archived_as:
        workspace.rename_study(config.name, study_store.archived_as)
    return study_store


def _recover_trials(
    workspace: Workspace, study_store: StudyStore, sender: Sender | NullSender, callback: StudyCallback
) -> TrialCheckpoints:
    """Set right the trials that a search has left that was killed; return the checkpoints of those that go on."""
    name = study_store.config.name
    if recovered := study_store.recover(partial(_find_outcome, sender)):
        callback.on_message(f"{name}: trials go on that an earlier search left: {', '.join(map(str, recovered))}")
    checkpoints = TrialCheckpoints(workspace.checkpoints_folder(name))
    going_on = [record.number for record in study_store.trial_records() if not record.state.is_final]
    checkpoints.keep_only(going_on)
    return checkpoints


def _find_outcome(sender: Sender | NullSender, run_key: str) -> Mapping[str, Any] | None:
    """Return how a training ended, if its run was told and Optuna was not; see `StudyStore.recover`."""
    progress = sender.progress(run_key)
    return progress.outcome if progress else None


def _make_stores_agree(
    workspace: Workspace, mlflow_store: MlflowStore, callback: StudyCallback, study: str, *, is_searched: bool
) -> None:
    """Mend the runs that a killed search has left; in a thread of its own, so with stores of its own."""
    study_store = StudyStore.load(workspace.storage_url, study)
    with contextlib.closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
        make_stores_agree(workspace, study_store, mlflow_store, outbox, callback.on_message, is_searched=is_searched)


def _log_to(study_run: StudyRun, sender: Sender, study: str, callback: StudyCallback) -> RunLogger:
    """Return the logger of a study's run, which also takes the pending events of a run that it replaces."""
    if study_run.replaced_id:
        sender.remember_run(study_run.replaced_id, study_run.run_id)
    if study_run.message:
        callback.on_message(f"{study}: {study_run.message}")
    return RunLogger.existing(sender, study_run.run_id)


@contextlib.contextmanager
def _fail_on_error(run: RunLogger) -> Iterator[None]:
    """End the run as failed if an exception leaves the context, unless another process drives the study now."""
    try:
        yield
    except LeaseLost:
        raise
    except BaseException as error:
        run.set_tags({tag_names.REASON: first_line(error) or type(error).__name__})
        run.end("FAILED", "failed")
        raise


@contextlib.contextmanager
def _ended(continuation: RunLogger, interruption: Interruption) -> Iterator[None]:
    """End the run by which `mlflow run` continues a study as the search ends."""
    with _fail_on_error(continuation):
        yield
    is_interrupted = interruption.is_requested
    continuation.end("KILLED" if is_interrupted else "FINISHED", "interrupted" if is_interrupted else "finished")
