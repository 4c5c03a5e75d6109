"""The charts of a study as interactive plotly figures.

Functions import plotly when they draw: it is an optional dependency.
"""

from __future__ import annotations

import functools
import math
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
    distribution,
    ranks,
    surface_points,
)
from fmnist_search.reporting.colors import BLUE, GREY, RED, STATE_COLORS, TEXT_COLOR
from fmnist_search.results.objectives import pareto_front
from fmnist_search.results.own_costs import cost_label
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState

PANELS_PER_ROW = 4
GRID_CELLS = 20
"""Cells of a contour in each direction, for any number of trials."""
ABSENT_POSITION = -0.1
"""Position of trials without a hyperparameter on its axis."""
HOVER_TEMPLATE = "%{text}<extra></extra>"

PageChartFunction = Callable[[StudyView, Chart, dict[int, str]], Any]
"""Draws a chart of a study as a plotly figure; the last argument holds the hover texts by trial number."""


def hover_text(view: StudyView, trial: TrialRecord) -> str:
    """Return the text of a trial under the pointer: number, network, value, state and hyperparameters."""
    values = [f"{axis.label} = {axis.format_value(trial)}" for axis in view.axes if trial.number in axis.values]
    return "<br>".join([_short_hover_text(trial), *values])


def _short_hover_text(trial: TrialRecord) -> str:
    """Return the text without the hyperparameters, for charts that show a trial many times."""
    value = "no value" if trial.value is None else f"{trial.value:.2%}"
    cost = f", {trial.cost} {cost_label(trial.cost.metric)}" if trial.cost else ""
    return f"<b>trial {trial.number}</b>: {trial.recipe.label}<br>{value}{cost}, {trial.state.value}"


# ------------------------------------------------------------------------ progress of the search


def _history(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    figure = _new_figure("trial")
    for state, color in STATE_COLORS.items():
        trials = [trial for trial in chart.trials if trial.state is state and trial.value is not None]
        _add_points(figure, state.value, color, trials, [trial.number for trial in trials], texts)
    steps = best_so_far(chart.trials)
    if steps:
        points = [*steps, (max(trial.number for trial in view.trials), steps[-1][1])]
        line = {"color": TEXT_COLOR, "shape": "hv", "width": 1.5}
        _add_line(figure, "best so far", [x for x, _ in points], [y for _, y in points], line)
    _set_percent_axis(figure, [trial.value for trial in chart.trials if trial.state is not TrialState.FAILED])
    return figure


def _learning_curves(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    figure = _new_figure("epoch")
    for state, color in reversed(STATE_COLORS.items()):
        x: list[int | None] = []
        y: list[float | None] = []
        hover: list[str] = []
        for trial in chart.trials:
            if trial.state is state:
                x += [*range(1, len(trial.curve) + 1), None]  # None interrupts the line
                y += [*trial.curve, None]
                hover += [_short_hover_text(trial)] * (len(trial.curve) + 1)
        if x:
            opacity = 0.7 if state is TrialState.COMPLETED else 0.35
            figure.add_scatter(
                x=x, y=y, text=hover, name=state.value, hovertemplate=HOVER_TEMPLATE, mode="lines+markers",
                opacity=opacity, line={"color": color, "width": 1.3}, marker={"size": 4},
            )  # fmt: skip
    _add_predictions(figure, chart)
    if view.completed:
        best = max(view.completed, key=lambda trial: (trial.value or 0.0, -trial.number))
        epochs = list(range(1, len(best.curve) + 1))
        _add_line(figure, f"trial {best.number}", epochs, list(best.curve), {"color": TEXT_COLOR, "width": 2.5})
    _set_percent_axis(figure, [value for trial in chart.trials for value in trial.curve])
    return figure


def _add_predictions(figure: Any, chart: Chart) -> None:
    """Continue the curves of paused trials to the accuracy that is predicted for their last epoch."""
    for trial in chart.trials:
        if predicted := trial.prediction:
            above, below = predicted.high - predicted.median, predicted.median - predicted.low
            figure.add_scatter(
                x=[len(trial.curve), trial.recipe.epochs], y=[trial.curve[-1], predicted.median],
                error_y={"array": [0, above], "arrayminus": [0, below], "width": 3, "thickness": 1},
                text=f"trial {trial.number} is expected to end at {predicted}", hovertemplate=HOVER_TEMPLATE,
                mode="lines", showlegend=False,
                line={"color": STATE_COLORS[TrialState.PAUSED], "dash": "dot", "width": 1},
            )  # fmt: skip


def _timeline(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    figure = _new_figure("minutes since the start of the study", "trial")
    bars, pauses = view.timeline
    for state, color in STATE_COLORS.items():
        state_bars = [bar for bar in bars if bar.trial.state is state]
        if state_bars:
            figure.add_bar(
                orientation="h",
                name=state.value,
                y=[bar.trial.number for bar in state_bars],
                base=[bar.start / 60 for bar in state_bars],
                x=[(bar.end - bar.start) / 60 for bar in state_bars],
                text=[texts[bar.trial.number] for bar in state_bars],
                textposition="none",
                hovertemplate=HOVER_TEMPLATE,
                marker={"color": color},
            )
    for time in pauses:
        figure.add_vline(x=time / 60, line={"color": GREY, "dash": "dot"}, annotation_text="paused")
    figure.update_layout(barmode="overlay", yaxis={"autorange": "reversed"}, hovermode="closest")
    return figure


def _edf(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    figure = _new_figure("validation accuracy", "share of trials that are not better")
    values, shares, numbers = map(list, zip(*distribution(chart.trials), strict=True))
    figure.add_scatter(
        x=values, y=shares, text=[texts[number] for number in numbers], hovertemplate=HOVER_TEMPLATE,
        mode="lines+markers", line={"color": BLUE, "shape": "hv"},
    )  # fmt: skip
    figure.update_xaxes(tickformat=".1%", range=list(_axis_range(values)))
    figure.update_yaxes(tickformat=".0%")
    return figure


# ---------------------------------------------------------------------------- search space


def _importances(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    assert view.importances is not None
    shares = view.importances.by_name
    figure = _new_figure("relative importance", "")
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
    """Draw lines whose ranges can be selected; plotly shows no texts under the pointer for them."""
    values = [trial.value or 0.0 for trial in chart.trials]
    low, high = _axis_range(values)
    dimensions: list[dict[str, Any]] = []
    for axis in chart.axes:
        positions = [axis.position(trial) for trial in chart.trials]
        is_incomplete = None in positions
        ticks = ([(ABSENT_POSITION, "none")] if is_incomplete else []) + axis.ticks()
        dimensions.append(
            {
                "label": axis.label,
                "values": [ABSENT_POSITION if position is None else position for position in positions],
                "range": [ABSENT_POSITION if is_incomplete else 0, 1],
                "tickvals": [position for position, _ in ticks],
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
    rows = math.ceil(len(chart.axes) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.25 / rows
    )
    numbers = [trial.number for trial in chart.trials]
    colors = {"colorscale": "Cividis", "reversescale": True, "cmin": min(numbers), "cmax": max(numbers)}
    for index, axis in enumerate(chart.axes):
        trials = [trial for trial in chart.trials if trial.number in axis.values]
        row, column = divmod(index, columns)
        figure.add_scatter(
            x=[axis.position(trial, jitter=0.3) for trial in trials],
            y=[trial.value for trial in trials],
            text=[f"{_short_hover_text(trial)}<br>{axis.label} = {axis.format_value(trial)}" for trial in trials],
            mode="markers",
            hovertemplate=HOVER_TEMPLATE,
            showlegend=False,
            marker={
                **colors, "color": [trial.number for trial in trials], "size": 6,
                "showscale": index == 0,
                "colorbar": {"title": "trial", "lenmode": "pixels", "len": 230, "y": 1, "yanchor": "top"},
            },
            row=row + 1,
            col=column + 1,
        )  # fmt: skip
        figure.update_xaxes(**_axis_layout(axis, axis.label, MAX_TICKS_SMALL), row=row + 1, col=column + 1)
    _set_percent_axis(figure, [trial.value for trial in chart.trials])
    figure.update_layout(height=120 + 230 * rows)
    return figure


def _contour(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    values = [trial.value or 0.0 for trial in chart.trials]
    low, high = _axis_range(values)
    figure = _new_figure("")
    if cells := _grid_means([(x, y, min(max(value, low), high)) for x, y, value in surface_points(chart)]):
        xs, ys = (sorted({cell[dimension] for cell in cells}) for dimension in (0, 1))
        figure.add_contour(
            x=xs, y=ys, z=[[cells.get((x, y)) for x in xs] for y in ys], connectgaps=True, showscale=False,
            colorscale="Viridis", reversescale=True, zmin=low, zmax=high, hoverinfo="skip", line={"width": 0},
        )  # fmt: skip
    colors = {"color": values, "reversescale": True, "cmin": low, "cmax": high, "colorbar": {"tickformat": ".1%"}}
    _add_pair_points(figure, chart, texts, colors)
    return figure


def _rank(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    figure = _new_figure("")
    _add_pair_points(figure, chart, texts, {"color": ranks(chart.trials), "colorbar": {"title": "rank"}})
    return figure


def _add_pair_points(figure: Any, chart: Chart, texts: dict[int, str], colors: dict[str, Any]) -> None:
    """Draw the trials over the two hyperparameters of a chart."""
    x_axis, y_axis = chart.axes
    x, y = ([axis.position(trial) for trial in chart.trials] for axis in chart.axes)
    marker = {"colorscale": "Viridis", "showscale": True, "size": 9, "line": {"color": "white", "width": 1}, **colors}
    hover = [texts[trial.number] for trial in chart.trials]
    figure.add_scatter(x=x, y=y, text=hover, mode="markers", hovertemplate=HOVER_TEMPLATE, marker=marker)
    figure.update_xaxes(**_axis_layout(x_axis, x_axis.name))
    figure.update_yaxes(**_axis_layout(y_axis, y_axis.name))


def _grid_means(surface: Sequence[tuple[float, float, float]]) -> dict[tuple[float, float], float]:
    """Return the mean value of the points in each cell, by the position of the cell."""
    cells: dict[tuple[float, float], list[float]] = {}
    for x, y, value in surface:
        cell = (round(x * GRID_CELLS) / GRID_CELLS, round(y * GRID_CELLS) / GRID_CELLS)
        cells.setdefault(cell, []).append(value)
    return {cell: statistics.fmean(values) for cell, values in cells.items()}


# ------------------------------------------------------------------------------------ costs


def _accuracy_versus_cost(view: StudyView, chart: Chart, texts: dict[int, str], *, cost: Cost) -> Any:
    figure = _new_figure(cost.label)
    costs = cost.values_of(chart.trials)
    points = [(x, trial.value or 0.0) for x, trial in zip(costs, chart.trials, strict=True)]
    _add_points(figure, "completed", BLUE, chart.trials, costs, texts)
    front = [points[index] for index in pareto_front(points)]
    _add_line(figure, "Pareto front", [x for x, _ in front], [y for _, y in front], {"color": RED, "shape": "hv"})
    if max(costs) > 4 * min(costs) > 0:
        figure.update_xaxes(type="log")
    _set_percent_axis(figure, [value for _, value in points])
    return figure


def _pareto_front(view: StudyView, chart: Chart, texts: dict[int, str]) -> Any:
    assert view.objective is not None
    return _accuracy_versus_cost(view, chart, texts, cost=view.objective)


PAGE_CHARTS: dict[str, PageChartFunction] = {
    "history": _history,
    "pareto_front": _pareto_front,
    "importances": _importances,
    "parallel_coordinates": _parallel_coordinates,
    "slices": _slices,
    "contour": _contour,
    "rank": _rank,
    "edf": _edf,
    "learning_curves": _learning_curves,
    "timeline": _timeline,
    **{name: functools.partial(_accuracy_versus_cost, cost=cost) for name, cost in COSTS.items()},
}
"""The function that draws each chart, by the chart's name in `StudyView.charts`."""


# ---------------------------------------------------------------------------- shared parts


def _new_figure(x_title: str, y_title: str = "validation accuracy") -> Any:
    from plotly.graph_objects import Figure

    return Figure(layout={"xaxis": {"title": x_title}, "yaxis": {"title": y_title}, "height": 460})


def _add_points(
    figure: Any, name: str, color: str, trials: Sequence[TrialRecord], x: Sequence[float], texts: dict[int, str]
) -> None:
    if trials:
        figure.add_scatter(
            x=list(x), y=[trial.value for trial in trials], text=[texts[trial.number] for trial in trials],
            name=name, mode="markers", hovertemplate=HOVER_TEMPLATE,
            marker={"color": color, "size": 7, "opacity": 0.75},
        )  # fmt: skip


def _add_line(figure: Any, name: str, x: Sequence[float], y: Sequence[float], line: dict[str, Any]) -> None:
    """Add a line that shows no text under the pointer, so that the trials below it can show theirs."""
    figure.add_scatter(x=list(x), y=list(y), name=name, mode="lines", line=line, hoverinfo="skip")


def _set_percent_axis(figure: Any, values: Sequence[float | None]) -> None:
    low, high = _axis_range([value for value in values if value is not None])
    figure.update_yaxes(tickformat=".1%", range=[low, high])


def _axis_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the displayed range of the values with a margin; a double click shows all values."""
    low, high = display_range(values)
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def _axis_layout(axis: Axis, title: str, max_ticks: int = MAX_TICKS) -> dict[str, Any]:
    positions, labels = zip(*axis.ticks(max_ticks), strict=True)
    return {"title": title, "tickvals": positions, "ticktext": labels, "tickangle": 0, "range": [-0.12, 1.12]}
