"""Plots of which hyperparameters matter: importances, parallel coordinates, slices, contour."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fmnist_search.reporting.axes import MAX_TICKS_SMALL
from fmnist_search.reporting.chart_data import (
    Chart,
    StudyView,
    display_range,
    surface_points,
)
from fmnist_search.reporting.colors import BLUE, TEXT_COLOR
from fmnist_search.reporting.style import (
    VALUE_COLORMAP,
    manual_layout,
    percent_formatter,
    set_percent_axis,
    set_ticks,
    single_axes_figure,
    split_coordinates,
    style_axes,
    titled_figure,
    value_norm,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SLICE_PANELS, MAX_PARALLEL_AXES, PANELS_PER_ROW = 12, 10, 4


def _importances(view: StudyView, chart: Chart) -> Figure:
    assert view.importances is not None
    shares = view.importances.by_name
    figure, axes = single_axes_figure(chart, height=max(2.2, 1.3 + 0.3 * len(shares)))
    axes.barh(list(shares), list(shares.values()), color=BLUE, height=0.7)
    for place, share in enumerate(shares.values()):
        axes.text(share, place, f" {share:.1%}", va="center", fontsize=8, color=TEXT_COLOR)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, max(max(shares.values()) * 1.12, 0.01))
    axes.xaxis.set_major_formatter(percent_formatter())
    axes.set_xlabel("share of the importance")
    axes.tick_params(axis="y", length=0)
    return figure


def _parallel_coordinates(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import LineCollection

    shown, note = chart.first_axes(MAX_PARALLEL_AXES)
    figure, axes = single_axes_figure(chart, note=note)
    rows = sorted(chart.trials, key=lambda row: row.value or 0.0)
    values = [row.value or 0.0 for row in rows]
    norm = value_norm(values)
    absent = -0.1
    lines = [
        [*((x, absent if (place := axis.position(row, 0.05)) is None else place) for x, axis in enumerate(shown)),
         (len(shown), min(max(float(norm(value)), 0.0), 1.0))]
        for row, value in zip(rows, values, strict=True)
    ]  # fmt: skip
    drawn = LineCollection(
        lines, cmap=VALUE_COLORMAP, norm=norm, array=values, linewidths=1.2, alpha=min(0.85, max(0.35, 50 / len(rows)))
    )
    axes.add_collection(drawn)
    for x, axis in enumerate(shown):
        missing = any(axis.position(row) is None for row in rows)
        _draw_parallel_axis(axes, x, axis.ticks() + ([(absent, "none")] if missing else []))
    low, high = norm.vmin or 0.0, norm.vmax or 1.0
    _draw_parallel_axis(axes, len(shown), [(step / 4, f"{low + step / 4 * (high - low):.1%}") for step in range(5)])
    axes.set_xlim(-0.35, len(shown) + 0.35)
    axes.set_ylim(-0.14 if any(axis.position(row) is None for axis in shown for row in rows) else -0.07, 1.07)
    axes.set_xticks(
        range(len(shown) + 1), [*(_wrap_label(axis.label) for axis in shown), "validation\naccuracy"], fontsize=8
    )
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _draw_parallel_axis(axes: Axes, x: float, ticks: Sequence[tuple[float, str]]) -> None:
    """An axis of its own, with its texts at its left."""
    axes.plot([x, x], [0, 1], color=TEXT_COLOR, linewidth=0.8, zorder=3)
    for place, text in ticks:
        axes.plot([x - 0.02, x + 0.02], [place, place], color=TEXT_COLOR, linewidth=0.8, zorder=3)
        box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"}
        axes.text(x - 0.04, place, text, ha="right", va="center", fontsize=7, color=TEXT_COLOR, bbox=box, zorder=4)


def _slices(view: StudyView, chart: Chart) -> Figure:
    shown, note = chart.first_axes(MAX_SLICE_PANELS)
    values = [row.value for row in chart.trials if row.value is not None]
    below = sum(value < display_range(values)[0] for value in values)
    columns = min(len(shown), PANELS_PER_ROW)
    lines = math.ceil(len(shown) / columns)
    note = f"{note}; {below} lie below the axis" if below else note
    figure = titled_figure(chart.title, note, max(2 * columns + 1.5, 8.2), lines * (2 if columns > 2 else 3))
    panels, beside = _slice_panels(figure, lines, columns)
    numbers = [row.number for row in chart.trials]
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for panel, axis in zip(panels, shown, strict=False):
        there = [(row, x) for row in chart.trials if (x := axis.position(row, 0.3)) is not None]
        drawn = panel.scatter(
            [x for _, x in there],
            [row.value or 0.0 for row, _ in there],
            c=[row.number for row, _ in there],
            cmap="cividis_r",
            vmin=min(numbers),
            vmax=max(numbers),
            s=16,
            alpha=0.85,
        )
        set_ticks(panel.xaxis, axis, MAX_TICKS_SMALL)
        panel.set_xlim(-0.12, 1.12)
        panel.set_xlabel(axis.label, fontsize=8)
        panel.tick_params(labelsize=7)
        style_axes(panel)
    set_percent_axis(panels[0], values)
    panels[0].set_ylabel("validation accuracy", fontsize=8)
    figure.colorbar(drawn, cax=beside).ax.tick_params(labelsize=7)
    beside.set_title("trial", fontsize=8)
    return figure


def _slice_panels(figure: Figure, row_count: int, column_count: int) -> tuple[list[Axes], Axes]:
    """Panels of one vertical axis, and at their right a place for the colours."""
    width, height = figure.get_size_inches()
    top = manual_layout(figure) - 0.1 / height
    bottom, left, right = 0.45 / height, 0.75 / width, 1 - 0.75 / width
    grid = {"left": left, "right": right, "bottom": bottom, "top": top, "wspace": 0.12, "hspace": 0.35}
    panels = figure.subplots(row_count, column_count, sharey=True, squeeze=False, gridspec_kw=grid)
    tall = min(top - bottom - 0.2 / height, 4 / height)
    return list(panels.flat), figure.add_axes((right + 0.2 / width, bottom, 0.12 / width, tall))


def _contour(view: StudyView, chart: Chart) -> Figure:
    figure, axes = single_axes_figure(chart)
    x, y = chart.axes
    values = [row.value for row in chart.trials if row.value is not None]
    norm = value_norm(values)
    surface = surface_points(chart)
    if surface:
        across, up, heights = zip(*surface, strict=True)
        low, high = norm.vmin or 0.0, norm.vmax or 1.0
        inside = [min(max(height, low), high) for height in heights]
        levels = [low + (high - low) * step / 12 for step in range(13)]
        with contextlib.suppress(RuntimeError):  # the places lie on one line
            axes.tricontourf(across, up, inside, levels=levels, cmap=VALUE_COLORMAP, norm=norm)
    points = [(x.position(row), y.position(row)) for row in chart.trials]
    drawn = axes.scatter(
        *split_coordinates(points), c=values, cmap=VALUE_COLORMAP, norm=norm, s=34, edgecolors="white", linewidths=0.7
    )
    figure.colorbar(drawn, ax=axes, label="validation accuracy", format=percent_formatter())
    for side, axis in ((axes.xaxis, x), (axes.yaxis, y)):
        set_ticks(side, axis)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel(x.name)
    axes.set_ylabel(y.name)
    return figure


def _wrap_label(name: str) -> str:
    return name.replace(".", ".\n").replace("_", "_\n") if len(name) > 10 else name


RENDERERS: dict[str, Callable[[StudyView, Chart], Figure]] = {
    "importances": _importances,
    "parallel_coordinates": _parallel_coordinates,
    "slices": _slices,
    "contour": _contour,
}
"""How each chart of `chart_data` of that name is drawn."""
