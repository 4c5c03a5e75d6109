"""When a search stops: the limits of its budget."""

from __future__ import annotations

from collections.abc import Sequence

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.results.study import StopReason, TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.search.study_store import StudyStore


def reached_limit(
    config: StudyConfig, records: Sequence[TrialRecord], seconds: float, running: int = 0
) -> StopReason | None:
    """Return the limit of the budget that these trials and `seconds` of searching reach, or None.

    `running` trials count against the budget of trials although they have not ended.
    """
    counted = [row for row in records if row.is_final and row.duplicate_of is None]
    completed = [(row.value or 0.0, -place) for place, row in enumerate(counted) if row.state is TrialState.COMPLETED]
    best, place = max(completed, default=(0.0, 0))
    budget = config.budget
    reached = {
        StopReason.FAILURES: (
            sum(row.state is TrialState.FAILED and row.duplicate_of is None for row in records),
            budget.failures,
        ),
        StopReason.TARGET: (best, budget.target),
        StopReason.TRIALS: (len(counted) + running, budget.trials),
        StopReason.EPOCHS: (sum(row.epochs for row in counted), budget.total_epochs),
        StopReason.MINUTES: (seconds / 60, budget.minutes),
        StopReason.PATIENCE: (len(counted) - 1 + place if completed else len(counted), budget.patience),
    }
    return next((ending for ending, (spent, limit) in reached.items() if limit is not None and spent >= limit), None)


def current_stop_reason(study_store: StudyStore) -> StopReason:
    """Return the limit that a study has reached which does not run, or `StopReason.OPEN`."""
    reason = reached_limit(study_store.config, study_store.trial_records(), study_store.searched_seconds)
    return reason or (StopReason.EXHAUSTED if study_store.is_exhausted else StopReason.OPEN)
