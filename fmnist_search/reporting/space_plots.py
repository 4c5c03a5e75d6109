"""Plots over the search space: importances, parallel coordinates, slices, contour."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmnist_search.reporting.axes import MAX_TICKS_SMALL, Axis
from fmnist_search.reporting.chart_data import (
    Chart,
    StudyView,
    display_range,
    ranks,
    surface_points,
)
from fmnist_search.reporting.colors import BLUE, TEXT_COLOR
from fmnist_search.reporting.style import (
    VALUE_COLORMAP,
    PlotFunction,
    manual_layout,
    percent_formatter,
    set_percent_axis,
    set_ticks,
    single_axes_figure,
    split_coordinates,
    style_axes,
    titled_figure,
    use_integer_ticks,
    value_norm,
)
from fmnist_search.results.study import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

MAX_SLICE_PANELS, MAX_PARALLEL_AXES, PANELS_PER_ROW = 12, 10, 4
ABSENT_POSITION = -0.1
"""Position of trials without a hyperparameter on its axis in parallel coordinates."""


def _importances(view: StudyView, chart: Chart) -> Figure:
    assert view.importances is not None
    shares = view.importances.by_name
    figure, axes = single_axes_figure(chart, height=max(2.2, 1.3 + 0.3 * len(shares)))
    axes.barh(list(shares), list(shares.values()), color=BLUE, height=0.7)
    for index, share in enumerate(shares.values()):
        axes.text(share, index, f" {share:.1%}", va="center", fontsize=8, color=TEXT_COLOR)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, max(max(shares.values()) * 1.12, 0.01))
    axes.xaxis.set_major_formatter(percent_formatter())
    axes.set_xlabel("relative importance")
    axes.tick_params(axis="y", length=0)
    return figure


def _parallel_coordinates(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import LineCollection

    shown, note = chart.first_axes(MAX_PARALLEL_AXES)
    figure, axes = single_axes_figure(chart, note=note)
    trials = sorted(chart.trials, key=lambda trial: trial.value or 0.0)
    values = [trial.value or 0.0 for trial in trials]
    norm = value_norm(values)
    lines = [
        [*enumerate(_parallel_positions(trial, shown)), (len(shown), min(max(float(norm(value)), 0.0), 1.0))]
        for trial, value in zip(trials, values, strict=True)
    ]
    alpha = min(0.85, max(0.35, 50 / len(trials)))
    axes.add_collection(
        LineCollection(lines, cmap=VALUE_COLORMAP, norm=norm, array=values, linewidths=1.2, alpha=alpha)
    )
    incomplete = [axis for axis in shown if any(axis.position(trial) is None for trial in trials)]
    for x, axis in enumerate(shown):
        absent_tick = [(ABSENT_POSITION, "none")] if axis in incomplete else []
        _draw_parallel_axis(axes, x, axis.ticks() + absent_tick)
    low, high = norm.vmin or 0.0, norm.vmax or 1.0
    _draw_parallel_axis(axes, len(shown), [(step / 4, f"{low + step / 4 * (high - low):.1%}") for step in range(5)])
    axes.set_xlim(-0.35, len(shown) + 0.35)
    axes.set_ylim(-0.14 if incomplete else -0.07, 1.07)
    labels = [*(_wrap_label(axis.label) for axis in shown), "validation\naccuracy"]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _parallel_positions(trial: TrialRecord, axes: Sequence[Axis]) -> list[float]:
    positions = [axis.position(trial, jitter=0.05) for axis in axes]
    return [ABSENT_POSITION if position is None else position for position in positions]


def _draw_parallel_axis(axes: Axes, x: float, ticks: Sequence[tuple[float, str]]) -> None:
    """Draw a vertical axis at `x`, with the labels of its ticks at the left."""
    axes.plot([x, x], [0, 1], color=TEXT_COLOR, linewidth=0.8, zorder=3)
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"}
    for position, text in ticks:
        axes.plot([x - 0.02, x + 0.02], [position, position], color=TEXT_COLOR, linewidth=0.8, zorder=3)
        axes.text(x - 0.04, position, text, ha="right", va="center", fontsize=7, color=TEXT_COLOR, bbox=box, zorder=4)


def _slices(view: StudyView, chart: Chart) -> Figure:
    shown, note = chart.first_axes(MAX_SLICE_PANELS)
    values = [trial.value for trial in chart.trials if trial.value is not None]
    below = sum(value < display_range(values)[0] for value in values)
    columns = min(len(shown), PANELS_PER_ROW)
    rows = math.ceil(len(shown) / columns)
    note = f"{note}; {below} below the axis" if below else note
    figure = titled_figure(chart.title, note, max(2 * columns + 1.5, 8.2), rows * (2 if columns > 2 else 3))
    panels, colorbar_axes = _slice_panels(figure, rows, columns)
    numbers = [trial.number for trial in chart.trials]
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for panel, axis in zip(panels, shown, strict=False):
        points = [
            (x, trial.value or 0.0, trial.number)
            for trial in chart.trials
            if (x := axis.position(trial, jitter=0.3)) is not None
        ]
        points_drawn = panel.scatter(
            [x for x, _, _ in points], [value for _, value, _ in points], c=[number for _, _, number in points],
            cmap="cividis_r", vmin=min(numbers), vmax=max(numbers), s=16, alpha=0.85,
        )  # fmt: skip
        set_ticks(panel.xaxis, axis, MAX_TICKS_SMALL)
        panel.set_xlim(-0.12, 1.12)
        panel.set_xlabel(axis.label, fontsize=8)
        panel.tick_params(labelsize=7)
        style_axes(panel)
    set_percent_axis(panels[0], values)
    panels[0].set_ylabel("validation accuracy", fontsize=8)
    figure.colorbar(points_drawn, cax=colorbar_axes).ax.tick_params(labelsize=7)
    colorbar_axes.set_title("trial", fontsize=8)
    return figure


def _slice_panels(figure: Figure, row_count: int, column_count: int) -> tuple[list[Axes], Axes]:
    """Return panels with a shared vertical axis, and axes for a colorbar at their right."""
    width, height = figure.get_size_inches()
    top = manual_layout(figure) - 0.1 / height
    bottom, left, right = 0.45 / height, 0.75 / width, 1 - 0.75 / width
    grid = {"left": left, "right": right, "bottom": bottom, "top": top, "wspace": 0.12, "hspace": 0.35}
    panels = figure.subplots(row_count, column_count, sharey=True, squeeze=False, gridspec_kw=grid)
    colorbar_height = min(top - bottom - 0.2 / height, 4 / height)
    return list(panels.flat), figure.add_axes((right + 0.2 / width, bottom, 0.12 / width, colorbar_height))


def _contour(view: StudyView, chart: Chart) -> Figure:
    figure, axes = single_axes_figure(chart)
    values = [trial.value for trial in chart.trials if trial.value is not None]
    norm = value_norm(values)
    surface = surface_points(chart)
    if surface:
        x, y, means = zip(*surface, strict=True)
        low, high = norm.vmin or 0.0, norm.vmax or 1.0
        clipped = [min(max(mean, low), high) for mean in means]
        levels = [low + (high - low) * step / 12 for step in range(13)]
        with contextlib.suppress(RuntimeError):  # all points lie on one line
            axes.tricontourf(x, y, clipped, levels=levels, cmap=VALUE_COLORMAP, norm=norm)
    scatter = _pair_points(axes, chart, c=values, cmap=VALUE_COLORMAP, norm=norm)
    figure.colorbar(scatter, ax=axes, label="validation accuracy", format=percent_formatter())
    return figure


def _rank(view: StudyView, chart: Chart) -> Figure:
    figure, axes = single_axes_figure(chart)
    scatter = _pair_points(axes, chart, c=ranks(chart.trials), cmap=VALUE_COLORMAP.removesuffix("_r"))
    colorbar = figure.colorbar(scatter, ax=axes, label="rank, 1 is the best")
    colorbar.ax.invert_yaxis()
    use_integer_ticks(colorbar.ax.yaxis)
    return figure


def _pair_points(axes: Axes, chart: Chart, **colors: Any) -> PathCollection:
    """Draw the trials over the two hyperparameters of a chart."""
    x_axis, y_axis = chart.axes
    points = [(x_axis.position(trial), y_axis.position(trial)) for trial in chart.trials]
    scatter = axes.scatter(*split_coordinates(points), s=34, edgecolors="white", linewidths=0.7, **colors)
    set_ticks(axes.xaxis, x_axis)
    set_ticks(axes.yaxis, y_axis)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel(x_axis.name)
    axes.set_ylabel(y_axis.name)
    return scatter


def _wrap_label(name: str) -> str:
    return name.replace(".", ".\n").replace("_", "_\n") if len(name) > 10 else name


PLOTS: dict[str, PlotFunction] = {
    "importances": _importances,
    "parallel_coordinates": _parallel_coordinates,
    "slices": _slices,
    "contour": _contour,
    "rank": _rank,
}
"""The function that draws each chart, by the chart's name in `StudyView.charts`."""
