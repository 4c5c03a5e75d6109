"""Duplicates wait for the trial with the equal recipe."""

from __future__ import annotations

import optuna

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.search.asked_trial import AskedTrial
from fmnist_search.workflows.study.search_loop import PendingDuplicates


def ask_trial(number: int, **changes: object) -> AskedTrial:
    trial = optuna.create_study().ask()
    return AskedTrial(number, Recipe().replace(changes), {}, trial)


def test_the_first_duplicate_whose_equal_trial_has_ended_is_removed_and_returned() -> None:
    small, large = ask_trial(1, batch_size=50), ask_trial(2, batch_size=100)
    keys = [asked.recipe.seed_independent_key() for asked in (small, large)]
    pending = PendingDuplicates()
    pending.add(small)
    pending.add(large)
    assert pending.pop_resolved(running=set(keys)) is None
    assert pending.pop_resolved(running={keys[0]}) is large
    assert len(pending) == 1
    assert pending.pop_resolved(running=set()) is small
    assert len(pending) == 0


def test_after_an_interruption_only_answered_duplicates_are_returned() -> None:
    asked = ask_trial(1)
    pending = PendingDuplicates()
    pending.add(asked)
    assert pending.pop_resolved(running=set(), answered=set()) is None
    assert pending.pop_all() == [asked]
    assert pending.pop_all() == []
