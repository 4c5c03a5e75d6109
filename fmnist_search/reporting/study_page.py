"""The charts of a study as one HTML page: interactive, with the values of a trial under the pointer.

The page contains plotly.js and needs no network. plotly is the extra `plots`; ask `is_plotly_installed` first. Imports
neither MLflow nor Optuna.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fmnist_search.config.space import Space
from fmnist_search.reporting.chart_data import Chart, StudyView
from fmnist_search.reporting.html_page import html_page, image_html
from fmnist_search.reporting.page_charts import PAGE_CHARTS, PageChartFunction, hover_text
from fmnist_search.reporting.study_plots import PLOTS
from fmnist_search.reporting.style import figure_to_png
from fmnist_search.results.study import Importances, TrialRecord


def is_plotly_installed() -> bool:
    """Return whether plotly is installed."""
    return importlib.util.find_spec("plotly") is not None


def study_page(
    name: str,
    question: str,
    trials: Sequence[TrialRecord],
    space: Space,
    importances: Importances | None = None,
    *,
    page_charts: Mapping[str, PageChartFunction] = PAGE_CHARTS,
) -> str:
    """Return an HTML page with every chart of a study that has data.

    Args:
        name: The study's name, the title of the page.
        question: The study's question, shown below the title.
        trials: All finished trials.
        space: The study's search space.
        importances: Importances of the hyperparameters, for the contour and the order of the axes.
        page_charts: The functions that draw interactive charts, by name. A chart without one is shown as the static
            plot of `study_plots`.

    Raises:
        ImportError: if plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    view = StudyView(trials, space, importances)
    texts = {trial.number: hover_text(view, trial) for trial in view.trials}
    sections = [
        _section(
            chart,
            _figure_html(page_charts[key](view, chart, texts))
            if key in page_charts
            else f"<p>{image_html(figure_to_png(PLOTS[key](view, chart)), chart.title)}</p>",
        )
        for key, chart in view.charts.items()
    ]
    body = [f"<p>{escape(question)}</p>", *(sections or ["<p>No trial has results to show yet.</p>"])]
    return html_page(name, body, script=get_plotlyjs())


def _section(chart: Chart, content: str) -> str:
    return f'<section><h2>{escape(chart.title)}</h2><p class="note">{escape(chart.note)}</p>{content}</section>'


def _figure_html(figure: Any) -> str:
    figure.update_layout(template="plotly_white", margin={"l": 80, "r": 20, "t": 30, "b": 50})
    # The rotated labels of parallel coordinates stand above the axes and need room there.
    figure.update_traces(selector={"type": "parcoords"}, domain={"y": [0, 0.86]})
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False}))
