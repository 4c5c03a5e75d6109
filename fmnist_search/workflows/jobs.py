"""Jobs: trainings with a run in MLflow each, one or several at a time."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fmnist_search.config.sections import DEFAULT_LOSSES
from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.execution.backend import Backend
from fmnist_search.execution.job import LossCause
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import network_size
from fmnist_search.reporting.tables import class_scores_csv
from fmnist_search.results.training import Decision, EpochReport, Overhead, Stopper, TrialResult, TrialState, never_stop
from fmnist_search.tracking import tag_names
from fmnist_search.tracking.renderers import CONFUSION, SUMMARY
from fmnist_search.tracking.sender import NullSender, Sender
from fmnist_search.tracking.training_run_logger import TrainingRunLogger
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.interruption import Interruption
from fmnist_search.workflows.settings import TrackingOptions


@dataclass(frozen=True)
class JobContext:
    """What all jobs of a workflow share.

    With `plots` false, no figures are rendered. `flush_timeout` is that of `TrackingOptions`.
    `check_requests` is called after each epoch and before each training, and may request the interruption.
    """

    sender: Sender | NullSender
    callback: StudyCallback
    interruption: Interruption
    plots: bool = True
    flush_timeout: float = TrackingOptions.flush_timeout
    check_requests: Callable[[], None] = lambda: None

    def flush(self) -> bool:
        """Wait until MLflow has every event; return False, with a message, if that fails."""
        delivered = self.sender.flush(self.flush_timeout, lambda: self.interruption.is_requested)
        if not delivered:
            self.callback.on_message(
                f"MLflow has not received everything: {self.sender.problem}; the rest is kept, and `fmnist-search "
                "sync` sends it later"
            )
        return delivered


class TrackedJob:
    """A training with a run in MLflow. The worker never waits for MLflow.

    The stopper decides after each epoch; an interruption stops a training that would continue.
    """

    worker = 0
    worker_name = "0"
    checkpoint: Mapping[str, Any] | None = None
    checkpoint_seconds: float | None = None

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        images: Images,
        run: TrainingRunLogger,
        context: JobContext,
        stopper: Stopper = never_stop,
    ):
        self.name = name
        self.recipe = recipe
        self.images = images
        self.run = run
        self.result: TrialResult | None = None
        self._reports: list[EpochReport] = []
        self._context = context
        self._stopper = stopper
        context.callback.on_training_start(name, recipe)

    def on_epoch(self, report: EpochReport) -> Decision:
        """Log an epoch, and return whether the training continues."""
        self._reports.append(report)
        self._context.check_requests()
        decision = self.decide(report)
        if decision is Decision.CONTINUE and self._context.interruption.is_requested:
            decision = Decision.INTERRUPT
        self.run.log_epoch(report, is_last=decision is not Decision.CONTINUE or report.epoch == self.recipe.epochs)
        self._context.callback.on_epoch_end(self.name, report)
        return decision

    def on_checkpoint(self, content: bytes) -> None:
        """Do nothing: the job takes no checkpoints."""

    def decide(self, report: EpochReport) -> Decision:
        """Return the stopper's decision."""
        return self._stopper(report)

    def replay_epochs(self, reports: Sequence[EpochReport]) -> None:
        """Log the epochs that were trained before the training was resumed, unless the run has them."""
        for report in reports:
            self._reports.append(report)
            self.run.log_epoch(report, is_last=False)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Handle the result, `seconds` after the worker was given the job."""
        self.close(result, trial_overhead(result, seconds))

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        """Close the job as failed because its worker ended."""
        self.close(self.partial_result(TrialState.FAILED, reason))

    def partial_result(self, state: TrialState, reason: str) -> TrialResult:
        """Return the result of a training that was ended from outside, with the epochs that it reported."""
        seconds = sum(report.seconds for report in self._reports)
        return TrialResult(state, tuple(self._reports), seconds, reason=reason)

    def close(
        self,
        result: TrialResult,
        overhead: Overhead = Overhead(),  # noqa: B008
        outcome: Mapping[str, Any] | None = None,
    ) -> None:
        """Log the result and end the run; `outcome` is stored with its last events."""
        self.result = result = self.with_network_size(result)
        with self.run.transaction():
            self._log_artifacts(result)
            self.run.finish(result, overhead, {tag_names.WORKER: self.worker_name}, outcome)
        self._context.callback.on_training_end(self.name)

    def with_network_size(self, result: TrialResult) -> TrialResult:
        """Return a result with the size of the network; as it is if no epoch ended, and the network may be refused."""
        if not result.epochs:
            return result
        size = network_size(self.recipe.model, self.recipe.data.num_classes)
        return dataclasses.replace(result, parameters=result.parameters or size.parameters, mult_adds=size.mult_adds)

    def suspend(self, result: TrialResult) -> None:
        """End a training that goes on later in the same run."""
        self.result = result
        self.run.suspend(result.state, result.reason or "")
        self._context.callback.on_training_end(self.name)

    def _log_artifacts(self, result: TrialResult) -> None:
        run, recipe, classes = self.run, self.recipe, list(self.images.classes)
        if result.error:
            run.log_text("error.txt", result.error)
        if result.epochs:
            run.render_later("model_summary.txt", SUMMARY, {"recipe": recipe.to_flat_dict()})
        if result.confusion:
            matrix = {"classes": classes, "rows_true_columns_predicted": result.confusion}
            run.log_text("confusion_matrix.json", json.dumps(matrix))
            run.log_text("class_scores.csv", class_scores_csv(result.confusion, classes))
            if result.state is TrialState.COMPLETED and self._context.plots:
                accuracy = "" if result.value is None else f": {result.value:.2%} on validation"
                data = {"confusion": result.confusion, "classes": classes, "title": recipe.label + accuracy}
                run.render_later("confusion_matrix.png", CONFUSION, data)


Requeue = Callable[[LossCause], bool]
"""Queues the recipe of a job again whose worker was lost; returns False if it may not be trained again."""


class RetryingJob(TrackedJob):
    """One of several jobs of `run_jobs`. If its worker is lost, `requeue` queues its recipe again."""

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        images: Images,
        run: TrainingRunLogger,
        context: JobContext,
        requeue: Requeue,
    ):
        super().__init__(name, recipe, images, run, context)
        self._requeue = requeue

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Handle the result, with a message."""
        super().on_result(result, seconds)
        outcome = f"{result.value:.2%} on validation" if result.value is not None else result.state.value
        self._context.callback.on_message(f"{self.name}: {outcome}")

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        """Close the job as failed, and queue its recipe again if it may be retried."""
        super().on_worker_lost(reason, cause)
        is_queued = self._requeue(cause)
        self._context.callback.on_message(f"{self.name}: {reason}{'; it is tried again' if is_queued else ''}")


JobFactory = Callable[[str, Recipe, Requeue], RetryingJob]
"""Opens the run of a training and returns its job."""


def run_jobs(
    named_recipes: Sequence[tuple[str, Recipe]],
    backend: Backend,
    context: JobContext,
    make_job: JobFactory,
    max_losses: int = DEFAULT_LOSSES,
) -> list[RetryingJob | None]:
    """Run recipes, each with a unique name, on all workers of the backend; return their jobs in the given order.

    A recipe whose worker is lost is trained again: once, or as often as the infrastructure was to blame. None stands
    for a recipe that was not trained because of an interruption, or whose second attempt was not started because of it.

    Raises:
        UserError: if the infrastructure has ended `max_losses` workers; with 0 there is no limit.
    """
    queue = deque(named_recipes)
    jobs: dict[str, RetryingJob] = {}
    failed_attempts: Counter[str] = Counter()
    losses = 0

    def requeue(name: str, recipe: Recipe, cause: LossCause) -> bool:
        nonlocal losses
        if cause is LossCause.INFRASTRUCTURE:
            losses += 1
        else:
            failed_attempts[name] += 1
        if failed_attempts[name] > 1:
            return False
        queue.append((name, recipe))
        return True

    def next_job() -> RetryingJob | None:
        context.check_requests()
        if context.interruption.is_requested or not queue:
            return None
        if max_losses and losses >= max_losses:
            raise UserError(
                f"budget.losses: {losses} workers were lost with their machines while finalists trained; run the same "
                "command again to go on, or allow more",
                exit_code=4,
            )
        name, recipe = queue.popleft()
        jobs[name] = make_job(name, recipe, partial(requeue, name, recipe))
        return jobs[name]

    try:
        backend.run(next_job)
    except KeyboardInterrupt:
        backend.stop()
        _interrupt_unfinished(jobs.values(), "interrupted in the middle of an epoch")
        context.interruption.request()
    except BaseException:
        backend.stop()
        _interrupt_unfinished(jobs.values(), "another training stopped on an error")
        raise
    for name, _ in queue:
        jobs.pop(name, None)
    return [jobs.get(name) for name, _ in named_recipes]


def _interrupt_unfinished(jobs: Iterable[RetryingJob], reason: str) -> None:
    for job in jobs:
        if job.result is None:
            job.close(job.partial_result(TrialState.INTERRUPTED, reason))


def trial_overhead(result: TrialResult, seconds: float, sampling: float = 0.0, resumed_epochs: int = 0) -> Overhead:
    """Return the overhead of a training that took `seconds` in all, without its first `resumed_epochs`.

    `sampling` are Optuna's seconds of these.
    """
    trained = sum(report.seconds for report in result.epochs[resumed_epochs:])
    setup = result.setup
    return Overhead(seconds - trained, setup.build_seconds, setup.capture_seconds, sampling)


def not_started(reason: str) -> TrialResult:
    """Return the result of a training that was never started."""
    return TrialResult(TrialState.INTERRUPTED, (), 0.0, reason=reason)
