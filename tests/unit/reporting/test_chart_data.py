"""What the charts of a study show: which trials enter, where they stand, and what is on the front."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.axes import MAX_TICKS, build_axes
from fmnist_search.reporting.chart_data import (
    StudyView,
    best_so_far,
    display_range,
    pareto_front,
    surface_points,
    timeline_bars,
)
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState
from tests.support.studies import make_study, space_tables
from tests.support.trials import make_importances, make_trials

LEARNING_RATE = "optimizer.learning_rate"
ALL_CHARTS = [
    "history",
    "importances",
    "parallel_coordinates",
    "slices",
    "contour",
    "learning_curves",
    "timeline",
    "accuracy_parameters",
    "accuracy_seconds",
]


def make_trial(
    number: int, state: TrialState = TrialState.COMPLETED, value: float | None = 0.9, **changes: Any
) -> TrialRecord:
    return dataclasses.replace(TrialRecord(number, state, value, 1, Recipe(), 1.0), **changes)


# --------------------------------------------------------------------------------- who is on the front

point_lists = st.lists(st.tuples(st.integers(0, 20).map(float), st.integers(0, 20).map(float)), max_size=30)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(point_lists)
def test_no_point_of_the_front_dominates_another_and_all_others_are_dominated_or_equal(
    given: list[tuple[float, float]],
) -> None:
    front = [given[place] for place in pareto_front(given)]
    assert front == sorted(set(front))
    assert not any(dominates(one, other) for one, other in itertools.permutations(front, 2))
    assert all(any(one == point or dominates(one, point) for one in front) for point in given)


@given(st.lists(st.tuples(st.sampled_from([TrialState.COMPLETED, TrialState.PRUNED]), st.floats(0, 1)), max_size=30))
def test_the_best_so_far_is_that_of_the_completed_trials_before(ended: list[tuple[TrialState, float]]) -> None:
    rows = [make_trial(number, state, value) for number, (state, value) in enumerate(ended)]
    steps = dict(best_so_far(rows))
    best = None
    for trial in rows:
        completed = [
            r.value for r in rows[: trial.number + 1] if r.state is TrialState.COMPLETED and r.value is not None
        ]
        best = steps.get(trial.number, best)
        assert best == max(completed, default=None)


def test_a_far_outlier_below_does_not_squeeze_the_others_together() -> None:
    assert display_range([0.10, 0.88, 0.89, 0.9, 0.91, 0.9]) == (0.88, 0.91)
    assert display_range([0.5, 0.6, 0.7, 0.8, 0.9]) == (0.5, 0.9)
    assert display_range([0.5]) == (0.5, 0.5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_window_always_shows_the_best_and_most_of_the_trials(values: list[float]) -> None:
    low, high = display_range(values)
    assert high == max(values)
    assert sum(value >= low for value in values) >= 0.75 * len(values)


# ----------------------------------------------------------------------------------------- the axes


@settings(max_examples=60)
@given(space_tables(largest=200), st.integers(0, 2**31))
def test_whatever_is_searched_every_trial_has_its_place_and_every_axis_its_ticks(
    table: dict[str, Any], seed: int
) -> None:
    config = make_study(table)
    rows = make_trials(config, 7, [TrialState.COMPLETED], seed)
    for axis in build_axes(config.space, rows):
        ticks = axis.ticks()
        assert 1 <= len(ticks) <= MAX_TICKS
        places = [place for place, _ in ticks]
        assert places == sorted(places)
        assert len({text for _, text in ticks}) == len(ticks)
        for place in [*places, *(axis.position(row) for row in rows if row.number in axis.values)]:
            assert place is not None
            assert -1e-9 <= place <= 1 + 1e-9


def test_a_logarithmic_range_is_read_at_ones_twos_and_fives() -> None:
    (axis,) = build_axes(make_study({"common": {LEARNING_RATE: {"low": 1e-3, "high": 1e-1, "log": True}}}).space, [])
    assert [(round(place, 3), text) for place, text in axis.ticks()] == [
        (0.0, "0.001"), (0.151, "0.002"), (0.349, "0.005"), (0.5, "0.01"), (0.651, "0.02"), (0.849, "0.05"),
        (1.0, "0.1"),
    ]  # fmt: skip


def test_numbers_to_choose_from_are_ordered_and_evenly_apart() -> None:
    (axis,) = build_axes(make_study({"common": {"batch_size": [256, 64, 128]}}).space, [])
    assert axis.ticks() == [(0.0, "64"), (0.5, "128"), (1.0, "256")]
    assert axis.is_ordered
    (texts,) = build_axes(make_study({"common": {"optimizer.name": ["sgd", "adam"]}}).space, [])
    assert texts.ticks() == [(0.0, "sgd"), (1.0, "adam")]
    assert not texts.is_ordered


def test_a_trial_without_a_block_has_no_place_on_its_axis() -> None:
    config = make_study({"cnn": {"depth": [1, 2], "width_2": [8, 16]}})
    rows = make_trials(config, 10, [TrialState.COMPLETED])
    width = next(axis for axis in build_axes(config.space, rows) if axis.name == "model.width_2")
    assert {row.number for row in rows if width.position(row) is None} == {
        row.number for row in rows if len(row.recipe.model.widths) == 1
    }


def test_families_have_axes_of_their_own_for_what_is_theirs_alone() -> None:
    table = {"common": {"family": ["cnn", "mlp"], "batch_size": [64, 128]}, "cnn": {"depth": [1, 2, 3]},
             "mlp": {"depth": {"low": 2, "high": 6}}}  # fmt: skip
    config = make_study(table)
    rows = make_trials(config, 12, [TrialState.COMPLETED])
    axes = {axis.name: axis for axis in build_axes(config.space, rows)}
    assert list(axes) == ["model.family", "cnn.depth", "batch_size", "mlp.depth"]
    of_cnns = {row.number for row in rows if row.recipe.model.family == "cnn"}
    assert axes["cnn.depth"].values.keys() == of_cnns
    assert axes["mlp.depth"].values.keys() == {row.number for row in rows} - of_cnns
    assert axes["batch_size"].values.keys() == {row.number for row in rows}


def test_a_trial_from_outside_the_space_stretches_its_axis() -> None:
    config = make_study({"common": {"batch_size": [64, 128], "label_smoothing": {"low": 0.1, "high": 0.2}}})
    outside = make_trial(0, recipe=Recipe().replace({"batch_size": 32, "label_smoothing": 0.3}))
    batch, smoothing = build_axes(config.space, [outside])
    assert [text for _, text in batch.ticks()] == ["32", "64", "128"]
    assert (batch.position(outside), smoothing.position(outside)) == (0.0, 1.0)
    assert smoothing.ticks()[-1][1] == "0.3"


def test_a_value_without_a_logarithm_is_not_on_a_logarithmic_axis() -> None:
    space = make_study({"common": {"optimizer.weight_decay": {"low": 1e-4, "high": 1e-1, "log": True}}}).space
    without = make_trial(0, recipe=Recipe().replace({"optimizer.weight_decay": 0.0}))
    (axis,) = build_axes(space, [without])
    assert axis.position(without) is None


# --------------------------------------------------------------------------------------- the charts


def make_view(count: int, *states: TrialState, **options: Any) -> StudyView:
    config = make_study()
    rows = make_trials(config, count, states) if states else make_trials(config, count)
    shares = (
        make_importances([LEARNING_RATE, "batch_size", "model.depth"], count) if options.get("ranked", True) else None
    )
    return StudyView(rows, config.space, shares)


def test_a_study_has_every_chart_and_each_says_who_enters() -> None:
    charts = make_view(12).charts
    assert list(charts) == ALL_CHARTS
    assert charts["history"].note == "6 completed, 2 pruned, 2 failed and 2 interrupted trials"
    assert charts["slices"].note == "6 completed trials; 2 pruned, 2 failed and 2 interrupted do not enter"
    assert charts["importances"].note == "PED-ANOVA over 12 completed trials; no others enter"
    assert charts["contour"].axes[0].name == LEARNING_RATE


@given(st.lists(st.sampled_from(TrialState), max_size=12), st.booleans())
def test_a_note_counts_every_trial_once(endings: list[TrialState], ranked: bool) -> None:
    found = make_view(len(endings), *endings, ranked=ranked)
    for name, chart in found.charts.items():
        assert chart.trials
        if name != "importances":
            assert sum(map(int, re.findall(r"\d+", chart.note))) == len(endings)


def test_trials_answered_from_others_do_not_enter_and_are_counted() -> None:
    config = make_study()
    rows = make_trials(config, 5, [TrialState.COMPLETED])
    rows.append(dataclasses.replace(rows[0], number=5, duplicate_of=0))
    chart = StudyView(rows, config.space).charts["history"]
    assert chart.note == "5 completed trials; 1 answered from equal ones does not enter"
    assert [row.number for row in chart.trials] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "ending", "expected"),
    [
        (0, TrialState.COMPLETED, []),
        (1, TrialState.COMPLETED, ["history", "learning_curves", "timeline"]),
        (2, TrialState.COMPLETED, [name for name in ALL_CHARTS if name not in ("importances", "contour")]),
        (5, TrialState.PRUNED, ["history", "timeline"]),
        (5, TrialState.FAILED, ["timeline"]),
    ],
)
def test_there_are_only_charts_that_show_something(count: int, ending: TrialState, expected: list[str]) -> None:
    assert list(make_view(count, ending, ranked=False).charts) == expected


def test_the_most_important_hyperparameters_come_first() -> None:
    found = make_view(12).charts["slices"]
    assert [axis.name for axis in found.axes[:3]] == [LEARNING_RATE, "batch_size", "model.depth"]
    axes, note = found.first_axes(2)
    assert [axis.name for axis in axes] == [LEARNING_RATE, "batch_size"]
    assert note.endswith(f"; the 2 most important of {len(found.axes)} hyperparameters")


def test_a_contour_shows_the_trials_that_have_both_hyperparameters() -> None:
    config = make_study()
    rows = make_trials(config, 30, [TrialState.COMPLETED])
    found = StudyView(rows, config.space, make_importances(["model.width_3", LEARNING_RATE], 30)).charts["contour"]
    deep = [row.number for row in rows if len(row.recipe.model.widths) == 3]
    assert [row.number for row in found.trials] == deep
    assert found.note == f"{len(deep)} completed trials; {30 - len(deep)} completed do not enter"


def test_a_surface_needs_three_places_each_way_and_an_order() -> None:
    table = {"common": {LEARNING_RATE: {"low": 1e-3, "high": 1e-1, "log": True}, "batch_size": [32, 64, 128],
             "optimizer.name": ["sgd", "adam", "adamw"], "augmentation.shift": [0, 1]}}  # fmt: skip
    config = make_study(table)
    rows = make_trials(config, 30, [TrialState.COMPLETED])

    def surface(other: str) -> list[tuple[float, float, float]]:
        return surface_points(
            StudyView(rows, config.space, make_importances([LEARNING_RATE, other], 30)).charts["contour"]
        )

    assert len(surface("batch_size")) == 30
    assert surface("optimizer.name") == []
    assert surface("augmentation.shift") == []


def test_where_a_study_was_paused_its_timeline_has_no_gap() -> None:
    rows = [make_trial(n, started_at=began, ended_at=began + 10) for n, began in enumerate((0.0, 5.0, 3600.0, 3612.0))]
    bars, pauses = timeline_bars(rows)
    assert [(bar.start, bar.end) for bar in bars] == [(0, 10), (5, 15), (15, 25), (27, 37)]
    assert pauses == [15]


intervals = st.tuples(st.floats(0, 1e5), st.floats(0, 1e3))


@given(st.lists(intervals, min_size=1, max_size=20))
def test_a_bar_is_as_long_as_its_trial_and_nothing_runs_before_the_study(spans: list[tuple[float, float]]) -> None:
    rows = [make_trial(number, started_at=began, ended_at=began + long) for number, (began, long) in enumerate(spans)]
    bars, _ = timeline_bars(rows)
    assert min(bar.start for bar in bars) == 0
    for bar, (_, long) in zip(bars, spans, strict=True):
        assert bar.end - bar.start == pytest.approx(long, abs=1e-6)
