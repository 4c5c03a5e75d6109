"""The limits at which a study stops."""

from __future__ import annotations

from collections.abc import Sequence

from fmnist_search.config.sections import Budget
from fmnist_search.results.study import StopReason, TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.search.study_store import StudyStore


def reached_limit(
    budget: Budget, records: Sequence[TrialRecord], seconds: float, running: int = 0, losses: int = 0
) -> StopReason | None:
    """Return the first limit of the budget that is reached, or None.

    `records` are the trials that ended, `seconds` the time spent searching, and `running` the number of trials that
    were asked and have not ended; these count against the budget of trials. `losses` are the workers that were lost by
    no fault of their trials.
    """
    counted = [record for record in records if record.is_final and record.duplicate_of is None]
    failures = sum(record.state is TrialState.FAILED and record.duplicate_of is None for record in records)
    values = {
        StopReason.FAILURES: (failures, budget.failures),
        StopReason.LOSSES: (losses, budget.losses or None),
        StopReason.TARGET: (_best(counted)[0], budget.target),
        StopReason.TRIALS: (len(counted) + running, budget.trials),
        StopReason.EPOCHS: (sum(record.epochs for record in counted), budget.total_epochs),
        StopReason.MINUTES: (seconds / 60, budget.minutes),
        StopReason.PATIENCE: (_best(counted)[1], budget.patience),
    }
    return next((reason for reason, (value, limit) in values.items() if limit is not None and value >= limit), None)


def _best(records: Sequence[TrialRecord]) -> tuple[float, int]:
    """Return the best value of the completed trials, and the number of trials since its first occurrence."""
    values = [
        (record.value or 0.0, -position)
        for position, record in enumerate(records)
        if record.state is TrialState.COMPLETED
    ]
    if not values:
        return 0.0, len(records)
    value, negative_position = max(values)
    return value, len(records) - 1 + negative_position


def current_stop_reason(study_store: StudyStore) -> StopReason:
    """Return which limit a study that does not run has reached, or `StopReason.OPEN`."""
    reason = reached_limit(
        study_store.config.budget,
        study_store.trial_records(),
        study_store.searched_seconds,
        losses=study_store.worker_losses,
    )
    return reason or (StopReason.EXHAUSTED if study_store.is_exhausted else StopReason.OPEN)
