"""Tests of `reporting.study_page`."""

from __future__ import annotations

import base64
import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest

from fmnist_search.reporting.chart_data import StudyView
from fmnist_search.reporting.page_charts import PAGE_CHARTS
from fmnist_search.reporting.study_page import is_plotly_installed, study_page
from fmnist_search.reporting.study_plots import PLOTS
from fmnist_search.results.study import Prediction, front_trials
from fmnist_search.results.training import TrialState
from tests.support.figures import render_png
from tests.support.studies import make_study
from tests.support.trials import make_importances, make_trials, with_costs

IMPORTANT_HYPERPARAMETERS = ["optimizer.learning_rate", "model.depth", "batch_size"]
QUESTION = "Is 1 < 2 & </script><script>alert(1)</script>?"

needs_plotly = pytest.mark.skipif(not is_plotly_installed(), reason="needs the extra `plots`")


def make_page(count: int, space: dict[str, Any] | None = None, states: list[TrialState] | None = None) -> str:
    config = make_study(space)
    trials = make_trials(config, count, states) if states else make_trials(config, count)
    if states:
        trials = [dataclasses.replace(trial, curve=2 * trial.curve) for trial in trials]
    return study_page(
        "small",
        QUESTION,
        trials,
        config.space,
        make_importances(IMPORTANT_HYPERPARAMETERS, count) if count > 8 else None,
    )


def without_plotly_js(html: str) -> str:
    """Return the page without its longest script, which is plotly.js."""
    longest = max(re.findall(r"<script.*?</script>", html, re.DOTALL), key=len)
    assert len(longest) > 1_000_000
    return html.replace(longest, "", 1)


@needs_plotly
def test_a_page_contains_one_copy_of_plotly_and_loads_nothing() -> None:
    rest = without_plotly_js(make_page(24))
    assert len(rest) < 1_000_000
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", rest)
    assert "cdn." not in rest


@needs_plotly
def test_a_page_shows_what_is_predicted_for_a_paused_trial() -> None:
    config = make_study()
    first, *others = make_trials(config, 6)
    predicted = Prediction(0.912, 0.9, 0.92)
    paused = dataclasses.replace(first, state=TrialState.PAUSED, curve=(0.5, 0.7), prediction=predicted)
    page = without_plotly_js(study_page("small", QUESTION, [paused, *others], config.space, None))
    assert f"trial {paused.number} is expected to end at 91.20% (90.00% to 92.00%)" in page


@needs_plotly
def test_a_page_shows_every_chart_with_its_note() -> None:
    config = make_study()
    trials = make_trials(config, 24)
    shares = make_importances(IMPORTANT_HYPERPARAMETERS, 24)
    rest = without_plotly_js(study_page("small", "Why?", trials, config.space, shares))
    charts = StudyView(trials, config.space, shares).charts
    assert rest.count("Plotly.newPlot(") == len(charts.keys() & PAGE_CHARTS.keys())
    for chart in charts.values():
        assert f'<h2>{chart.title}</h2><p class="note">{chart.note}</p>' in rest


@needs_plotly
def test_a_page_of_a_study_that_minimizes_a_cost_shows_its_pareto_front() -> None:
    config = make_study()
    trials = with_costs(make_trials(config, 24))
    rest = without_plotly_js(study_page("small", "Why?", trials, config.space))
    assert "<h2>Accuracy against multiply-adds</h2>" in rest
    front = front_trials(trials, "mult_adds")
    assert front
    for trial in front:
        assert f", {trial.cost} multiply-adds, completed" in rest


@needs_plotly
def test_a_chart_without_an_interactive_version_is_shown_as_its_static_plot() -> None:
    config = make_study()
    trials = make_trials(config, 12)
    view = StudyView(trials, config.space)
    others = {name: draw for name, draw in PAGE_CHARTS.items() if name != "history"}
    rest = without_plotly_js(study_page("small", "Why?", trials, config.space, page_charts=others))
    assert rest.count("Plotly.newPlot(") == len(view.charts.keys() & others.keys())
    (encoded,) = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="Optimisation history">', rest)
    assert base64.b64decode(encoded) == render_png(PLOTS["history"](view, view.charts["history"]))


@needs_plotly
def test_hover_texts_have_number_network_and_values_of_a_trial() -> None:
    rest = without_plotly_js(make_page(24)).encode().decode("unicode_escape")
    assert re.search(r"<b>trial 2</b>: cnn [\d-]+<br>\d\d\.\d\d%, completed<br>learning_rate = [\d.]+", rest)


@needs_plotly
def test_the_question_is_escaped() -> None:
    rest = without_plotly_js(make_page(2))
    assert "Is 1 &lt; 2 &amp; &lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;?" in rest


@needs_plotly
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_a_page_can_have_any_number_of_trials(count: int) -> None:
    rest = without_plotly_js(make_page(count))
    assert ("No trial has results to show yet." in rest) == (count == 0)


@needs_plotly
@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAILED, TrialState.INTERRUPTED])
def test_a_page_of_a_study_without_completed_trials(state: TrialState) -> None:
    rest = without_plotly_js(make_page(5, states=[state]))
    assert "Timeline" in rest
    assert ("Learning curves" in rest) == (state is not TrialState.FAILED)  # these have no epochs


@needs_plotly
def test_a_contour_over_an_unordered_hyperparameter_shows_the_trials_alone() -> None:
    rate = {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}
    config = make_study({"common": {**rate, "optimizer.name": ["sgd", "adam", "adamw"], "batch_size": [32, 64, 128]}})
    trials = make_trials(config, 24, [TrialState.COMPLETED])
    for other, has_surface in (("batch_size", True), ("optimizer.name", False)):
        view = StudyView(trials, config.space, make_importances(["optimizer.learning_rate", other], 24))
        figure = PAGE_CHARTS["contour"](view, view.charts["contour"], dict.fromkeys(range(24), "a trial"))
        kinds = [trace.type for trace in figure.data]
        assert kinds == (["contour", "scatter"] if has_surface else ["scatter"])
        assert len(figure.data[-1].x) == 24


@needs_plotly
def test_a_page_of_several_families_and_of_a_single_hyperparameter() -> None:
    rate = {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}
    two = {"common": {"family": ["cnn", "mlp"], **rate}, "cnn": {"depth": [1, 2, 3]}, "mlp": {"depth": [1, 2]}}
    assert "mlp.depth" in without_plotly_js(make_page(12, two))
    assert "learning_rate" in without_plotly_js(make_page(12, {"common": rate}))


def test_without_plotly_the_module_can_be_imported_and_says_so() -> None:
    program = (
        "import sys; sys.modules['plotly'] = None\n"
        "from fmnist_search.reporting.study_page import is_plotly_installed\n"
        "print(is_plotly_installed())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
