"""Plots of the progress of a search: history, learning curves, timeline, accuracy against cost."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from fmnist_search.reporting.chart_data import (
    COSTS,
    Chart,
    Cost,
    StudyView,
    best_so_far,
    display_range,
    distribution,
)
from fmnist_search.reporting.colors import BLUE, GREY, RED, STATE_COLORS, TEXT_COLOR
from fmnist_search.reporting.style import (
    VALUE_COLORMAP,
    PlotFunction,
    add_legend,
    mark_at_bottom,
    percent_formatter,
    set_percent_axis,
    single_axes_figure,
    split_coordinates,
    use_integer_ticks,
    value_norm,
)
from fmnist_search.results.objectives import pareto_front
from fmnist_search.results.training import TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABELED_POINTS = 8


def _history(view: StudyView, chart: Chart) -> Figure:
    figure, axes = single_axes_figure(chart)
    values = [t.value for t in chart.trials if t.state is not TrialState.FAILED and t.value is not None]
    low = set_percent_axis(axes, values)
    for state, alpha in (
        (TrialState.INTERRUPTED, 0.6),
        (TrialState.PAUSED, 0.6),
        (TrialState.PRUNED, 0.35),
        (TrialState.COMPLETED, 1.0),
    ):
        points = [(t.number, t.value) for t in chart.trials if t.state is state and t.value is not None]
        visible = [(number, value) for number, value in points if value >= low]
        below = [number for number, value in points if value < low]
        if points:
            axes.scatter(*split_coordinates(visible), s=28, color=STATE_COLORS[state], alpha=alpha, label=state.value)
            mark_at_bottom(axes, below, "v", STATE_COLORS[state], f"{state.value}, below the axis")
    failed = [trial.number for trial in chart.trials if trial.state is TrialState.FAILED]
    mark_at_bottom(axes, failed, "x", RED, "failed")
    steps = best_so_far(chart.trials)
    if steps:
        last = max(trial.number for trial in view.trials)
        numbers, best = split_coordinates([*steps, (last, steps[-1][1])])
        axes.step(numbers, best, where="post", color=TEXT_COLOR, linewidth=1.5, label="best so far", zorder=1)
    axes.set_xlabel("trial")
    axes.set_ylabel("validation accuracy")
    use_integer_ticks(axes.xaxis)
    add_legend(figure)
    return figure


def _edf(view: StudyView, chart: Chart) -> Figure:
    figure, axes = single_axes_figure(chart)
    values, shares, _ = zip(*distribution(chart.trials), strict=True)
    axes.step(values, shares, where="post", color=BLUE, linewidth=1.5)
    low, high = display_range(values)
    margin = 0.03 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(0, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(percent_formatter())
    axes.set_xlabel("validation accuracy")
    axes.set_ylabel("share of trials that are not better")
    return figure


def _learning_curves(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import LineCollection

    figure, axes = single_axes_figure(chart)
    norm = value_norm([t.value for t in chart.trials if t.state is TrialState.COMPLETED and t.value is not None])
    set_percent_axis(axes, [value for trial in chart.trials for value in trial.curve])
    for state in (
        TrialState.INTERRUPTED,
        TrialState.PAUSED,
        TrialState.FAILED,
        TrialState.PRUNED,
        TrialState.COMPLETED,
    ):
        trials = sorted((t for t in chart.trials if t.state is state), key=lambda trial: trial.value or 0.0)
        lines = [list(enumerate(trial.curve, start=1)) for trial in trials]
        if state is TrialState.COMPLETED and trials:
            values = [trial.value or 0.0 for trial in trials]
            curves = LineCollection(
                lines, cmap=VALUE_COLORMAP, norm=norm, array=values, linewidths=1.4, label=state.value
            )
            label = "last epoch of completed trials"
            figure.colorbar(axes.add_collection(curves), ax=axes, label=label, format=percent_formatter())
        elif trials:
            color = STATE_COLORS[state]
            axes.add_collection(LineCollection(lines, colors=color, linewidths=1, alpha=0.35, label=state.value))
            ends = [line[-1] for line in lines]
            axes.scatter(*split_coordinates(ends), s=10, color=color, alpha=0.5)
    _add_predictions(axes, chart, color=STATE_COLORS[TrialState.PAUSED])
    if view.completed:
        best = max(view.completed, key=lambda trial: (trial.value or 0.0, -trial.number))
        epochs = range(1, len(best.curve) + 1)
        axes.plot(
            epochs, best.curve, color=TEXT_COLOR, linewidth=2, marker="o", markersize=4, label=f"trial {best.number}"
        )
    longest = max(trial.recipe.epochs if trial.prediction else len(trial.curve) for trial in chart.trials)
    axes.set_xlim(1 - 0.03 * longest, longest + 0.03 * longest)
    use_integer_ticks(axes.xaxis)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy")
    add_legend(figure)
    return figure


def _add_predictions(axes: Axes, chart: Chart, color: str) -> None:
    """Continue the curves of paused trials to the accuracy that is predicted for their last epoch."""
    trials = [trial for trial in chart.trials if trial.prediction]
    for trial in trials:
        assert trial.prediction
        ends = [len(trial.curve), trial.recipe.epochs]
        median, low, high = trial.prediction.median, trial.prediction.low, trial.prediction.high
        axes.plot(ends, [trial.curve[-1], median], color=color, linestyle=":", linewidth=1)
        errors = [[median - low], [high - median]]
        label = "predicted, 90 % interval" if trial is trials[0] else None
        axes.errorbar(ends[1:], [median], errors, color=color, linewidth=1, capsize=2, alpha=0.6, label=label)


def _timeline(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import PolyCollection

    bars, pauses = view.timeline
    figure, axes = single_axes_figure(chart)
    end = max(bar.end for bar in bars)
    unit, unit_name = (60.0, "minutes") if end < 3 * 3600 else (3600.0, "hours")
    for state, color in STATE_COLORS.items():
        boxes = [
            _bar_corners(bar.trial.number, bar.start / unit, max(bar.end, bar.start + end / 500) / unit)
            for bar in bars
            if bar.trial.state is state
        ]
        if boxes:
            axes.add_collection(
                PolyCollection(boxes, facecolors=color, edgecolors=color, label=state.value, linewidths=0.6)
            )
    for index, time in enumerate(pauses):
        label = "the study was paused" if index == 0 else None
        axes.axvline(time / unit, color=GREY, linestyle=":", linewidth=1, label=label)
    axes.set_xlim(0, max(end, 1) / unit * 1.01)
    numbers = [bar.trial.number for bar in bars]
    axes.set_ylim(max(numbers) + 0.8, min(numbers) - 0.8)
    use_integer_ticks(axes.yaxis)
    axes.set_xlabel(f"{unit_name} since the start of the study")
    axes.set_ylabel("trial")
    add_legend(figure)
    return figure


def _bar_corners(number: int, left: float, right: float) -> list[tuple[float, float]]:
    return [(left, number - 0.4), (right, number - 0.4), (right, number + 0.4), (left, number + 0.4)]


def _accuracy_versus_cost(view: StudyView, chart: Chart, *, cost: Cost) -> Figure:
    figure, axes = single_axes_figure(chart)
    costs = cost.values_of(chart.trials)
    points = [(x, trial.value or 0.0) for x, trial in zip(costs, chart.trials, strict=True)]
    low = set_percent_axis(axes, [value for _, value in points])
    visible = [point for point in points if point[1] >= low]
    axes.scatter(*split_coordinates(visible), s=28, color=BLUE, alpha=0.55, label="completed")
    mark_at_bottom(axes, [x for x, value in points if value < low], "v", BLUE, "completed, below the axis")
    front = [index for index in pareto_front(points) if points[index][1] >= low]
    axes.step(
        *split_coordinates([points[index] for index in front]),
        where="post", color=RED, marker="o", markersize=6, linewidth=1.3, label="Pareto front, with trial numbers",
    )  # fmt: skip
    for index in front[-MAX_LABELED_POINTS:]:
        axes.annotate(
            str(chart.trials[index].number), points[index], xytext=(-4, 5), textcoords="offset points",
            ha="right", fontsize=8, color=TEXT_COLOR,
        )  # fmt: skip
    if max(costs) > 4 * min(costs) > 0:
        axes.set_xscale("log")
    _format_cost_axis(axes, min(costs), max(costs))
    axes.set_xlabel(cost.label)
    axes.set_ylabel("validation accuracy")
    add_legend(figure)
    return figure


def _pareto_front(view: StudyView, chart: Chart) -> Figure:
    assert view.objective is not None
    return _accuracy_versus_cost(view, chart, cost=view.objective)


def _format_cost_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if axes.get_xscale() == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


PLOTS: dict[str, PlotFunction] = {
    "history": _history,
    "edf": _edf,
    "pareto_front": _pareto_front,
    "learning_curves": _learning_curves,
    "timeline": _timeline,
    **{name: functools.partial(_accuracy_versus_cost, cost=cost) for name, cost in COSTS.items()},
}
"""The function that draws each chart, by the chart's name in `StudyView.charts`."""
