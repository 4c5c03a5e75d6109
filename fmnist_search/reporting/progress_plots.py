"""Plots of how a search went: history, learning curves, timeline, cost against accuracy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from fmnist_search.reporting.chart_data import (
    COSTS,
    Chart,
    Cost,
    StudyView,
    best_so_far,
    pareto_front,
)
from fmnist_search.reporting.colors import BLUE, GREY, RED, STATE_COLORS, TEXT_COLOR
from fmnist_search.reporting.style import (
    VALUE_COLORMAP,
    add_legend,
    mark_at_bottom,
    percent_formatter,
    set_percent_axis,
    single_axes_figure,
    split_coordinates,
    use_integer_ticks,
    value_norm,
)
from fmnist_search.results.training import TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABELED_POINTS = 8


def _history(view: StudyView, chart: Chart) -> Figure:
    figure, axes = single_axes_figure(chart)
    shown = [row.value for row in chart.trials if row.state is not TrialState.FAILED and row.value is not None]
    floor = set_percent_axis(axes, shown)
    for state, alpha in ((TrialState.INTERRUPTED, 0.6), (TrialState.PRUNED, 0.35), (TrialState.COMPLETED, 1.0)):
        own = [(row.number, row.value) for row in chart.trials if row.state is state and row.value is not None]
        inside = [(number, value) for number, value in own if value >= floor]
        below = [number for number, value in own if value < floor]
        if own:
            axes.scatter(*split_coordinates(inside), s=28, color=STATE_COLORS[state], alpha=alpha, label=state.value)
            mark_at_bottom(axes, below, "v", STATE_COLORS[state], f"{state.value}, below the axis")
    mark_at_bottom(axes, [row.number for row in chart.trials if row.state is TrialState.FAILED], "x", RED, "failed")
    steps = best_so_far(chart.trials)
    if steps:
        last = max(row.number for row in view.trials)
        numbers, best = split_coordinates([*steps, (last, steps[-1][1])])
        axes.step(numbers, best, where="post", color=TEXT_COLOR, linewidth=1.5, label="best so far", zorder=1)
    axes.set_xlabel("trial")
    axes.set_ylabel("validation accuracy")
    use_integer_ticks(axes.xaxis)
    add_legend(figure)
    return figure


def _learning_curves(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import LineCollection

    figure, axes = single_axes_figure(chart)
    norm = value_norm(
        [row.value for row in chart.trials if row.state is TrialState.COMPLETED and row.value is not None]
    )
    set_percent_axis(axes, [value for row in chart.trials for value in row.curve])
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
    add_legend(figure)
    return figure


def _timeline(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import PolyCollection

    bars, pauses = view.timeline
    figure, axes = single_axes_figure(chart)
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
    add_legend(figure)
    return figure


def _bar_corners(left: float, right: float) -> list[tuple[float, float]]:
    return [(left, -0.4), (right, -0.4), (right, 0.4), (left, 0.4)]


def _accuracy_versus_cost(view: StudyView, chart: Chart, *, cost: Cost) -> Figure:
    figure, axes = single_axes_figure(chart)
    rows = chart.trials
    points = [(cost.value_of(row), row.value or 0.0) for row in rows]
    floor = set_percent_axis(axes, [value for _, value in points])
    inside = [point for point in points if point[1] >= floor]
    axes.scatter(*split_coordinates(inside), s=28, color=BLUE, alpha=0.55, label="completed")
    mark_at_bottom(axes, [cost for cost, value in points if value < floor], "v", BLUE, "completed, below the axis")
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
    add_legend(figure)
    return figure


def _format_cost_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if axes.get_xscale() == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


RENDERERS: dict[str, Callable[[StudyView, Chart], Figure]] = {
    "history": _history,
    "learning_curves": _learning_curves,
    "timeline": _timeline,
    **{name: functools.partial(_accuracy_versus_cost, cost=cost) for name, cost in COSTS.items()},
}
"""How each chart of `chart_data` of that name is drawn."""
