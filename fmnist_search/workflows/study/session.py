"""The session of a study in this process: images, workers, its run in MLflow, and the interruption."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fmnist_search.config.conditional_space import varying_names
from fmnist_search.config.sections import Finalists
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.execution.backend import Backend
from fmnist_search.files import private_files
from fmnist_search.registry.versions import has_version
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import StopReason, StudySummary, TrialRecord, rank_trials
from fmnist_search.results.training import Stopper
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking import metric_names
from fmnist_search.tracking.artifact_locations import check_project
from fmnist_search.tracking.connection import store_errors
from fmnist_search.tracking.run_logger import NullRunLogger, RunLogger
from fmnist_search.tracking.sender import NullSender, Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.study_runs import StudyRun, end_abandoned_runs, open_study_run
from fmnist_search.tracking.system_metrics import log_system_metrics
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.interruption import interrupt_on_signals
from fmnist_search.workflows.jobs import JobContext
from fmnist_search.workflows.lookup import summarize
from fmnist_search.workflows.registration import check_registration
from fmnist_search.workflows.sending import open_sender
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.finalists import selection_key
from fmnist_search.workflows.study.promotion import Promotion
from fmnist_search.workflows.study.run_logging import StudyRunLogger
from fmnist_search.workflows.study.running import announced
from fmnist_search.workflows.study.runtime import resolve_runtime, stored_runtime
from fmnist_search.workflows.study.search_loop import SearchLoop
from fmnist_search.workflows.study.stopping import current_stop_reason
from fmnist_search.workflows.study.trial_job import SearchContext
from fmnist_search.workflows.study.warm_start import WarmStart, load_warm_starts
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
        warm_starts = load_warm_starts(workspace, config, mlflow_store) if options.warm_starts else ()
        stored = StudyStore.find(workspace.storage_url, config, fresh=options.fresh)
        runtime = stored_runtime(stored, callback) if stored else None
        sender: Sender | NullSender = NullSender()
        study_run: RunLogger = NullRunLogger()
        if mlflow_store:
            if options.model_name:
                check_registration(mlflow_store, options.model_name)
            opened = open_study_run(mlflow_store, config.name, stored.run_id if stored else None)
            sender = stack.enter_context(open_sender(workspace, mlflow_store, callback))
            study_run = _log_to(opened, sender, config.name, callback)
        stack.enter_context(_fail_on_error(study_run))
        if runtime is None:
            backend.wait_until_ready()  # the measurement needs a quiet machine
            runtime = resolve_runtime(config, backend.execution)
        study_store = _open_study_store(workspace, config, fresh=options.fresh)
        announcement.enter_context(announced(workspace.sessions_folder, config.name))
        study_store.runtime = runtime
        if warning := precision_warning(runtime.execution, runtime.precision):
            callback.on_message(f"{config.name}: {warning}")
        backend.configure(runtime.execution)
        images = images.to(runtime.execution.device)
        if mlflow_store:
            study_store.run_id = study_run.run_key
            mlflow_store.save_trials_view(study_run.run_key, varying_names(config.space))
        context = JobContext(sender, callback, interruption, tracking.plot_interval is not None, tracking.flush_timeout)
        study_logger = StudyRunLogger(study_run, study_store, context, tracking.plot_interval or 0.0)
        study_logger.log_start(images, runtime, backend.size)
        stack.enter_context(log_system_metrics(study_run))
        yield Session(
            workspace, study_store, source, images, mlflow_store, study_run, study_logger, backend, context, warm_starts
        )


def _open_study_store(workspace: Workspace, config: StudyConfig, *, fresh: bool) -> StudyStore:
    study_store = StudyStore.open(workspace.storage_url, config, fresh=fresh)
    if study_store.archived_as:
        workspace.rename_study(config.name, study_store.archived_as)
    return study_store


def _log_to(study_run: StudyRun, sender: Sender, study: str, callback: StudyCallback) -> RunLogger:
    """Return the logger of a study's run, which also takes the pending events of a run that it replaces."""
    if study_run.replaced_id:
        sender.remember_run(study_run.replaced_id, study_run.run_id)
    if study_run.message:
        callback.on_message(f"{study}: {study_run.message}")
    return RunLogger.existing(sender, study_run.run_id)


@contextlib.contextmanager
def _fail_on_error(run: RunLogger) -> Iterator[None]:
    """End the run as failed if an exception leaves the context."""
    try:
        yield
    except BaseException:
        run.end("FAILED", "failed")
        raise


@dataclass
class Session:
    """A study with all that it needs to train in this process."""

    workspace: Workspace
    study_store: StudyStore
    source: DataSource
    images: Images
    mlflow_store: MlflowStore | None
    study_run: RunLogger
    study_logger: StudyRunLogger
    backend: Backend
    context: JobContext
    warm_starts: Sequence[WarmStart]

    def run(self, stopper: Stopper) -> StudySummary:
        """Search until a limit is reached, promote the best recipes, end the study's run, and return the summary."""
        self._enqueue_warm_starts()
        started, previous = time.monotonic(), len(self.study_store.trial_records())
        loop = self._make_search_loop(stopper)
        reason = loop.run(self.backend)
        self.study_logger.log_plots(self.study_store.trial_records())  # while the finalists train
        champion = self._promote_best(self.study_store.config.finalists) if reason.is_final else None
        summary = summarize(
            self.workspace,
            self.study_store,
            self._final_reason(reason),
            new_trials=len(self.study_store.trial_records()) - previous,
            seconds=time.monotonic() - started,
            champion=champion,
        )
        self._close(summary)
        self.study_store.tracking_seconds += loop.tracking_seconds
        return summary

    def promote(self, settings: Finalists) -> StudySummary:
        """Promote the best recipes, even if the same were promoted before, end the study's run; return the summary."""
        champion = self._promote_best(settings, force=True)
        reason = self._final_reason(current_stop_reason(self.study_store))
        summary = summarize(self.workspace, self.study_store, reason, champion=champion)
        self._close(summary)
        return summary

    def _final_reason(self, reason: StopReason) -> StopReason:
        """Return the reason for which the session ends; an interruption may also come while finalists train."""
        return StopReason.INTERRUPTED if self.context.interruption.is_requested else reason

    def _enqueue_warm_starts(self) -> None:
        """Report what may be unexpected in this study, and queue its warm starts."""
        config = self.study_store.config
        messages = [*config.warnings, *self.study_store.widened_ranges]
        if names := config.independently_sampled:
            messages.append(f"{config.sampler.name} samples independently: {', '.join(names)}")
        for message in messages:
            self.context.callback.on_message(f"{config.name}: {message}")
        for start in self.warm_starts:
            if message_ := self.study_store.enqueue_start(start.source, start.values):
                self.context.callback.on_message(f"{config.name}: {message_}")

    def _make_search_loop(self, stopper: Stopper) -> SearchLoop:
        search = SearchContext(
            study_store=self.study_store,
            workspace=self.workspace,
            images=self.images,
            study_run=self.study_run,
            job_context=self.context,
            stopper=stopper,
            parameter_names=varying_names(self.study_store.config.space),
        )
        return SearchLoop(search, self.study_logger)

    def _promote_best(self, settings: Finalists, *, force: bool = False) -> Champion | None:
        """Train the finalists and register the best model; return None if interrupted or if there is none.

        The champion that was selected from the same finalists before is returned at once, unless `force`; None, with a
        message, if its version has been deleted in the registry.
        """
        leaders = _distinct_recipes(rank_trials(self.study_store.trial_records()))[: settings.recipes]
        if not leaders or self.mlflow_store is None:
            return None
        key = selection_key(leaders, settings)
        stored = self.study_store.champion
        if stored and not has_version(self.mlflow_store.client, stored[1].model, stored[1].version):
            self.study_store.mark_champion_deleted()
            stored = None
        if stored and stored[0] == key and not force:
            return stored[1]
        if self.study_store.deleted_champion_key == key and not force:
            name = self.study_store.config.name
            self.context.callback.on_message(
                f"{name}: the model that it registered has been deleted in MLflow; `fmnist-search promote "
                f"{shlex.quote(name)}` registers its best again"
            )
            return None
        champion = self._make_promotion(settings, self.mlflow_store).run(leaders)
        if champion:
            test, confirmed = champion.test.value, champion.confirmed_score.mean
            self.study_run.log_metrics(
                {metric_names.TEST_ACCURACY: test, metric_names.CONFIRMED_VAL_ACCURACY: confirmed}
            )
        return champion

    def _make_promotion(self, settings: Finalists, mlflow_store: MlflowStore) -> Promotion:
        return Promotion(
            study_store=self.study_store,
            settings=settings,
            source=self.source,
            mlflow_store=mlflow_store,
            study_run=self.study_run,
            images=self.images,
            backend=self.backend,
            context=self.context,
        )

    def _close(self, summary: StudySummary) -> None:
        self.study_logger.close(summary)
        if self.context.flush() and self.mlflow_store:
            end_abandoned_runs(self.mlflow_store, self.study_run.run_key)


def _distinct_recipes(ranked: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the best trial of each recipe, in order."""
    best: dict[str, TrialRecord] = {}
    for record in ranked:
        best.setdefault(record.recipe.seed_independent_key(), record)
    return list(best.values())
