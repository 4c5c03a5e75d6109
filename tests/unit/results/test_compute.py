"""The best value of a study against its compute."""

from __future__ import annotations

from dataclasses import replace

from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.compute import ComputePoint, study_progress, trained_epochs
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState


def record(number: int, value: float, **changes: object) -> TrialRecord:
    """Return a completed trial of two epochs in a second, which ended after those with lower numbers."""
    trial = TrialRecord(
        number, TrialState.COMPLETED, value, 2, Recipe(model=FAMILIES["mlp"]()), 1.0, ended_at=100.0 + number
    )
    return replace(trial, **changes)  # type: ignore[arg-type]


def test_a_duplicate_takes_no_compute() -> None:
    progress = study_progress("study", [record(0, 0.5), record(1, 0.5, duplicate_of=0, seconds=0.0), record(2, 0.6)])
    assert progress.points == (ComputePoint(2, 1.0, 0.5), ComputePoint(4, 2.0, 0.6))
    assert (progress.epochs, trained_epochs([record(0, 0.5), record(1, 0.5, duplicate_of=0)])) == (4, 2)


def test_compute_is_counted_in_the_order_in_which_trials_ended() -> None:
    late = record(0, 0.9, epochs=8, seconds=4.0, ended_at=300.0)
    assert study_progress("study", [late, record(1, 0.5)]).points == (
        ComputePoint(2, 1.0, 0.5),
        ComputePoint(10, 5.0, 0.9),
    )


def test_compute_of_a_trial_that_was_paused_is_counted_when_it_was_trained() -> None:
    paused = record(0, 0.4, state=TrialState.PRUNED, epochs=1, ended_at=300.0, trained_until=100.5)
    assert study_progress("study", [paused, record(1, 0.5)]).points == (ComputePoint(3, 2.0, 0.5),)


def test_a_pruned_trial_takes_compute_and_is_never_the_best() -> None:
    pruned = record(0, 0.9, state=TrialState.PRUNED, epochs=1)
    progress = study_progress("study", [pruned, record(1, 0.5)])
    assert progress.points == (ComputePoint(3, 2.0, 0.5),)
    assert (progress.best_within(epochs=2), progress.best_within(epochs=3)) == (None, 0.5)
