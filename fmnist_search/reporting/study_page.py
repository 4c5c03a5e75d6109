"""The charts of a study as one page to explore: zoom, pick, and hover to see which trial it is.

The page holds its own copy of plotly.js, once, and needs no network. plotly is the extra `plots`: without it, ask
`is_plotly_installed` and make no page. Knows neither MLflow nor Optuna.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from html import escape
from typing import Any

from fmnist_search.config.space import Space
from fmnist_search.reporting.chart_data import (
    Chart,
    StudyView,
)
from fmnist_search.reporting.colors import GREY, TEXT_COLOR
from fmnist_search.reporting.page_charts import RENDERERS, hover_text
from fmnist_search.results.study import Importances, TrialRecord


def is_plotly_installed() -> bool:
    """Whether plotly is installed."""
    return importlib.util.find_spec("plotly") is not None


def study_page(
    name: str, question: str, trials: Sequence[TrialRecord], space: Space, importances: Importances | None = None
) -> str:
    """One HTML page with every chart for which there is something to show, whole in itself; `trials` are all trials.

    Raises:
        ImportError: plotly is not installed; ask `is_plotly_installed` first.
    """
    from plotly.offline import get_plotlyjs

    view = StudyView(trials, space, importances)
    texts = {row.number: hover_text(view, row) for row in view.trials}
    sections = [_html_section(chart, RENDERERS[key](view, chart, texts)) for key, chart in view.charts.items()]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>',
            f"<style>{_STYLE}</style>",
            f"<script>{get_plotlyjs()}</script></head><body>",
            f"<h1>{escape(name)}</h1><p>{escape(question)}</p>",
            *(sections or ["<p>No trial has left anything to show yet.</p>"]),
            "</body></html>\n",
        ]
    )


_STYLE = (
    f"body {{ font-family: sans-serif; color: {TEXT_COLOR}; max-width: 1100px; margin: 1em auto; padding: 0 1em }} "
    f"h2 {{ margin: 1.5em 0 0 }} .note {{ color: {GREY}; margin: 0.2em 0 0 }}"
)


def _html_section(chart: Chart, figure: Any) -> str:
    figure.update_layout(template="plotly_white", margin={"l": 80, "r": 20, "t": 30, "b": 50})
    figure.update_traces(selector={"type": "parcoords"}, domain={"y": [0, 0.86]})  # its labels stand slanted above it
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return f'<section><h2>{escape(chart.title)}</h2><p class="note">{escape(chart.note)}</p>{drawn}</section>'
