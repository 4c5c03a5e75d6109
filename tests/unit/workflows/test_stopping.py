"""The limits of a budget, on records of trials."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fmnist_search.config.sections import Budget
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import StopReason, TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.workflows.study.stopping import SpentBudget, reached_limit

COMPLETED, PRUNED, FAILED, INTERRUPTED, PAUSED = (
    TrialState.COMPLETED,
    TrialState.PRUNED,
    TrialState.FAILED,
    TrialState.INTERRUPTED,
    TrialState.PAUSED,
)


def make_records(*trials: tuple[TrialState, float | None], **changes: Any) -> list[TrialRecord]:
    """Return records of trials with these states and values, two epochs each."""
    return [
        TrialRecord(number, state, value, epochs=2, recipe=Recipe(), seconds=1.0, **changes)
        for number, (state, value) in enumerate(trials)
    ]


TWO = make_records((COMPLETED, 0.8), (PRUNED, 0.5))


@pytest.mark.parametrize(
    ("limits", "records", "seconds", "running", "reason"),
    [
        ({"trials": 2}, TWO, 0, 0, StopReason.TRIALS),
        ({"trials": 3}, TWO, 0, 0, None),
        ({"trials": 3}, TWO, 0, 1, StopReason.TRIALS),
        ({"total_epochs": 4}, TWO, 0, 0, StopReason.EPOCHS),
        ({"total_epochs": 5}, TWO, 0, 3, None),
        ({"minutes": 1.0}, TWO, 60, 0, StopReason.MINUTES),
        ({"minutes": 1.0}, TWO, 59, 0, None),
        ({"target": 0.8}, TWO, 0, 0, StopReason.TARGET),
        ({"target": 0.81}, TWO, 0, 0, None),
        ({"target": 0.5}, make_records((PRUNED, 0.9)), 0, 0, None),
        ({"failures": 2}, make_records((FAILED, None), (COMPLETED, 0.9), (FAILED, None)), 0, 0, StopReason.FAILURES),
        ({"failures": 2}, make_records((FAILED, None), (COMPLETED, 0.9)), 0, 0, None),
    ],
)
def test_each_limit_is_reached_at_its_value_and_not_before(
    limits: dict[str, Any], records: list[TrialRecord], seconds: float, running: int, reason: StopReason | None
) -> None:
    assert reached_limit(Budget(**limits), SpentBudget(records), seconds, running) is reason


@pytest.mark.parametrize(
    ("limit", "losses", "reason"), [(3, 2, None), (3, 3, StopReason.LOSSES), (0, 10**6, None), (300, 299, None)]
)
def test_lost_machines_have_a_limit_of_their_own(limit: int, losses: int, reason: StopReason | None) -> None:
    assert reached_limit(Budget(trials=9, losses=limit), SpentBudget(TWO), 0, 0, losses) is reason


@pytest.mark.parametrize(
    ("values", "reached"),
    [
        ([0.5, 0.6, 0.6], False),
        ([0.5, 0.6, 0.6, 0.4], True),
        ([0.6, 0.5], False),
        ([0.6, 0.5, 0.4], True),
        ([0.6, 0.5, 0.7], False),
        ([], False),
    ],
)
def test_patience_counts_the_trials_since_the_first_best_one(values: list[float], reached: bool) -> None:
    records = make_records(*((COMPLETED, value) for value in values))
    assert (reached_limit(Budget(patience=2), SpentBudget(records), 0) is StopReason.PATIENCE) == reached


def test_patience_also_ends_a_study_in_which_nothing_completes() -> None:
    spent = SpentBudget(make_records((PRUNED, 0.3), (FAILED, None)))
    assert reached_limit(Budget(patience=2), spent, 0) is StopReason.PATIENCE


def test_patience_counts_a_paused_trial_once() -> None:
    best, *paused = make_records((COMPLETED, 0.6), (PAUSED, None), (PAUSED, None))
    again = dataclasses.replace(paused[0], epochs=3)
    assert reached_limit(Budget(patience=2), SpentBudget([best, paused[0], again]), 0) is None
    assert reached_limit(Budget(patience=2), SpentBudget([best, *paused]), 0) is StopReason.PATIENCE
    better = dataclasses.replace(paused[0], state=COMPLETED, value=0.7)
    assert reached_limit(Budget(patience=2), SpentBudget([best, *paused, better]), 0) is None


def test_duplicates_and_trials_that_are_repeated_count_against_no_budget() -> None:
    budget = Budget(trials=1, total_epochs=1, patience=1, failures=1)
    uncounted = [
        *make_records((COMPLETED, 0.8), (FAILED, None), duplicate_of=0),
        *make_records((INTERRUPTED, None)),
    ]
    assert reached_limit(budget, SpentBudget(uncounted), 0) is None


def test_failures_come_first() -> None:
    records = make_records((FAILED, None), (COMPLETED, 0.9))
    assert reached_limit(Budget(trials=1, failures=1, target=0.5), SpentBudget(records), 0) is StopReason.FAILURES
