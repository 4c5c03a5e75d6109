"""The limits at which a study stops."""

from __future__ import annotations

from collections.abc import Iterable

from fmnist_search.config.sections import Budget
from fmnist_search.results.study import StopReason, TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.search.study_store import StudyStore


class SpentBudget:
    """What the trials that have ended count against a budget, kept up to date with each of them.

    A trial that goes on or is repeated counts nothing, nor does one that reuses the result of another. The epochs of a
    trial that is paused, or goes on after that, count.
    """

    def __init__(self, records: Iterable[TrialRecord] = ()):
        self.failures = 0
        self.trials = 0
        self._ended_epochs = 0
        self._paused_epochs: dict[int, int] = {}
        self.best_value = 0.0
        self.trials_since_best = 0
        """Trials that have begun and ended, or were paused, since the last one became the best; all if none has."""
        self._counted: set[int] = set()
        self._has_best = False
        for record in records:
            self.add(record)

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return self._ended_epochs + sum(self._paused_epochs.values())

    def add(self, record: TrialRecord) -> None:
        """Count a trial; in the order in which they have ended."""
        if record.duplicate_of is not None:
            return
        self.failures += record.state is TrialState.FAILED
        if record.state is TrialState.PAUSED:
            self._paused_epochs[record.number] = record.epochs
        if record.number not in self._counted and (record.is_final or record.state is TrialState.PAUSED):
            self._counted.add(record.number)
            self.trials_since_best += 1
        if not record.is_final:
            return
        self._paused_epochs.pop(record.number, None)
        value = record.value or 0.0
        if record.state is TrialState.COMPLETED and (not self._has_best or value > self.best_value):
            self.best_value, self._has_best, self.trials_since_best = value, True, 0
        self.trials += 1
        self._ended_epochs += record.epochs


def reached_limit(
    budget: Budget, spent: SpentBudget, seconds: float, running: int = 0, losses: int = 0
) -> StopReason | None:
    """Return the first limit of the budget that is reached, or None.

    `seconds` is the time spent searching, and `running` the number of trials that were asked and have not ended; these
    count against the budget of trials. `losses` are the workers that were lost by no fault of their trials.
    """
    values = {
        StopReason.FAILURES: (spent.failures, budget.failures),
        StopReason.LOSSES: (losses, budget.losses or None),
        StopReason.TARGET: (spent.best_value, budget.target),
        StopReason.TRIALS: (spent.trials + running, budget.trials),
        StopReason.EPOCHS: (spent.epochs, budget.total_epochs),
        StopReason.MINUTES: (seconds / 60, budget.minutes),
        StopReason.PATIENCE: (spent.trials_since_best, budget.patience),
    }
    return next((reason for reason, (value, limit) in values.items() if limit is not None and value >= limit), None)


def current_stop_reason(study_store: StudyStore) -> StopReason:
    """Return which limit a study that does not run has reached, or `StopReason.OPEN`."""
    reason = reached_limit(
        study_store.config.budget,
        SpentBudget(study_store.trial_records()),
        study_store.searched_seconds,
        losses=study_store.worker_losses,
    )
    return reason or (StopReason.EXHAUSTED if study_store.is_exhausted else StopReason.OPEN)
