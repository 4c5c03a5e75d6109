"""The charts of a study as interactive plotly figures."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from fmnist_search.reporting.axes import MAX_TICKS, MAX_TICKS_SMALL, Axis
from fmnist_search.reporting.chart_data import (
    COSTS,
    Chart,
    Cost,
    StudyView,
    best_so_far,
    display_range,
    pareto_front,
    surface_points,
)
from fmnist_search.reporting.colors import BLUE, GREY, RED, STATE_COLORS, TEXT_COLOR
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState

PANELS_PER_ROW = 4
GRID_CELLS = 20
"""A surface is drawn on so many cells each way, whatever the number of trials."""
ABSENT_POSITION = -0.1
"""Where trials without a hyperparameter stand on its axis."""
HOVER_TEMPLATE = "%{text}<extra></extra>"


def hover_text(view: StudyView, trial: TrialRecord) -> str:
    """What is said of a trial where the pointer is on it."""
    values = [f"{axis.label} = {axis.format_value(trial)}" for axis in view.axes if trial.number in axis.values]
    return "<br>".join([_short_hover_text(trial), *values])


def _short_hover_text(trial: TrialRecord) -> str:
    """The same for charts that show a trial many times."""
    value = "no value" if trial.value is None else f"{trial.value:.2%}"
    return f"<b>trial {trial.number}</b>: {trial.recipe.label}<br>{value}, {trial.state.value}"


# ----------------------------------------------------------------------------- how a search went


def _history(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    figure = _new_figure("trial")
    for state, color in STATE_COLORS.items():
        own = [row for row in chart.trials if row.state is state and row.value is not None]
        _add_points(figure, state.value, color, own, [row.number for row in own], texts)
    steps = best_so_far(chart.trials)
    if steps:
        ends = [*steps, (max(row.number for row in view.trials), steps[-1][1])]
        line = {"color": TEXT_COLOR, "shape": "hv", "width": 1.5}
        _add_line(figure, "best so far", [x for x, _ in ends], [y for _, y in ends], line)
    _set_percent_axis(figure, [row.value for row in chart.trials if row.state is not TrialState.FAILED])
    return figure


def _learning_curves(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    figure = _new_figure("epoch")
    for state, color in reversed(STATE_COLORS.items()):
        x: list[int | None] = []
        y: list[float | None] = []
        said: list[str] = []
        for row in chart.trials:
            if row.state is state:
                x += [*range(1, len(row.curve) + 1), None]
                y += [*row.curve, None]
                said += [_short_hover_text(row)] * (len(row.curve) + 1)
        if x:
            faint = 0.7 if state is TrialState.COMPLETED else 0.35
            figure.add_scatter(
                x=x, y=y, text=said, name=state.value, hovertemplate=HOVER_TEMPLATE, mode="lines+markers",
                opacity=faint,
                line={"color": color, "width": 1.3}, marker={"size": 4},
            )  # fmt: skip
    if view.completed:
        best = max(view.completed, key=lambda row: (row.value or 0.0, -row.number))
        epochs = list(range(1, len(best.curve) + 1))
        _add_line(figure, f"trial {best.number}", epochs, list(best.curve), {"color": TEXT_COLOR, "width": 2.5})
    _set_percent_axis(figure, [value for row in chart.trials for value in row.curve])
    return figure


def _timeline(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    figure = _new_figure("minutes since the study began", "trial")
    bars, pauses = view.timeline
    for state, color in STATE_COLORS.items():
        own = [bar for bar in bars if bar.trial.state is state]
        if own:
            figure.add_bar(
                orientation="h",
                name=state.value,
                y=[bar.trial.number for bar in own],
                base=[bar.start / 60 for bar in own],
                x=[(bar.end - bar.start) / 60 for bar in own],
                text=[texts[bar.trial.number] for bar in own],
                textposition="none",
                hovertemplate=HOVER_TEMPLATE,
                marker={"color": color},
            )
    for moment in pauses:
        figure.add_vline(x=moment / 60, line={"color": GREY, "dash": "dot"}, annotation_text="paused")
    figure.update_layout(barmode="overlay", yaxis={"autorange": "reversed"}, hovermode="closest")
    return figure


# -------------------------------------------------------------------------------- what decided


def _importances(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    assert view.importances is not None
    shares = view.importances.by_name
    figure = _new_figure("share of the importance", "")
    figure.add_bar(
        orientation="h", x=list(shares.values()), y=list(shares), marker={"color": BLUE},
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        height=140 + 24 * len(shares),
        xaxis={"tickformat": ".0%"},
        yaxis={"autorange": "reversed", "automargin": True},
    )
    return figure


def _parallel_coordinates(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    """Lines that can be brushed; plotly has no hover for them."""
    values = [row.value or 0.0 for row in chart.trials]
    low, high = _axis_range(values)
    dimensions: list[dict[str, Any]] = []
    for axis in chart.axes:
        places = [axis.position(row) for row in chart.trials]
        missing = None in places
        ticks = ([(ABSENT_POSITION, "none")] if missing else []) + axis.ticks()
        dimensions.append(
            {
                "label": axis.label,
                "values": [ABSENT_POSITION if place is None else place for place in places],
                "range": [ABSENT_POSITION if missing else 0, 1],
                "tickvals": [place for place, _ in ticks],
                "ticktext": [text for _, text in ticks],
            }
        )
    dimensions.append({"label": "accuracy", "values": values, "range": [low, high], "tickformat": ".1%"})
    figure = _new_figure("")
    figure.add_parcoords(
        dimensions=dimensions,
        labelangle=-25,
        line={
            "color": values, "colorscale": "Viridis", "reversescale": True, "cmin": low, "cmax": high,
            "showscale": True, "colorbar": {"tickformat": ".1%"},
        },
    )  # fmt: skip
    return figure


def _slices(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    from plotly.subplots import make_subplots

    columns = min(len(chart.axes), PANELS_PER_ROW)
    lines = -(-len(chart.axes) // columns)
    figure = make_subplots(
        rows=lines, cols=columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.25 / lines
    )
    numbers = [row.number for row in chart.trials]
    colors = {"colorscale": "Cividis", "reversescale": True, "cmin": min(numbers), "cmax": max(numbers)}
    for number, axis in enumerate(chart.axes):
        there = [row for row in chart.trials if row.number in axis.values]
        line, column = divmod(number, columns)
        figure.add_scatter(
            x=[axis.position(row, 0.3) for row in there],
            y=[row.value for row in there],
            text=[f"{_short_hover_text(row)}<br>{axis.label} = {axis.format_value(row)}" for row in there],
            mode="markers",
            hovertemplate=HOVER_TEMPLATE,
            showlegend=False,
            marker={
                **colors, "color": [row.number for row in there], "size": 6,
                "showscale": number == 0,
                "colorbar": {"title": "trial", "lenmode": "pixels", "len": 230, "y": 1, "yanchor": "top"},
            },
            row=line + 1,
            col=column + 1,
        )  # fmt: skip
        figure.update_xaxes(**_axis_layout(axis, axis.label, MAX_TICKS_SMALL), row=line + 1, col=column + 1)
    low, high = _axis_range([row.value or 0.0 for row in chart.trials])
    figure.update_yaxes(tickformat=".1%", range=[low, high])
    figure.update_layout(height=120 + 230 * lines)
    return figure


def _contour(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    x, y = chart.axes
    values = [row.value or 0.0 for row in chart.trials]
    low, high = _axis_range(values)
    figure = _new_figure(x.name, y.name)
    if cells := _grid_means([(a, b, min(max(value, low), high)) for a, b, value in surface_points(chart)]):
        across, up = (sorted({cell[side] for cell in cells}) for side in (0, 1))
        figure.add_contour(
            x=across, y=up, z=[[cells.get((a, b)) for a in across] for b in up], connectgaps=True, showscale=False,
            colorscale="Viridis", reversescale=True, zmin=low, zmax=high, hoverinfo="skip", line={"width": 0},
        )  # fmt: skip
    figure.add_scatter(
        x=[x.position(row) for row in chart.trials],
        y=[y.position(row) for row in chart.trials],
        text=[texts[row.number] for row in chart.trials],
        mode="markers",
        hovertemplate=HOVER_TEMPLATE,
        marker={
            "color": values, "colorscale": "Viridis", "reversescale": True, "cmin": low, "cmax": high, "size": 9,
            "line": {"color": "white", "width": 1}, "showscale": True, "colorbar": {"tickformat": ".1%"},
        },
    )  # fmt: skip
    figure.update_xaxes(**_axis_layout(x, x.name))
    figure.update_yaxes(**_axis_layout(y, y.name))
    return figure


def _grid_means(surface: Sequence[tuple[float, float, float]]) -> dict[tuple[float, float], float]:
    """The mean of the points in each cell."""
    found: dict[tuple[float, float], list[float]] = {}
    for across, up, value in surface:
        found.setdefault((round(across * GRID_CELLS) / GRID_CELLS, round(up * GRID_CELLS) / GRID_CELLS), []).append(
            value
        )
    return {cell: statistics.fmean(values) for cell, values in found.items()}


# ------------------------------------------------------------------------------- what it costs


def _accuracy_versus_cost(view: StudyView, chart: Chart, texts: dict[int, str], *, cost: Cost) -> Any:
    figure = _new_figure(cost.label)
    rows = chart.trials
    costs = [cost.value_of(row) for row in rows]
    points = [(spent, row.value or 0.0) for spent, row in zip(costs, rows, strict=True)]
    _add_points(figure, "completed", BLUE, rows, costs, texts)
    front = [points[place] for place in pareto_front(points)]
    _add_line(figure, "Pareto front", [x for x, _ in front], [y for _, y in front], {"color": RED, "shape": "hv"})
    if max(costs) > 4 * min(costs):
        figure.update_xaxes(type="log")
    _set_percent_axis(figure, [value for _, value in points])
    return figure


Renderer = Callable[[StudyView, Chart, dict[int, str]], Any]

RENDERERS: dict[str, Renderer] = {
    "history": _history,
    "importances": _importances,
    "parallel_coordinates": _parallel_coordinates,
    "slices": _slices,
    "contour": _contour,
    "learning_curves": _learning_curves,
    "timeline": _timeline,
    **{name: functools.partial(_accuracy_versus_cost, cost=cost) for name, cost in COSTS.items()},
}


# ---------------------------------------------------------------------------- what all share


def _new_figure(x_title: str, y_title: str = "validation accuracy") -> Any:
    from plotly.graph_objects import Figure

    return Figure(layout={"xaxis": {"title": x_title}, "yaxis": {"title": y_title}, "height": 460})


def _add_points(
    figure: Any, name: str, color: str, trials: Sequence[TrialRecord], x: Sequence[float], texts: dict[int, str]
) -> None:
    if trials:
        figure.add_scatter(
            x=list(x), y=[row.value for row in trials], text=[texts[row.number] for row in trials],
            name=name, mode="markers", hovertemplate=HOVER_TEMPLATE,
            marker={"color": color, "size": 7, "opacity": 0.75},
        )  # fmt: skip


def _add_line(figure: Any, name: str, x: Sequence[float], y: Sequence[float], line: dict[str, Any]) -> None:
    """A line that leaves the pointer to the trials below it."""
    figure.add_scatter(x=list(x), y=list(y), name=name, mode="lines", line=line, hoverinfo="skip")


def _set_percent_axis(figure: Any, values: Sequence[float | None]) -> None:
    low, high = _axis_range([value for value in values if value is not None])
    figure.update_yaxes(tickformat=".1%", range=[low, high])


def _axis_range(values: Sequence[float]) -> tuple[float, float]:
    """The window of the values with a margin; what lies outside is a double click away."""
    low, high = display_range(values)
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def _axis_layout(axis: Axis, title: str, max_ticks: int = MAX_TICKS) -> dict[str, Any]:
    places, texts = zip(*axis.ticks(max_ticks), strict=True)
    return {"title": title, "tickvals": places, "ticktext": texts, "tickangle": 0, "range": [-0.12, 1.12]}
