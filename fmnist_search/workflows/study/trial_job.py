"""The training of one trial of a search."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.execution.job import LossCause
from fmnist_search.processes import process_identity
from fmnist_search.results.own_costs import compute_cost
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import (
    Decision,
    EpochReport,
    Overhead,
    Stopper,
    TrialResult,
    TrialState,
)
from fmnist_search.search.asked_trial import AskedTrial
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import displayed_names
from fmnist_search.search.trial_attributes import outcome_attribute
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.training_run_logger import TrainingRunLogger, new_run_key
from fmnist_search.training.checkpoint import save_state
from fmnist_search.training.trial_checkpoints import TrialCheckpoints
from fmnist_search.workflows.jobs import JobContext, TrackedJob, trial_overhead
from fmnist_search.workflows.study.network_budget import slow_epoch
from fmnist_search.workflows.study.requests import STOPPED, StudyRequests
from fmnist_search.workspace import Workspace


@dataclass(frozen=True)
class SearchContext:
    """What all trials of a search share; `parameter_names` are the hyperparameters that the runs of all of them log."""

    study_store: StudyStore
    workspace: Workspace
    checkpoints: TrialCheckpoints
    images: Images
    study_run: RunLogger
    job_context: JobContext
    stopper: Stopper
    requests: StudyRequests
    parameter_names: Sequence[str]


class TrialJob(TrackedJob):
    """A trial: its run in MLflow, the decisions after each epoch, its checkpoints, and its end in Optuna's storage.

    A trial that was interrupted or paused goes on from its last checkpoint, in its run. `on_end` is called once the
    trial has been told, unless it was ended by `interrupt`. `may_pause` tells whether another one may take its place.
    """

    def __init__(
        self,
        search: SearchContext,
        asked: AskedTrial,
        sampling_seconds: float,
        on_end: Callable[[TrialJob, TrialRecord], None],
        may_pause: Callable[[], bool],
    ):
        name = f"{asked.number:03d} {asked.recipe.label}"
        run = _open_run(search, asked, name)
        super().__init__(name, asked.recipe, search.images, run, search.job_context, search.stopper)
        self.asked = asked
        self.key = asked.recipe.seed_independent_key()
        self.checkpoint_seconds = search.study_store.config.execution.checkpoint_seconds
        self._study_store = search.study_store
        self._workspace = search.workspace
        self._checkpoints = search.checkpoints
        self._on_end = on_end
        self._may_pause = may_pause
        self._record: TrialRecord | None = None
        self._sampling_seconds = sampling_seconds
        self._started_at = time.monotonic()
        self._timed_out = False
        self._requests = search.requests
        self._slow_epoch: str | None = None
        if asked.curve:
            self._load_checkpoint()

    def _load_checkpoint(self) -> None:
        """Let the training go on from the trial's last checkpoint, if it has one that can be used."""
        assert self._study_store.runtime is not None
        execution = self._study_store.runtime.execution
        self.checkpoint = self._checkpoints.load(
            self.asked.number, self.recipe, execution, self.images, self._report_problem
        )
        if self.checkpoint:
            self._started_at -= self.checkpoint["seconds"]
            self.replay_epochs([EpochReport(**report) for report in self.checkpoint["epochs"]])

    def decide(self, report: EpochReport) -> Decision:
        """Return the decision of a user, of the scheduler, of the trial's time limits, and of the stopper."""
        started = time.monotonic()
        decision = self._study_store.decide(self.asked, report)  # checks the lease: the run is logged next
        self._sampling_seconds += time.monotonic() - started
        self._slow_epoch = self._slow_epoch or slow_epoch(report, self._study_store.config.budget.max_seconds_per_epoch)
        if self._slow_epoch or self.asked.number in self._requests.stopped_trials:
            return Decision.PRUNE
        if decision is Decision.PAUSE and not self._may_pause():
            decision = Decision.CONTINUE
        if decision is not Decision.CONTINUE:
            return decision
        limit = self._study_store.config.budget.trial_minutes or math.inf
        self._timed_out = time.monotonic() - self._started_at >= limit * 60
        return Decision.PRUNE if self._timed_out else super().decide(report)

    def on_checkpoint(self, content: bytes) -> None:
        """Write the checkpoint; if that fails, the training goes on without."""
        self._study_store.check_lease()
        self._checkpoints.save_if_possible(self.asked.number, content, self._report_problem)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Store the result, and save the weights of a completed trial."""
        if self._timed_out and result.state is TrialState.PRUNED:
            limit = self._study_store.config.budget.trial_minutes
            reason = f"its {limit:g} minutes were spent after epoch {len(result.epochs)}"
            result = dataclasses.replace(result, reason=reason)
        if self.asked.number in self._requests.stopped_trials and result.state is TrialState.PRUNED:
            result = dataclasses.replace(result, reason=f"{STOPPED} after epoch {len(result.epochs)}")
        if self._slow_epoch and result.state.is_final and result.state is not TrialState.FAILED:
            # Also if that epoch was the last one, after which the training does not ask.
            result = dataclasses.replace(result, state=TrialState.PRUNED, reason=self._slow_epoch)
        if result.state is TrialState.INTERRUPTED:  # the stopper interrupts the study, not one trial
            self._context.interruption.request()
        resumed_epochs = len(self.checkpoint["epochs"]) if self.checkpoint else 0
        self._end(result, trial_overhead(result, seconds, self._sampling_seconds, resumed_epochs))

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        """Let the trial wait to go on.

        It has failed if it came no further than when it lost a worker before, unless the infrastructure is to blame.
        """
        epochs, before = len(self._reports), self.asked.epochs_at_loss
        if cause is LossCause.INFRASTRUCTURE:
            self._study_store.count_worker_loss()
        elif before is not None and epochs <= before:
            self._end(self.partial_result(TrialState.FAILED, f"{reason}, again in epoch {epochs + 1}"))
            return
        else:
            self._study_store.mark_worker_lost(self.asked, epochs)
        self._context.callback.on_message(f"{self.name}: {reason}; it goes on from its last checkpoint")
        self._end(self.partial_result(TrialState.INTERRUPTED, reason))

    def prune(self, reason: str) -> None:
        """End a trial that was paused and does not go on."""
        self._end(self.partial_result(TrialState.PRUNED, reason))

    def interrupt(self, reason: str) -> TrialRecord:
        """Let a trial wait to go on that is not trained to its end, and return its record.

        A trial that was told before keeps its record.
        """
        if self._record is None:
            self._record = self._store(self.partial_result(TrialState.INTERRUPTED, reason))
        return self._record

    def _end(self, result: TrialResult, overhead: Overhead = Overhead()) -> None:  # noqa: B008
        self._record = self._store(result, overhead)
        self._on_end(self, self._record)

    def _store(self, result: TrialResult, overhead: Overhead = Overhead()) -> TrialRecord:  # noqa: B008
        """Store how the training ended, and return the trial's record.

        Optuna is told last: if this process dies before, the next search finds the weights and the events of the run,
        with the outcome, and tells Optuna.
        """
        self._study_store.check_lease()
        result, run_id = self.with_network_size(result), self.run.ref.stored
        if not result.state.is_final:
            self.suspend(result)
            return self._study_store.tell(self.asked, result, run_id, overhead)
        result = self._with_cost(result)
        if result.state is TrialState.COMPLETED and result.weights:
            path = self._workspace.weights_path(self._study_store.config.name, self.asked.number)
            save_state(path, result.weights)
        self.close(result, overhead, outcome_attribute(result, run_id, overhead))
        record = self._study_store.tell(self.asked, result, run_id, overhead)
        self._checkpoints.remove(self.asked.number)
        self._context.sender.forget_progress(self.run.run_key)
        return record

    def _with_cost(self, result: TrialResult) -> TrialResult:
        """Return the result with the cost that the study minimizes; a failed one if it cannot be computed."""
        metric = self._study_store.config.objective.cost
        if result.state is not TrialState.COMPLETED or not metric:
            return result
        try:
            return dataclasses.replace(result, cost=compute_cost(self.recipe, result, metric))
        except UserError as error:
            return dataclasses.replace(result, state=TrialState.FAILED, reason=str(error))

    def _report_problem(self, problem: str) -> None:
        self._context.callback.on_message(f"{self.name}: {problem}")


def _open_run(search: SearchContext, asked: AskedTrial, name: str) -> TrainingRunLogger:
    """Start the run of a trial, or let the run go on that the trial has begun."""
    store = search.study_store
    assert store.runtime is not None
    tags = {
        tag_names.STUDY: store.config.name,
        tag_names.KIND: tag_names.TRIAL_RUN,
        tag_names.TRIAL: str(asked.number),
        tag_names.PROCESS: process_identity(),
        tag_names.DEVICE: store.runtime.execution.device,
        **asked.origin,
    }
    sender, parent = search.job_context.sender, search.study_run
    names = list(search.parameter_names)
    if asked.origin:  # what the sampler draws is in the space
        names += [own for own in displayed_names(store.config, [asked.recipe]) if own not in names]
    arguments = (name, asked.recipe, names, tags, parent)
    if asked.run_key:
        return TrainingRunLogger.resume(sender, asked.run_key, *arguments, images=search.images)
    run_key = new_run_key(parent, name) if parent.is_recorded else None
    if run_key:
        store.save_run_key(asked, run_key)
    return TrainingRunLogger.start(sender, *arguments, run_key=run_key, images=search.images)
