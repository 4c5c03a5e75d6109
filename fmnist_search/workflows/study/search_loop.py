"""The search of a study: trial after trial is asked, trained by a worker, and told, until something ends it."""

from __future__ import annotations

import dataclasses
import math
import time

from fmnist_search.config.conditional_space import varying_names
from fmnist_search.data.images import Images
from fmnist_search.execution.backend import Backend
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import StopReason, TrialRecord
from fmnist_search.results.training import Decision, EpochReport, Overhead, Stopper, TrialResult, TrialState
from fmnist_search.search.study_store import AskedTrial, StudyStore
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.run_logger import RunLogger, TrainingRunLogger
from fmnist_search.training.checkpoint import save_state
from fmnist_search.workflows.jobs import JobContext, TrackedJob, not_started, trial_overhead
from fmnist_search.workflows.study.run_logging import StudyRunLogger
from fmnist_search.workflows.study.stopping import reached_limit
from fmnist_search.workspace import Workspace

MAX_CONSECUTIVE_DUPLICATES = 50
"""As many draws of known recipes in a row say that the space holds no other."""


class SearchLoop:
    """The trials of a study while they are made: those that ended, and those that run."""

    def __init__(
        self,
        study_store: StudyStore,
        images: Images,
        workspace: Workspace,
        study_run: RunLogger,
        study_logger: StudyRunLogger,
        context: JobContext,
        stopper: Stopper,
    ):
        self.study_store = study_store
        self.images = images
        self.workspace = workspace
        self.study_run = study_run
        self.study_logger = study_logger
        self.context = context
        self.stopper = stopper
        self.parameter_names = varying_names(study_store.config.space)
        self._records = study_store.trial_records()
        self._records_by_key = {row.recipe.seed_independent_key(): row for row in self._records if _can_answer(row)}
        self._running: dict[str, TrialJob] = {}
        self._pending_duplicates: list[tuple[AskedTrial, Recipe]] = []
        self._consecutive_duplicates = 0
        self._run_keys: list[str] = []
        self._previous_seconds = study_store.searched_seconds
        self._started_at = time.monotonic()

    def run(self, pool: Backend) -> StopReason:
        """Search until something ends the study; says what. Trials that still run then are trained to their ends."""
        self.context.callback.on_study_start(self._records, self._previous_seconds)
        try:
            pool.run(self._next_job)
        except BaseException as error:
            pool.stop()
            impatient = isinstance(error, KeyboardInterrupt)
            self._interrupt_all(
                "interrupted in the middle of an epoch" if impatient else "the study stopped on an error"
            )
            if not impatient:
                raise
            self.context.interrupt_handler.requested = True
        self._interrupt_all("an equal trial was interrupted")
        ending = self._stop_reason() or StopReason.INTERRUPTED
        self.study_store.searched_seconds = self._searched_seconds()
        return ending

    @property
    def tracking_seconds(self) -> float:
        """How long the record of its trials took the sender."""
        return sum(map(self.context.sender.tracking_seconds, self._run_keys))

    def on_job_ended(self, trial: TrialJob, record: TrialRecord) -> None:
        """Take in a trial that has been told."""
        del self._running[trial.recipe.seed_independent_key()]
        self._records.append(record)
        if _can_answer(record):
            self._records_by_key[trial.recipe.seed_independent_key()] = record
        if record.state is TrialState.INTERRUPTED:
            self.context.interrupt_handler.requested = True
        self.study_store.searched_seconds = self._searched_seconds()
        self.context.callback.on_trial_end(record)
        self.study_logger.log_progress(self._records)

    def _next_job(self) -> TrialJob | None:
        """The next trial to train; None while there is none."""
        while True:
            asked = time.monotonic()
            trial, recipe = self._resolved_duplicate() or (None, None)
            if trial is None or recipe is None:
                if self.study_store.waits_for_running or self._stop_reason():
                    return None
                trial = self.study_store.ask()
                recipe = trial.recipe
            if recipe.seed_independent_key() in self._running:
                self._pending_duplicates.append((trial, recipe))
                self._consecutive_duplicates += 1
            elif (same := self._equal_record(trial, recipe)) is not None:
                self._records.append(self.study_store.tell_duplicate(trial, same))
                self._consecutive_duplicates += 1
            else:
                self._consecutive_duplicates = 0
                return self._start_job(trial, recipe, time.monotonic() - asked)

    def _start_job(self, trial: AskedTrial, recipe: Recipe, sampling_seconds: float) -> TrialJob:
        try:
            begun = self._running[recipe.seed_independent_key()] = TrialJob(self, trial, recipe, sampling_seconds)
            self._run_keys.append(begun.run.run_key)
        except BaseException:  # the record cannot be kept: it comes again
            self._pending_duplicates.append((trial, recipe))
            raise
        return begun

    def _resolved_duplicate(self) -> tuple[AskedTrial, Recipe] | None:
        """A trial that was asked while an equal one ran, which has ended since."""
        answered = (
            self._records_by_key if self.context.interrupt_handler.requested else None
        )  # nothing is begun any more
        parted = next(
            (
                (trial, recipe)
                for trial, recipe in self._pending_duplicates
                if recipe.seed_independent_key() not in self._running
                and (answered is None or recipe.seed_independent_key() in answered)
            ),
            None,
        )
        if parted:
            self._pending_duplicates.remove(parted)
        return parted

    def _equal_record(self, trial: AskedTrial, recipe: Recipe) -> TrialRecord | None:
        return None if trial.is_survivor else self._records_by_key.get(recipe.seed_independent_key())

    def _stop_reason(self) -> StopReason | None:
        if self.context.interrupt_handler.requested:
            return StopReason.INTERRUPTED
        ending = reached_limit(
            self.study_store.config,
            self._records,
            self._searched_seconds(),
            len(self._running) + len(self._pending_duplicates),
        )
        if ending is None and (
            self._consecutive_duplicates >= MAX_CONSECUTIVE_DUPLICATES or self.study_store.is_exhausted
        ):
            return StopReason.EXHAUSTED
        return ending

    def _searched_seconds(self) -> float:
        return self._previous_seconds + time.monotonic() - self._started_at

    def _interrupt_all(self, reason: str) -> None:
        for trial in list(self._running.values()):
            del self._running[trial.recipe.seed_independent_key()]
            self._records.append(trial.interrupt(reason))
        for twin, _ in self._pending_duplicates:
            self._records.append(self.study_store.tell(twin, not_started(reason), ""))
        self._pending_duplicates.clear()


class TrialJob(TrackedJob):
    """One trial: trained, pruned where that is advised, and written down wherever it ends."""

    def __init__(self, search_loop: SearchLoop, trial: AskedTrial, recipe: Recipe, sampling_seconds: float):
        self._search_loop = search_loop
        name = f"{trial.number:03d} {recipe.label}"
        tags = _run_tags(search_loop.study_store, trial)
        super().__init__(
            name,
            recipe,
            search_loop.images,
            TrainingRunLogger.start(
                search_loop.context.sender, name, recipe, search_loop.parameter_names, tags, search_loop.study_run
            ),
            search_loop.context,
            search_loop.stopper,
        )
        self._trial = trial
        self._record: TrialRecord | None = None
        self._sampling_seconds = sampling_seconds
        self._started_at = time.monotonic()
        self._timed_out = False

    def decide(self, report: EpochReport) -> Decision:
        """What the pruner says, the trial's own limit of time, and then the observer."""
        started = time.monotonic()
        advised = self._search_loop.study_store.should_prune(self._trial, report)
        self._sampling_seconds += time.monotonic() - started
        if advised:
            return Decision.PRUNE
        limit = self._search_loop.study_store.config.budget.trial_minutes or math.inf
        self._timed_out = time.monotonic() - self._started_at >= limit * 60
        return Decision.PRUNE if self._timed_out else super().decide(report)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Tell Optuna, complete the record, and keep the weights of a trial that completed."""
        if self._timed_out and result.state is TrialState.PRUNED:
            limit = self._search_loop.study_store.config.budget.trial_minutes
            reason = f"its {limit:g} minutes were spent after epoch {len(result.epochs)}"
            result = dataclasses.replace(result, reason=reason)
        overhead = trial_overhead(result, seconds, self._sampling_seconds)
        row = self._tell(result, overhead)
        self.close(result, overhead)
        if result.state is TrialState.COMPLETED and result.weights:
            save_state(
                self._search_loop.workspace.weights_path(self._search_loop.study_store.config.name, row.number),
                result.weights,
            )
        self._search_loop.on_job_ended(self, row)

    def on_worker_lost(self, reason: str) -> None:
        """The worker has died over it: failed, and once tried again."""
        result = self.partial_result(TrialState.FAILED, reason)
        row = self._tell(result, worker_lost=True)
        self.close(result)
        if row.comes_again:
            self._search_loop.context.callback.on_message(f"{self.name}: {reason}; it is tried again")
        self._search_loop.on_job_ended(self, row)

    def interrupt(self, reason: str) -> TrialRecord:
        """It is not waited for; it comes again when the study goes on, unless it was told before the study stopped."""
        if self._record:
            return self._record
        result = self.partial_result(TrialState.INTERRUPTED, reason)
        row = self._tell(result)
        self.close(result)
        return row

    def _tell(self, result: TrialResult, overhead: Overhead = Overhead(), *, worker_lost: bool = False) -> TrialRecord:  # noqa: B008
        self._record = self._search_loop.study_store.tell(
            self._trial, result, self.run.ref.stored, overhead, worker_lost=worker_lost
        )
        return self._record


def _run_tags(study_store: StudyStore, trial: AskedTrial) -> dict[str, str]:
    assert study_store.runtime is not None
    tags = {
        tag_names.STUDY: study_store.config.name,
        tag_names.KIND: tag_names.TRIAL_RUN,
        tag_names.TRIAL: str(trial.number),
        tag_names.DEVICE: study_store.runtime.execution.device,
    }
    return {**tags, **trial.origin}


def _can_answer(record: TrialRecord) -> bool:
    """Whether a later equal recipe can be answered from this trial."""
    return (
        record.state in (TrialState.COMPLETED, TrialState.PRUNED)
        and record.value is not None
        and record.duplicate_of is None
    )
