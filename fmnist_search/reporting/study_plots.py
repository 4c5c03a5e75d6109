"""Pictures of a study, drawn by matplotlib from plain results; each says which trials entered it.

Knows neither MLflow nor Optuna.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fmnist_search.config.space import Space
from fmnist_search.reporting.chart_data import (
    BLUE,
    COSTS,
    GREY,
    MAX_TICKS,
    MAX_TICKS_SMALL,
    RED,
    STATE_COLORS,
    TEXT_COLOR,
    Axis,
    Chart,
    Cost,
    StudyView,
    best_so_far,
    display_range,
    pareto_front,
    surface_points,
)
from fmnist_search.reporting.style import (
    manual_layout,
    percent_formatter,
    split_coordinates,
    style_axes,
    titled_figure,
    use_integer_ticks,
)
from fmnist_search.results.study import Importances, TrialRecord
from fmnist_search.results.training import TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

VALUE_COLORMAP = "viridis_r"
"""The best is dark, so that it stands out on white."""
MAX_SLICE_PANELS, MAX_PARALLEL_AXES, PANELS_PER_ROW = 12, 10, 4
MAX_LABELED_POINTS = 8


def study_figures(
    trials: Sequence[TrialRecord], space: Space, importances: Importances | None = None
) -> dict[str, Callable[[], Figure]]:
    """The pictures of a study by name, each drawn when it is called; only those for which there is something to show.

    `trials` are all trials that ended. The contour, and the order of hyperparameters, need importances.
    """
    view = StudyView(trials, space, importances)
    return {name: functools.partial(_RENDERERS[name], view, chart) for name, chart in view.charts.items()}


# ----------------------------------------------------------------------------- how a search went


def _history(view: StudyView, chart: Chart) -> Figure:
    figure, axes = _single_axes_figure(chart)
    shown = [row.value for row in chart.trials if row.state is not TrialState.FAILED and row.value is not None]
    floor = _set_percent_axis(axes, shown)
    for state, alpha in ((TrialState.INTERRUPTED, 0.6), (TrialState.PRUNED, 0.35), (TrialState.COMPLETED, 1.0)):
        own = [(row.number, row.value) for row in chart.trials if row.state is state and row.value is not None]
        inside = [(number, value) for number, value in own if value >= floor]
        below = [number for number, value in own if value < floor]
        if own:
            axes.scatter(*split_coordinates(inside), s=28, color=STATE_COLORS[state], alpha=alpha, label=state.value)
            _mark_at_bottom(axes, below, "v", STATE_COLORS[state], f"{state.value}, below the axis")
    _mark_at_bottom(axes, [row.number for row in chart.trials if row.state is TrialState.FAILED], "x", RED, "failed")
    steps = best_so_far(chart.trials)
    if steps:
        last = max(row.number for row in view.trials)
        numbers, best = split_coordinates([*steps, (last, steps[-1][1])])
        axes.step(numbers, best, where="post", color=TEXT_COLOR, linewidth=1.5, label="best so far", zorder=1)
    axes.set_xlabel("trial")
    axes.set_ylabel("validation accuracy")
    use_integer_ticks(axes.xaxis)
    _add_legend(figure)
    return figure


def _mark_at_bottom(axes: Axes, numbers: Sequence[float], marker: str, color: str, label: str) -> None:
    """Marks at the lower edge, whatever the axis shows."""
    if numbers:
        floor = axes.get_xaxis_transform()
        axes.scatter(
            numbers,
            [0.02] * len(numbers),
            s=28,
            marker=marker,
            color=color,
            label=label,
            transform=floor,
            clip_on=False,
        )


def _learning_curves(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import LineCollection

    figure, axes = _single_axes_figure(chart)
    norm = _value_norm(
        [row.value for row in chart.trials if row.state is TrialState.COMPLETED and row.value is not None]
    )
    _set_percent_axis(axes, [value for row in chart.trials for value in row.curve])
    for state in (TrialState.INTERRUPTED, TrialState.FAILED, TrialState.PRUNED, TrialState.COMPLETED):
        rows = sorted((row for row in chart.trials if row.state is state), key=lambda row: row.value or 0.0)
        lines = [list(enumerate(row.curve, start=1)) for row in rows]
        if state is TrialState.COMPLETED and rows:
            values = [row.value or 0.0 for row in rows]
            drawn = LineCollection(
                lines, cmap=VALUE_COLORMAP, norm=norm, array=values, linewidths=1.4, label=state.value
            )
            figure.colorbar(
                axes.add_collection(drawn), ax=axes, label="last epoch of completed trials", format=percent_formatter()
            )
        elif rows:
            axes.add_collection(
                LineCollection(lines, colors=STATE_COLORS[state], linewidths=1, alpha=0.35, label=state.value)
            )
        ends = [line[-1] for line in lines]
        if state is not TrialState.COMPLETED and ends:
            axes.scatter(*split_coordinates(ends), s=10, color=STATE_COLORS[state], alpha=0.5)
    if view.completed:
        best = max(view.completed, key=lambda row: (row.value or 0.0, -row.number))
        epochs = range(1, len(best.curve) + 1)
        axes.plot(
            epochs, best.curve, color=TEXT_COLOR, linewidth=2, marker="o", markersize=4, label=f"trial {best.number}"
        )
    longest = max(len(row.curve) for row in chart.trials)
    axes.set_xlim(1 - 0.03 * longest, longest + 0.03 * longest)
    use_integer_ticks(axes.xaxis)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy")
    _add_legend(figure)
    return figure


def _timeline(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import PolyCollection

    bars, pauses = view.timeline
    figure, axes = _single_axes_figure(chart)
    end = max(bar.end for bar in bars)
    unit, name = (60.0, "minutes") if end < 3 * 3600 else (3600.0, "hours")
    for state, color in STATE_COLORS.items():
        own = [bar for bar in bars if bar.trial.state is state]
        boxes = [
            [
                (x, bar.trial.number + y)
                for x, y in _bar_corners(bar.start / unit, max(bar.end, bar.start + end / 500) / unit)
            ]
            for bar in own
        ]
        if boxes:
            axes.add_collection(
                PolyCollection(boxes, facecolors=color, edgecolors=color, label=state.value, linewidths=0.6)
            )
    for number, moment in enumerate(pauses):
        label = "the study was paused" if number == 0 else None
        axes.axvline(moment / unit, color=GREY, linestyle=":", linewidth=1, label=label)
    axes.set_xlim(0, max(end, 1) / unit * 1.01)
    numbers = [bar.trial.number for bar in bars]
    axes.set_ylim(max(numbers) + 0.8, min(numbers) - 0.8)
    use_integer_ticks(axes.yaxis)
    axes.set_xlabel(f"{name} since the study began")
    axes.set_ylabel("trial")
    _add_legend(figure)
    return figure


def _bar_corners(left: float, right: float) -> list[tuple[float, float]]:
    return [(left, -0.4), (right, -0.4), (right, 0.4), (left, 0.4)]


# -------------------------------------------------------------------------------- what decided


def _importances(view: StudyView, chart: Chart) -> Figure:
    assert view.importances is not None
    shares = view.importances.by_name
    figure, axes = _single_axes_figure(chart, height=max(2.2, 1.3 + 0.3 * len(shares)))
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
    figure, axes = _single_axes_figure(chart, note=note)
    rows = sorted(chart.trials, key=lambda row: row.value or 0.0)
    values = [row.value or 0.0 for row in rows]
    norm = _value_norm(values)
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
        _set_ticks(panel.xaxis, axis, MAX_TICKS_SMALL)
        panel.set_xlim(-0.12, 1.12)
        panel.set_xlabel(axis.label, fontsize=8)
        panel.tick_params(labelsize=7)
        style_axes(panel)
    _set_percent_axis(panels[0], values)
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
    figure, axes = _single_axes_figure(chart)
    x, y = chart.axes
    values = [row.value for row in chart.trials if row.value is not None]
    norm = _value_norm(values)
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
        _set_ticks(side, axis)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel(x.name)
    axes.set_ylabel(y.name)
    return figure


# ------------------------------------------------------------------------------- what it costs


def _accuracy_versus_cost(view: StudyView, chart: Chart, *, cost: Cost) -> Figure:
    figure, axes = _single_axes_figure(chart)
    rows = chart.trials
    points = [(cost.value_of(row), row.value or 0.0) for row in rows]
    floor = _set_percent_axis(axes, [value for _, value in points])
    inside = [point for point in points if point[1] >= floor]
    axes.scatter(*split_coordinates(inside), s=28, color=BLUE, alpha=0.55, label="completed")
    _mark_at_bottom(axes, [cost for cost, value in points if value < floor], "v", BLUE, "completed, below the axis")
    front = [place for place in pareto_front(points) if points[place][1] >= floor]
    axes.step(
        *split_coordinates([points[place] for place in front]),
        where="post", color=RED, marker="o", markersize=6, linewidth=1.3, label="Pareto front, by trial",
    )  # fmt: skip
    for place in front[-MAX_LABELED_POINTS:]:
        axes.annotate(
            str(rows[place].number), points[place], xytext=(-4, 5), textcoords="offset points",
            ha="right", fontsize=8, color=TEXT_COLOR,
        )  # fmt: skip
    costs = [cost for cost, _ in points]
    if max(costs) > 4 * min(costs):
        axes.set_xscale("log")
    _format_cost_axis(axes, min(costs), max(costs))
    axes.set_xlabel(cost.label)
    axes.set_ylabel("validation accuracy")
    _add_legend(figure)
    return figure


def _format_cost_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if axes.get_xscale() == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


_RENDERERS: dict[str, Callable[[StudyView, Chart], Figure]] = {
    "history": _history,
    "importances": _importances,
    "parallel_coordinates": _parallel_coordinates,
    "slices": _slices,
    "contour": _contour,
    "learning_curves": _learning_curves,
    "timeline": _timeline,
    **{name: functools.partial(_accuracy_versus_cost, cost=cost) for name, cost in COSTS.items()},
}


# ------------------------------------------------------------------------------ what they share


def _single_axes_figure(chart: Chart, *, height: float = 4.6, note: str = "") -> tuple[Figure, Axes]:
    figure = titled_figure(chart.title, note or chart.note, 8.2, height)
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def _add_legend(figure: Figure) -> None:
    """Below the axes, where it hides nothing."""
    figure.legend(loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _set_percent_axis(axes: Axes, values: Sequence[float]) -> float:
    """The values' own window as the vertical axis; gives its lower end."""
    low, high = display_range(values)
    margin = 0.06 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_formatter(percent_formatter())
    return low


def _value_norm(values: Sequence[float]) -> Normalize:
    from matplotlib.colors import Normalize

    low, high = display_range(values)
    return Normalize(low if high > low else low - 0.01, high)


def _set_ticks(axis_object: Any, axis: Axis, max_ticks: int = MAX_TICKS) -> None:
    places, texts = zip(*axis.ticks(max_ticks), strict=True)
    axis_object.set_ticks(places, texts)


def _wrap_label(name: str) -> str:
    return name.replace(".", ".\n").replace("_", "_\n") if len(name) > 10 else name
