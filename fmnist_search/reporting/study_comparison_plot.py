"""The plot of a comparison of studies: the best value against trained epochs, and against seconds of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmnist_search.reporting.colors import BLUE, GREY, ORANGE, RED, TEXT_COLOR
from fmnist_search.reporting.style import set_percent_axis, style_axes, titled_figure
from fmnist_search.results.compute import StudyProgress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (BLUE, RED, ORANGE, TEXT_COLOR)
LINE_STYLES = ("-", "--", ":", "-.")
"""The first studies differ in color, further ones in the style of their lines as well."""
MAX_NAME_LENGTH = 40


def study_comparison_figure(studies: Sequence[StudyProgress], note: str) -> Figure:
    """Return a figure of two panels, with a step line for each study that has a completed trial.

    A vertical line marks the compute of the study that has least: up to there all can be compared.
    """
    figure = titled_figure("best validation accuracy against compute", note, 10.0, 4.2)
    by_epochs, by_seconds = figure.subplots(1, 2, sharey=True)
    values = [point.best for study in studies for point in study.points]
    set_percent_axis(by_epochs, values)
    _draw(by_epochs, "epochs", [([p.epochs for p in s.points], s.epochs) for s in studies], studies)
    _draw(by_seconds, "seconds of training", [([p.seconds for p in s.points], s.seconds) for s in studies], studies)
    by_epochs.set_ylabel("best validation accuracy")
    handles, labels = by_epochs.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _draw(
    axes: Axes, label: str, costs: Sequence[tuple[Sequence[float], float]], studies: Sequence[StudyProgress]
) -> None:
    style_axes(axes)
    axes.set_xlabel(label)
    for index, ((positions, total), study) in enumerate(zip(costs, studies, strict=True)):
        if not study.points:
            continue
        best = [point.best for point in study.points]
        color, style = COLORS[index % len(COLORS)], LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)]
        # A label that begins with an underscore is not shown.
        name = f"study {study.name[:MAX_NAME_LENGTH]}"
        axes.step([*positions, total], [*best, best[-1]], where="post", color=color, linestyle=style, label=name)
        axes.plot(positions, best, "o", color=color, markersize=3)
    axes.axvline(min(total for _, total in costs), color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlim(left=0)
