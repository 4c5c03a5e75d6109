"""Tests of `reporting.chart_data`: included trials, positions, the Pareto front and the timeline."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.chart_data import (
    StudyView,
    best_so_far,
    display_range,
    distribution,
    ranks,
    surface_points,
    timeline_bars,
)
from fmnist_search.results.objectives import pareto_front
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState
from tests.support.studies import make_study
from tests.support.trials import make_importances, make_trials, with_costs

LEARNING_RATE = "optimizer.learning_rate"
ALL_CHARTS = [
    "history",
    "importances",
    "parallel_coordinates",
    "slices",
    "contour",
    "rank",
    "edf",
    "learning_curves",
    "timeline",
    "accuracy_mult_adds",
    "accuracy_parameters",
    "accuracy_seconds",
]
NEED_MORE_TRIALS = ("importances", "contour", "rank", "edf")


def make_trial(
    number: int, state: TrialState = TrialState.COMPLETED, value: float | None = 0.9, **changes: Any
) -> TrialRecord:
    return dataclasses.replace(TrialRecord(number, state, value, 1, Recipe(), 1.0), **changes)


# ------------------------------------------------------------------------------------- statistics

point_lists = st.lists(st.tuples(st.integers(0, 20).map(float), st.integers(0, 20).map(float)), max_size=30)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(point_lists)
def test_points_of_the_front_do_not_dominate_each_other_and_dominate_or_equal_all_others(
    points: list[tuple[float, float]],
) -> None:
    front = [points[index] for index in pareto_front(points)]
    assert front == sorted(set(front))
    assert not any(dominates(one, other) for one, other in itertools.permutations(front, 2))
    assert all(any(one == point or dominates(one, point) for one in front) for point in points)


@given(st.lists(st.tuples(st.sampled_from([TrialState.COMPLETED, TrialState.PRUNED]), st.floats(0, 1)), max_size=30))
def test_best_so_far_is_the_maximum_of_the_completed_trials_up_to_each_trial(
    results: list[tuple[TrialState, float]],
) -> None:
    trials = [make_trial(number, state, value) for number, (state, value) in enumerate(results)]
    steps = dict(best_so_far(trials))
    best = None
    for trial in trials:
        completed = [
            r.value for r in trials[: trial.number + 1] if r.state is TrialState.COMPLETED and r.value is not None
        ]
        best = steps.get(trial.number, best)
        assert best == max(completed, default=None)


def test_the_display_range_excludes_far_outliers_below() -> None:
    assert display_range([0.10, 0.88, 0.89, 0.9, 0.91, 0.9]) == (0.88, 0.91)
    assert display_range([0.5, 0.6, 0.7, 0.8, 0.9]) == (0.5, 0.9)
    assert display_range([0.5]) == (0.5, 0.5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_display_range_contains_the_best_and_most_values(values: list[float]) -> None:
    low, high = display_range(values)
    assert high == max(values)
    assert sum(value >= low for value in values) >= 0.75 * len(values)


# --------------------------------------------------------------------------------------- the charts


def make_view(count: int, *states: TrialState, **options: Any) -> StudyView:
    config = make_study()
    trials = make_trials(config, count, states) if states else make_trials(config, count)
    shares = (
        make_importances([LEARNING_RATE, "batch_size", "model.depth"], count) if options.get("ranked", True) else None
    )
    return StudyView(trials, config.space, shares)


def test_a_study_has_all_charts_with_notes() -> None:
    charts = make_view(12).charts
    assert list(charts) == ALL_CHARTS
    assert charts["history"].note == "6 completed, 2 pruned, 2 failed and 2 interrupted trials"
    assert charts["slices"].note == "6 completed trials; not included: 2 pruned, 2 failed and 2 interrupted"
    assert charts["importances"].note == "PED-ANOVA over 12 completed trials; no others are included"
    assert charts["contour"].axes[0].name == LEARNING_RATE


@pytest.mark.parametrize(
    ("metric", "title", "left_out"),
    [
        ("mult_adds", "Accuracy against multiply-adds", {"accuracy_mult_adds"}),  # it would be there twice
        ("seconds_per_epoch", "Accuracy against seconds per epoch", {"accuracy_seconds"}),
        ("parameters", "Accuracy against parameters", {"accuracy_parameters"}),
    ],
)
def test_a_study_that_minimizes_a_cost_has_its_pareto_front(metric: str, title: str, left_out: set[str]) -> None:
    config = make_study()
    charts = StudyView(with_costs(make_trials(config, 12), metric), config.space).charts
    assert charts["pareto_front"].title == title
    assert list(charts)[:2] == ["history", "pareto_front"]
    assert set(ALL_CHARTS) - charts.keys() == {"importances", "contour", "rank"} | left_out


@given(st.lists(st.sampled_from(TrialState), max_size=12), st.booleans())
def test_a_note_counts_every_trial_once(states: list[TrialState], ranked: bool) -> None:
    found = make_view(len(states), *states, ranked=ranked)
    for name, chart in found.charts.items():
        assert chart.trials
        if name != "importances":
            assert sum(map(int, re.findall(r"\d+", chart.note))) == len(states)


def test_duplicates_are_not_included_and_are_counted() -> None:
    config = make_study()
    trials = make_trials(config, 5, [TrialState.COMPLETED])
    trials.append(dataclasses.replace(trials[0], number=5, duplicate_of=0))
    chart = StudyView(trials, config.space).charts["history"]
    assert chart.note == "5 completed trials; not included: 1 duplicate"
    assert [trial.number for trial in chart.trials] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "ending", "expected"),
    [
        (0, TrialState.COMPLETED, []),
        (1, TrialState.COMPLETED, ["history", "learning_curves", "timeline"]),
        (2, TrialState.COMPLETED, [name for name in ALL_CHARTS if name not in NEED_MORE_TRIALS]),
        (5, TrialState.PRUNED, ["history", "timeline"]),
        (5, TrialState.FAILED, ["timeline"]),
    ],
)
def test_charts_without_data_are_left_out(count: int, ending: TrialState, expected: list[str]) -> None:
    assert list(make_view(count, ending, ranked=False).charts) == expected


def test_ranks_and_the_distribution_of_accuracies() -> None:
    trials = [make_trial(number, value=value) for number, value in enumerate((0.5, 0.9, 0.7, 0.9))]
    assert ranks(trials) == [4, 1.5, 3, 1.5]
    assert distribution(trials) == [(0.5, 0.25, 0), (0.7, 0.5, 2), (0.9, 0.75, 1), (0.9, 1.0, 3)]


def test_axes_are_sorted_by_importance() -> None:
    found = make_view(12).charts["slices"]
    assert [axis.name for axis in found.axes[:3]] == [LEARNING_RATE, "batch_size", "model.depth"]
    axes, note = found.first_axes(2)
    assert [axis.name for axis in axes] == [LEARNING_RATE, "batch_size"]
    assert note.endswith(f"; the 2 most important of {len(found.axes)} hyperparameters")


def test_a_contour_includes_the_trials_that_have_both_hyperparameters() -> None:
    config = make_study()
    trials = make_trials(config, 30, [TrialState.COMPLETED])
    found = StudyView(trials, config.space, make_importances(["model.width_3", LEARNING_RATE], 30)).charts["contour"]
    deep = [trial.number for trial in trials if len(trial.recipe.model.widths) == 3]
    assert [trial.number for trial in found.trials] == deep
    assert found.note == f"{len(deep)} completed trials; not included: {30 - len(deep)} completed"


def test_a_surface_needs_three_positions_in_each_direction_and_ordered_axes() -> None:
    table = {"common": {LEARNING_RATE: {"low": 1e-3, "high": 1e-1, "log": True}, "batch_size": [32, 64, 128],
             "optimizer.name": ["sgd", "adam", "adamw"], "augmentation.shift": [0, 1]}}  # fmt: skip
    config = make_study(table)
    trials = make_trials(config, 30, [TrialState.COMPLETED])

    def surface(other: str) -> list[tuple[float, float, float]]:
        return surface_points(
            StudyView(trials, config.space, make_importances([LEARNING_RATE, other], 30)).charts["contour"]
        )

    assert len(surface("batch_size")) == 30
    assert surface("optimizer.name") == []
    assert surface("augmentation.shift") == []


def test_pauses_are_removed_from_the_timeline() -> None:
    trials = [
        make_trial(n, started_at=began, ended_at=began + 10) for n, began in enumerate((0.0, 5.0, 3600.0, 3612.0))
    ]
    bars, pauses = timeline_bars(trials)
    assert [(bar.start, bar.end) for bar in bars] == [(0, 10), (5, 15), (15, 25), (27, 37)]
    assert pauses == [15]


intervals = st.tuples(st.floats(0, 1e5), st.floats(0, 1e3))


@example([(0.0, 0.0), (30.60106663418628, 0.0), (32799.128478821665, 0.0)])  # rounding gave a start below 0
@given(st.lists(intervals, min_size=1, max_size=20))
def test_a_bar_is_as_long_as_its_trial_and_the_first_starts_at_0(spans: list[tuple[float, float]]) -> None:
    trials = [make_trial(number, started_at=began, ended_at=began + long) for number, (began, long) in enumerate(spans)]
    bars, _ = timeline_bars(trials)
    assert min(bar.start for bar in bars) == 0
    for bar, (_, long) in zip(bars, spans, strict=True):
        assert bar.end - bar.start == pytest.approx(long, abs=1e-6)
