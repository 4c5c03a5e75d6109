"""The training of one trial of a search."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fmnist_search.data.images import Images
from fmnist_search.processes import process_identity
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import Decision, EpochReport, Overhead, Stopper, TrialResult, TrialState
from fmnist_search.search.asked_trial import AskedTrial
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.training_run_logger import TrainingRunLogger
from fmnist_search.training.checkpoint import save_state
from fmnist_search.workflows.jobs import JobContext, TrackedJob, trial_overhead
from fmnist_search.workspace import Workspace


@dataclass(frozen=True)
class SearchContext:
    """What all trials of a search share; `parameter_names` are the hyperparameters that their runs log."""

    study_store: StudyStore
    workspace: Workspace
    images: Images
    study_run: RunLogger
    job_context: JobContext
    stopper: Stopper
    parameter_names: Sequence[str]


class TrialJob(TrackedJob):
    """A trial: its run in MLflow, the decisions after each epoch, and its end in Optuna's storage.

    `on_end` is called once the trial has been told, unless it was ended by `interrupt`.
    """

    def __init__(
        self,
        search: SearchContext,
        asked: AskedTrial,
        sampling_seconds: float,
        on_end: Callable[[TrialJob, TrialRecord], None],
    ):
        name = f"{asked.number:03d} {asked.recipe.label}"
        run = _start_run(search, asked, name)
        super().__init__(name, asked.recipe, search.images, run, search.job_context, search.stopper)
        self.asked = asked
        self.key = asked.recipe.seed_independent_key()
        self._study_store = search.study_store
        self._workspace = search.workspace
        self._on_end = on_end
        self._record: TrialRecord | None = None
        self._sampling_seconds = sampling_seconds
        self._started_at = time.monotonic()
        self._timed_out = False

    def decide(self, report: EpochReport) -> Decision:
        """Return the decision of the pruner, then of the trial's time limit, then of the stopper."""
        started = time.monotonic()
        pruned = self._study_store.should_prune(self.asked, report)
        self._sampling_seconds += time.monotonic() - started
        if pruned:
            return Decision.PRUNE
        limit = self._study_store.config.budget.trial_minutes or math.inf
        self._timed_out = time.monotonic() - self._started_at >= limit * 60
        return Decision.PRUNE if self._timed_out else super().decide(report)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Tell Optuna the result, end the run, and save the weights of a completed trial."""
        if self._timed_out and result.state is TrialState.PRUNED:
            limit = self._study_store.config.budget.trial_minutes
            reason = f"its {limit:g} minutes were spent after epoch {len(result.epochs)}"
            result = dataclasses.replace(result, reason=reason)
        overhead = trial_overhead(result, seconds, self._sampling_seconds)
        record = self._tell(result, overhead)
        self.close(result, overhead)
        if result.state is TrialState.COMPLETED and result.weights:
            path = self._workspace.weights_path(self._study_store.config.name, record.number)
            save_state(path, result.weights)
        self._on_end(self, record)

    def on_worker_lost(self, reason: str) -> None:
        """Tell Optuna that the trial has failed; the first time, its recipe is queued again."""
        result = self.partial_result(TrialState.FAILED, reason)
        record = self._tell(result, worker_lost=True)
        self.close(result)
        if record.will_retry:
            self._context.callback.on_message(f"{self.name}: {reason}; it is tried again")
        self._on_end(self, record)

    def interrupt(self, reason: str) -> TrialRecord:
        """Return the record of a trial that is not trained to its end; it is queued again.

        A trial that was told before keeps its record.
        """
        if self._record:
            return self._record
        result = self.partial_result(TrialState.INTERRUPTED, reason)
        record = self._tell(result)
        self.close(result)
        return record

    def _tell(self, result: TrialResult, overhead: Overhead = Overhead(), *, worker_lost: bool = False) -> TrialRecord:  # noqa: B008
        run = self.run.ref.stored
        self._record = self._study_store.tell(self.asked, result, run, overhead, worker_lost=worker_lost)
        return self._record


def _start_run(search: SearchContext, asked: AskedTrial, name: str) -> TrainingRunLogger:
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
    return TrainingRunLogger.start(sender, name, asked.recipe, search.parameter_names, tags, parent)
