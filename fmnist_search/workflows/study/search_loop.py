"""The search of a study: trials are asked, trained and told until a limit is reached."""

from __future__ import annotations

import math
import time
from collections.abc import Container

from fmnist_search.execution.backend import Backend
from fmnist_search.results.study import PAUSED_AT_END, StopReason, TrialRecord
from fmnist_search.results.training import TrialResult
from fmnist_search.search.asked_trial import AskedTrial
from fmnist_search.search.lease import LeaseLost
from fmnist_search.workflows.jobs import not_started
from fmnist_search.workflows.study.network_budget import NetworkBudget
from fmnist_search.workflows.study.requests import STOPPED
from fmnist_search.workflows.study.run_logging import StudyRunLogger
from fmnist_search.workflows.study.search_progress import SearchProgress
from fmnist_search.workflows.study.stopping import reached_limit
from fmnist_search.workflows.study.trial_job import SearchContext, TrialJob

SAVE_SECONDS = 1.0
"""The time spent searching is stored at the end of a trial, but not more often than this."""

ENDS_PAUSED = {
    StopReason.TARGET,
    StopReason.TRIALS,
    StopReason.EPOCHS,
    StopReason.MINUTES,
    StopReason.PATIENCE,
    StopReason.EXHAUSTED,
    StopReason.REFUSED,
}
"""Limits after which trials that are paused do not go on: they are pruned. After all others they stay paused."""

MAX_CONSECUTIVE_DUPLICATES = 50
"""After as many duplicates in a row the space counts as exhausted."""


class PendingDuplicates:
    """Asked trials whose recipes are being trained by other trials, in the order in which they were asked."""

    def __init__(self) -> None:
        self._trials: list[tuple[str, AskedTrial]] = []

    def __len__(self) -> int:
        return len(self._trials)

    def add(self, asked: AskedTrial) -> None:
        """Add a trial."""
        self._trials.append((asked.recipe.seed_independent_key(), asked))

    def pop_resolved(self, running: Container[str], answered: Container[str] | None = None) -> AskedTrial | None:
        """Remove and return the first trial whose recipe is no longer `running`; None if there is none.

        If `answered` is given, the recipe must be in it. Both hold keys of recipes.
        """
        for place, (key, _) in enumerate(self._trials):
            if key not in running and (answered is None or key in answered):
                return self._trials.pop(place)[1]
        return None

    def pop_all(self) -> list[AskedTrial]:
        """Remove and return all trials."""
        trials, self._trials = self._trials, []
        return [asked for _, asked in trials]


class SearchLoop:
    """The trials of a search, ended and running."""

    def __init__(self, search: SearchContext, study_logger: StudyRunLogger):
        self._search = search
        self._study_store = search.study_store
        self._context = search.job_context
        self._study_logger = study_logger
        records = search.study_store.trial_records()
        self._progress = SearchProgress(records)
        self._networks = NetworkBudget(search.study_store.config, records)
        if self._networks.has_limits:
            search.study_store.filter_recipes(self._networks.accepts)
        self._running: dict[str, TrialJob] = {}
        self._pending = PendingDuplicates()
        self._consecutive_duplicates = 0
        self._run_keys: list[str] = []
        self._previous_seconds = search.study_store.searched_seconds
        self._started_at = time.monotonic()
        self._saved_at = -math.inf

    def run(self, backend: Backend) -> StopReason:
        """Search until a limit is reached or an interruption is requested, and return the reason.

        Trials that run when the limit is reached are trained to their ends.
        """
        self._context.callback.on_study_start(self._progress.records, self._previous_seconds)
        try:
            backend.run(self._next_job)
        except KeyboardInterrupt:
            self._context.interruption.request()
            self._abort(backend, "interrupted in the middle of an epoch")
        except LeaseLost:
            backend.stop()  # another process drives the study now: nothing is stored any more
            raise
        except BaseException:
            self._abort(backend, "the study stopped on an error")
            raise
        self._return_pending("an equal trial was interrupted")
        reason = self._stop_reason() or StopReason.INTERRUPTED
        if reason in ENDS_PAUSED:
            self._end_paused()
        self._save_seconds()
        return reason

    @property
    def tracking_seconds(self) -> float:
        """Seconds that MLflow took for the runs of these trials."""
        return sum(map(self._context.sender.tracking_seconds, self._run_keys))

    def _next_job(self) -> TrialJob | None:
        """Return the next trial to train; None if there is none at the moment."""
        while True:
            started = time.monotonic()
            asked = self._next_asked()
            if asked is None:
                return None
            key = asked.recipe.seed_independent_key()
            answer = None if asked.is_survivor else self._progress.answers.get(key)
            if key not in self._running and answer is None:
                if refused := self._networks.judge(asked):
                    self._end_refused(asked, refused)
                    continue
                self._consecutive_duplicates = 0
                return self._start_job(asked, time.monotonic() - started)
            self._consecutive_duplicates += 1
            if key in self._running:
                self._pending.add(asked)
            elif answer:
                self._progress.add(self._study_store.tell_duplicate(asked, answer))

    def _next_asked(self) -> AskedTrial | None:
        """Return a duplicate whose equal trial has ended, or ask for a new trial unless the search stops or waits."""
        self._search.requests.enqueue_recipes(self._study_store)
        for number in self._search.requests.stopped_trials:
            if self._progress.is_paused(number):
                self._start_job(self._study_store.resume(number), 0.0).prune(STOPPED)
        # After an interruption nothing is trained any more, but known results still answer duplicates.
        answered = self._progress.answers if self._context.interruption.is_requested else None
        resolved = self._pending.pop_resolved(self._running, answered)
        if resolved or self._study_store.waits_for_running or not self._may_ask():
            return resolved
        return self._study_store.ask(at_random=self._networks.samples_at_random)

    def _end_refused(self, asked: AskedTrial, refused: TrialResult) -> None:
        record = self._study_store.tell(asked, refused, "")
        self._progress.add(record)
        self._context.callback.on_trial_end(record)

    def _may_ask(self) -> bool:
        reason = self._stop_reason()
        if reason is StopReason.TRIALS and self._progress.paused:  # no more begin, and those that are paused go on
            return self._may_pause() and self._study_store.resumes_next
        return reason is None

    def _may_pause(self) -> bool:
        """Return whether a trial may be paused for another: no limit is reached but that of trials.

        An interruption is no reason against it: what the search would have paused is paused when it goes on.
        """
        return self._reached_limit(counts_trials=False) is None

    def _start_job(self, asked: AskedTrial, sampling_seconds: float) -> TrialJob:
        try:
            job = TrialJob(self._search, asked, sampling_seconds, self._on_job_ended, self._may_pause)
        except BaseException:  # its run cannot be recorded: the trial is queued again
            self._pending.add(asked)
            raise
        self._progress.remove(asked.number)  # a trial that goes on has not ended any more
        self._running[job.key] = job
        self._run_keys.append(job.run.run_key)
        return job

    def _on_job_ended(self, job: TrialJob, record: TrialRecord) -> None:
        del self._running[job.key]
        self._progress.add(record)
        self._networks.add(record)
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save_seconds()
        self._context.callback.on_trial_end(record)
        self._study_logger.log_progress(self._progress)

    def _stop_reason(self) -> StopReason | None:
        return StopReason.INTERRUPTED if self._context.interruption.is_requested else self._reached_limit()

    def _reached_limit(self, *, counts_trials: bool = True) -> StopReason | None:
        asked = len(self._running) + len(self._pending) + self._progress.paused
        store, spent = self._study_store, self._progress.spent
        budget = store.config.budget if counts_trials else store.config.budget.model_copy(update={"trials": None})
        reason = reached_limit(budget, spent, self._searched_seconds(), asked, store.worker_losses)
        if reason is None and (
            self._consecutive_duplicates >= MAX_CONSECUTIVE_DUPLICATES or self._study_store.is_exhausted
        ):
            return StopReason.EXHAUSTED
        return StopReason.REFUSED if reason is None and self._networks.is_spent else reason

    def _end_paused(self) -> None:
        numbers = self._study_store.paused_to_end()
        for number in numbers:
            self._start_job(self._study_store.resume(number), 0.0).prune(PAUSED_AT_END)
        if numbers:
            name = self._study_store.config.name
            self._context.callback.on_message(f"{name}: trials that were paused and end as pruned: {len(numbers)}")

    def _abort(self, backend: Backend, reason: str) -> None:
        """Stop the workers at once, and let all running trials and pending duplicates wait to go on."""
        backend.stop()
        for key in list(self._running):
            self._progress.add(self._running.pop(key).interrupt(reason))
        self._return_pending(reason)

    def _return_pending(self, reason: str) -> None:
        """Let the duplicates wait whose equal trials gave no result."""
        for asked in self._pending.pop_all():
            self._progress.add(self._study_store.tell(asked, not_started(reason), ""))

    def _searched_seconds(self) -> float:
        return self._previous_seconds + time.monotonic() - self._started_at

    def _save_seconds(self) -> None:
        self._saved_at = time.monotonic()
        self._study_store.searched_seconds = self._searched_seconds()
