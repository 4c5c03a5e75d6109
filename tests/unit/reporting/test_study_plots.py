"""Tests of `reporting.study_plots`: every plot of any study can be drawn and shows its trials."""

from __future__ import annotations

import dataclasses
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.study_plots import PLOTS, study_figures
from fmnist_search.results.study import Prediction, front_trials
from fmnist_search.results.training import TrialState
from tests.support.figures import figure_texts, render_png
from tests.support.studies import make_study
from tests.support.trials import DEFAULT_STATES, make_importances, make_trials, with_costs

# No plot gives a warning. A connection that another test left open is no concern of these.
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.filterwarnings("default::ResourceWarning")]

TWO_FAMILY_SPACE: dict[str, Any] = {
    "common": {
        "family": ["cnn", "mlp"],
        "optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
        "optimizer.name": ["sgd", "adamw"],
        "optimizer.nesterov": [True, False],
    },
    "cnn": {"depth": [1, 2, 3], "width_3": [8, 16]},
    "mlp": {"depth": {"low": 1, "high": 4}},
}
ONE_HYPERPARAMETER_SPACE = {"common": {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}}
IMPORTANT_HYPERPARAMETERS = ["optimizer.learning_rate", "model.depth", "batch_size"]


@pytest.mark.parametrize(
    ("count", "space"),
    [(0, None), (1, TWO_FAMILY_SPACE), (2, None), (12, None), (12, TWO_FAMILY_SPACE), (12, ONE_HYPERPARAMETER_SPACE)],
    ids=["no trial", "one trial", "two trials", "one family", "two families", "one hyperparameter"],
)
def test_every_plot_is_drawn_and_states_its_trials(count: int, space: Any) -> None:
    config = make_study(space)
    plots = study_figures(make_trials(config, count), config.space, make_importances(IMPORTANT_HYPERPARAMETERS, count))
    for name, draw in plots.items():
        figure = draw()
        render_png(figure)
        assert "completed" in figure_texts(figure), name
    assert ("history" in plots) == (count > 0)


def test_the_pareto_front_is_drawn_with_the_numbers_of_its_trials() -> None:
    config = make_study()
    trials = with_costs(make_trials(config, 24))
    figure = study_figures(trials, config.space)["pareto_front"]()
    render_png(figure)
    assert "Accuracy against multiply-adds" in figure_texts(figure)
    numbers = {text.get_text() for text in figure.axes[0].texts}
    assert numbers == {str(trial.number) for trial in front_trials(trials, "mult_adds")[-8:]}


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAILED, TrialState.INTERRUPTED])
def test_studies_without_completed_trials_are_drawn(state: TrialState) -> None:
    config = make_study()
    trials = [dataclasses.replace(trial, curve=2 * trial.curve) for trial in make_trials(config, 12, [state])]
    plots = study_figures(trials, config.space)
    assert "timeline" in plots
    assert ("learning_curves" in plots) == (state is not TrialState.FAILED)  # these have no epochs
    for draw in plots.values():
        render_png(draw())


def test_the_curve_of_a_paused_trial_is_continued_to_its_prediction() -> None:
    config = make_study()
    first, *others = make_trials(config, 6)
    predicted = Prediction(0.912, 0.9, 0.92)
    paused = dataclasses.replace(first, state=TrialState.PAUSED, curve=(0.5, 0.7), prediction=predicted)
    figure = study_figures([paused, *others], config.space)["learning_curves"]()
    render_png(figure)
    (dotted,) = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert list(zip(*dotted.get_data(), strict=True)) == [(2, 0.7), (paused.recipe.epochs, 0.912)]
    (interval,) = figure.axes[0].containers
    assert interval.get_label() == "predicted, 90 % interval"


@pytest.mark.slow
def test_a_study_of_three_hundred_trials_is_drawn() -> None:
    config = make_study()
    trials = with_costs(make_trials(config, 300))
    plots = study_figures(trials, config.space, make_importances(IMPORTANT_HYPERPARAMETERS, 150))
    assert plots.keys() == PLOTS.keys() - {"accuracy_mult_adds"}  # it would be there twice
    for draw in plots.values():
        render_png(draw())


def test_equal_trials_are_drawn() -> None:
    config = make_study()
    (trial,) = make_trials(config, 1)
    trials = [dataclasses.replace(trial, number=number) for number in range(5)]
    for draw in study_figures(trials, config.space, make_importances(IMPORTANT_HYPERPARAMETERS, 5)).values():
        render_png(draw())


def test_equal_studies_have_equal_plots() -> None:
    config = make_study()
    first, second = (study_figures(make_trials(config, 12), config.space)["slices"] for _ in range(2))
    assert render_png(first()) == render_png(second())


def test_drawing_does_not_change_the_global_style() -> None:
    config = make_study()
    before = dict(matplotlib.rcParams)
    render_png(study_figures(make_trials(config, 12), config.space)["history"]())
    assert dict(matplotlib.rcParams) == before


def test_the_history_shows_every_value_and_the_best_so_far() -> None:
    config = make_study()
    trials = make_trials(config, 12)
    axes = study_figures(trials, config.space)["history"]().axes[0]
    shown = {tuple(point) for dots in axes.collections for point in np.round(np.asarray(dots.get_offsets()), 6)}
    low = axes.get_ylim()[0]
    for trial in trials:
        if trial.state in (TrialState.COMPLETED, TrialState.PRUNED) and trial.value is not None and trial.value >= low:
            assert (trial.number, round(trial.value, 6)) in shown
    (best,) = axes.lines
    assert np.asarray(best.get_ydata())[-1] == max(
        trial.value or 0 for trial in trials if trial.state is TrialState.COMPLETED
    )


def test_parallel_coordinates_have_a_line_for_each_completed_trial() -> None:
    config = make_study()
    trials = make_trials(config, 24)
    axes = study_figures(trials, config.space)["parallel_coordinates"]().axes[0]
    (lines,) = (found for found in axes.collections if isinstance(found, LineCollection))
    assert len(lines.get_segments()) == sum(trial.state is TrialState.COMPLETED for trial in trials)
    assert DEFAULT_STATES.count(TrialState.COMPLETED) == 3
    assert "none" in {text.get_text() for text in axes.texts}, "networks with fewer blocks have no third width"


def test_trials_without_a_recorded_cost_have_no_plot_against_it() -> None:
    config = make_study()
    trials = [dataclasses.replace(trial, parameters=0, mult_adds=0) for trial in make_trials(config, 12)]
    plots = study_figures(trials, config.space)
    assert not {"accuracy_parameters", "accuracy_mult_adds"} & plots.keys()
    assert "accuracy_seconds" in plots
    assert Recipe().model.family == "cnn"
