"""The rule of freeze-thaw: what the next epoch goes to."""

from __future__ import annotations

import numpy as np
import pytest

from fmnist_search.search.freeze_thaw import (
    FIRST_TRIALS,
    MAX_OBSERVATIONS,
    FreezeThaw,
    KnownTrial,
    Status,
    expected_improvement,
    select_observations,
)

LAST_EPOCH = 6
CANDIDATES = np.random.default_rng(5).random((24, 2))


def trial(quality: float, epochs: int, status: Status = Status.PAUSED, other: float = 0.5) -> KnownTrial:
    """Return a trial whose first feature is its quality."""
    curve = {epoch: 0.3 + 0.6 * quality - 0.2 * 0.5**epoch for epoch in range(1, epochs + 1)}
    return KnownTrial(np.array([quality, other]), curve, status)


def begun() -> list[KnownTrial]:
    """Return trials of which one is complete, one is paused close to its end, and the others are hopeless."""
    ended = [trial(quality, LAST_EPOCH, Status.ENDED) for quality in (0.3, 0.5, 0.7)]
    return [*ended, trial(0.95, 4), trial(0.1, 2), trial(0.05, 1)]


def test_the_first_trials_are_new_ones() -> None:
    rule, trials = FreezeThaw(LAST_EPOCH), list[KnownTrial]()
    for number in range(FIRST_TRIALS):
        assert rule.choose(trials, CANDIDATES).candidate == 0
        trials.append(trial(0.2 * number, 1))
    assert rule.choose(trials, CANDIDATES) != rule.choose([], CANDIDATES)


def test_the_paused_trial_that_promises_most_goes_on() -> None:
    assert FreezeThaw(LAST_EPOCH).choose(begun(), CANDIDATES).trial == 3


def test_a_new_recipe_begins_where_all_paused_trials_are_hopeless() -> None:
    trials = [one for one in begun() if one.curve[1] < 0.7]
    chosen = FreezeThaw(LAST_EPOCH).choose(trials, CANDIDATES)
    assert chosen.candidate is not None
    assert CANDIDATES[chosen.candidate, 0] > 0.7


def test_a_running_trial_is_not_chosen_again() -> None:
    trials = begun()
    trials[3] = trial(0.95, 4, Status.RUNNING)
    assert FreezeThaw(LAST_EPOCH).choose(trials, CANDIDATES).trial != 3


def test_without_candidates_and_paused_trials_there_is_nothing_to_choose() -> None:
    ended = [one for one in begun() if one.status is Status.ENDED]
    chosen = FreezeThaw(LAST_EPOCH).choose(ended, np.empty((0, 2)))
    assert (chosen.trial, chosen.candidate) == (None, None)


def test_a_rule_that_is_made_again_with_its_parameters_chooses_the_same() -> None:
    first = FreezeThaw(LAST_EPOCH)
    first.choose(begun(), CANDIDATES)
    again = FreezeThaw(LAST_EPOCH, first.parameters, first.fitted_observations)
    more = [*begun(), trial(0.8, 3), trial(0.6, 3)]
    assert first.choose(more, CANDIDATES) == again.choose(more, CANDIDATES)
    assert again.fitted_observations == first.fitted_observations  # not fitted again, so soon


def test_a_prediction_and_the_chance_to_beat_the_best_agree() -> None:
    rule, trials = FreezeThaw(LAST_EPOCH), begun()
    good, bad = rule.predict(trials, 3), rule.predict(trials, 4)
    assert good.low < good.median < good.high
    assert bad.high < good.low
    assert rule.probability_to_beat(trials, 3) > 0.95
    assert rule.probability_to_beat(trials, 4) < 0.05


def test_a_large_study_keeps_the_whole_curves_of_its_best_and_the_last_epochs_of_others() -> None:
    random = np.random.default_rng(0)
    trials = [trial(quality, 5) for quality in random.random(300)]
    observed = select_observations(trials)
    assert len(observed) == MAX_OBSERVATIONS
    best = int(np.argmax([one.curve[5] for one in trials]))
    assert sorted(observed.epochs[observed.trials == best]) == [1, 2, 3, 4, 5]
    worst_seen = min((one.curve[5], place) for place, one in enumerate(trials) if place in observed.trials)[1]
    assert list(observed.epochs[observed.trials == worst_seen]) == [5]


def test_expected_improvement_is_that_of_samples() -> None:
    samples = np.random.default_rng(0).normal(1.0, 2.0, 400_000)
    expected = np.maximum(samples - 1.5, 0).mean()
    assert expected_improvement(np.array([1.0]), np.array([2.0]), 1.5)[0] == pytest.approx(expected, rel=0.02)


def test_other_trials_with_curves_as_long_get_a_model_of_their_own() -> None:
    rule = FreezeThaw(LAST_EPOCH)
    chosen = []
    for best in (3, 4, 3):
        trials = begun()
        if best == 4:
            trials[3], trials[4] = trial(0.05, 4), trial(0.95, 2)
        chosen.append(rule.choose(trials, CANDIDATES).trial)
    assert chosen == [3, 4, 3]
