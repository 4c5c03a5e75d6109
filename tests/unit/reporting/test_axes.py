"""Tests of `reporting.axes`: positions and ticks of hyperparameters."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.axes import MAX_TICKS, build_axes
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState
from tests.support.studies import make_study, space_tables
from tests.support.trials import make_trials

LEARNING_RATE = "optimizer.learning_rate"


def make_trial(
    number: int, state: TrialState = TrialState.COMPLETED, value: float | None = 0.9, **changes: Any
) -> TrialRecord:
    return dataclasses.replace(TrialRecord(number, state, value, 1, Recipe(), 1.0), **changes)


@settings(max_examples=30)
@given(space_tables(largest=200), st.integers(0, 2**31))
def test_positions_and_ticks_of_any_space_are_within_the_axis(table: dict[str, Any], seed: int) -> None:
    config = make_study(table)
    trials = make_trials(config, 7, [TrialState.COMPLETED], seed)
    for axis in build_axes(config.space, trials):
        ticks = axis.ticks()
        assert 1 <= len(ticks) <= MAX_TICKS
        positions = [position for position, _ in ticks]
        assert positions == sorted(positions)
        assert len({text for _, text in ticks}) == len(ticks)
        for position in [*positions, *(axis.position(trial) for trial in trials if trial.number in axis.values)]:
            assert position is not None
            assert -1e-9 <= position <= 1 + 1e-9


def test_ticks_of_a_log_range_are_1_2_and_5_times_powers_of_ten() -> None:
    (axis,) = build_axes(make_study({"common": {LEARNING_RATE: {"low": 1e-3, "high": 1e-1, "log": True}}}).space, [])
    assert [(round(position, 3), text) for position, text in axis.ticks()] == [
        (0.0, "0.001"), (0.151, "0.002"), (0.349, "0.005"), (0.5, "0.01"), (0.651, "0.02"), (0.849, "0.05"),
        (1.0, "0.1"),
    ]  # fmt: skip


def test_a_choice_of_numbers_is_sorted_and_evenly_spaced() -> None:
    (axis,) = build_axes(make_study({"common": {"batch_size": [256, 64, 128]}}).space, [])
    assert axis.ticks() == [(0.0, "64"), (0.5, "128"), (1.0, "256")]
    assert axis.is_ordered
    (texts,) = build_axes(make_study({"common": {"optimizer.name": ["sgd", "adam"]}}).space, [])
    assert texts.ticks() == [(0.0, "sgd"), (1.0, "adam")]
    assert not texts.is_ordered


def test_a_trial_without_a_hyperparameter_has_no_position() -> None:
    config = make_study({"cnn": {"depth": [1, 2], "width_2": [8, 16]}})
    trials = make_trials(config, 10, [TrialState.COMPLETED])
    width = next(axis for axis in build_axes(config.space, trials) if axis.name == "model.width_2")
    assert {trial.number for trial in trials if width.position(trial) is None} == {
        trial.number for trial in trials if len(trial.recipe.model.widths) == 1
    }


def test_each_family_has_axes_for_its_own_hyperparameters() -> None:
    table = {"common": {"family": ["cnn", "mlp"], "batch_size": [64, 128]}, "cnn": {"depth": [1, 2, 3]},
             "mlp": {"depth": {"low": 2, "high": 6}}}  # fmt: skip
    config = make_study(table)
    trials = make_trials(config, 12, [TrialState.COMPLETED])
    axes = {axis.name: axis for axis in build_axes(config.space, trials)}
    assert list(axes) == ["model.family", "cnn.depth", "batch_size", "mlp.depth"]
    of_cnns = {trial.number for trial in trials if trial.recipe.model.family == "cnn"}
    assert axes["cnn.depth"].values.keys() == of_cnns
    assert axes["mlp.depth"].values.keys() == {trial.number for trial in trials} - of_cnns
    assert axes["batch_size"].values.keys() == {trial.number for trial in trials}


def test_a_trial_outside_the_space_extends_the_axis() -> None:
    config = make_study({"common": {"batch_size": [64, 128], "label_smoothing": {"low": 0.1, "high": 0.2}}})
    outside = make_trial(0, recipe=Recipe().replace({"batch_size": 32, "label_smoothing": 0.3}))
    batch, smoothing = build_axes(config.space, [outside])
    assert [text for _, text in batch.ticks()] == ["32", "64", "128"]
    assert (batch.position(outside), smoothing.position(outside)) == (0.0, 1.0)
    assert smoothing.ticks()[-1][1] == "0.3"


def test_a_value_of_0_has_no_position_on_a_log_axis() -> None:
    space = make_study({"common": {"optimizer.weight_decay": {"low": 1e-4, "high": 1e-1, "log": True}}}).space
    without = make_trial(0, recipe=Recipe().replace({"optimizer.weight_decay": 0.0}))
    (axis,) = build_axes(space, [without])
    assert axis.position(without) is None
