"""Ranking and counting trials, the mean overhead of trials, and the text of a score."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.champion import ConfirmedScore
from fmnist_search.results.objectives import TrialCost
from fmnist_search.results.study import StopReason, StudySummary, TrialRecord, front_trials, mean_overhead
from fmnist_search.results.training import Overhead, TrialState
from tests.support.records import make_record

SECONDS = st.floats(0, 1e6)
measured_overheads = st.builds(Overhead, st.floats(1e-6, 1e6), SECONDS, SECONDS, SECONDS)
UNMEASURED = Overhead()
"""The overhead of a trial that reuses the result of another, or lost its worker."""


def make_trial(number: int, overhead: Overhead) -> TrialRecord:
    return TrialRecord(number, TrialState.COMPLETED, 0.5, 1, Recipe(model=Mlp()), 1.0, overhead=overhead)


@given(st.lists(measured_overheads | st.just(UNMEASURED), max_size=20), SECONDS)
def test_the_mean_is_over_the_trials_that_were_trained(overheads: list[Overhead], tracking: float) -> None:
    mean = mean_overhead([make_trial(number, overhead) for number, overhead in enumerate(overheads)], tracking)
    measured = [overhead for overhead in overheads if overhead.seconds]
    if not measured:
        assert mean is None
        return
    assert mean == Overhead(
        seconds=statistics.fmean(overhead.seconds for overhead in measured),
        build=statistics.fmean(overhead.build for overhead in measured),
        capture=statistics.fmean(overhead.capture for overhead in measured),
        sampling=statistics.fmean(overhead.sampling for overhead in measured),
        tracking=tracking / len(measured),
    )


@given(measured_overheads, st.integers(1, 10), st.integers(0, 10))
def test_trials_that_reuse_a_result_do_not_change_the_mean(overhead: Overhead, trained: int, answered: int) -> None:
    rows = [make_trial(number, overhead) for number in range(trained)] + [make_trial(99, UNMEASURED)] * answered
    mean = mean_overhead(rows, tracking_seconds=3.0)
    assert mean is not None
    for name in ("seconds", "build", "capture", "sampling"):
        assert abs(getattr(mean, name) - getattr(overhead, name)) <= 1e-9 * getattr(overhead, name)
    assert mean.tracking == 3.0 / trained


def make_summary(*trials: TrialRecord) -> StudySummary:
    return StudySummary("small", "Does it work?", trials, StopReason.TRIALS, len(trials), 60.0)


def test_completed_trials_are_ranked_by_value_and_equal_ones_by_number() -> None:
    trials = [
        make_record(0, value=0.8),
        make_record(1, value=0.9),
        make_record(2, TrialState.PRUNED, 0.99),
        make_record(3, value=0.9),
        make_record(4, TrialState.FAILED, 0.95),
        make_record(5, value=0.9, duplicate_of=1),
        make_record(6, value=0.0),
    ]
    found = make_summary(*trials)
    assert [leader.number for leader in found.ranked_trials] == [1, 3, 0, 6]
    assert found.best == trials[1]
    assert make_summary(trials[2]).best is None


def test_duplicates_are_not_counted() -> None:
    found = make_summary(
        make_record(0),
        make_record(1, duplicate_of=0),
        make_record(2, TrialState.PRUNED, 0.5),
        make_record(3, TrialState.PRUNED, 0.5, duplicate_of=2),
    )
    assert {state: found.count(state) for state in TrialState} == {
        TrialState.COMPLETED: 1,
        TrialState.PRUNED: 1,
        TrialState.FAILED: 0,
        TrialState.PAUSED: 0,
        TrialState.INTERRUPTED: 0,
        TrialState.REFUSED: 0,
    }


def test_the_score_of_a_single_seed_has_no_deviation() -> None:
    assert str(ConfirmedScore(0, Recipe(), (0.5,))) == "50.00% (n = 1)"


FEW_VALUES = st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 5)), max_size=20)


@given(FEW_VALUES, st.data())
def test_the_front_has_the_completed_trials_that_no_other_one_dominates(
    values: list[tuple[int, int | None]], data: st.DataObject
) -> None:
    states = st.sampled_from([TrialState.COMPLETED, TrialState.COMPLETED, TrialState.PRUNED])
    trials = [
        make_record(
            number, data.draw(states), accuracy / 10, cost=None if cost is None else TrialCost("parameters", cost)
        )
        for number, (accuracy, cost) in enumerate(values)
    ]
    front = front_trials(trials, "parameters")
    known = [trial for trial in trials if trial.state is TrialState.COMPLETED and trial.cost]
    assert [(trial.value, cost_of(trial)) for trial in front] == sorted(
        {(trial.value, cost_of(trial)) for trial in known if not any(dominates(other, trial) for other in known)},
        key=lambda pair: pair[1],
    )
    for trial in front:  # of equal ones the first
        assert trial == next(t for t in known if (t.value, t.cost) == (trial.value, trial.cost))


def cost_of(trial: TrialRecord) -> float:
    assert trial.cost is not None
    return trial.cost.value


def dominates(one: TrialRecord, other: TrialRecord) -> bool:
    pairs = [(-(trial.value or 0.0), cost_of(trial)) for trial in (one, other)]
    return pairs[0] != pairs[1] and all(first <= second for first, second in zip(*pairs, strict=True))
