"""What all plots share: figures with a title and a note, the style of axes, colors of values, and PNG files.

Functions import matplotlib when they draw: the import takes half a second, and a study should start without it.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write
from fmnist_search.reporting.axes import MAX_TICKS, Axis
from fmnist_search.reporting.chart_data import Chart, StudyView, display_range
from fmnist_search.reporting.colors import GREY, TEXT_COLOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure as Figure

PlotFunction = Callable[[StudyView, Chart], "Figure"]
"""Draws a chart of a study with matplotlib."""

DPI = 110
VALUE_COLORMAP = "viridis_r"
"""High values are dark: they stand out on white."""
TITLE_CHARACTERS_PER_INCH, NOTE_CHARACTERS_PER_INCH = 10.5, 15
TITLE_LINE_HEIGHT, NOTE_LINE_HEIGHT = 0.22, 0.16
"""In inches, for each line of the title and of the note."""


def figure_to_png(figure: Figure) -> bytes:
    """Return the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file; see `atomic_write`.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        with atomic_write(path) as file:
            file.write(figure_to_png(figure))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another path") from None


def titled_figure(title: str, note: str, width: float, height: float) -> Figure:
    """Return a figure with a title, a smaller note below it, and `width` x `height` inches for axes below both."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    title_lines = textwrap.wrap(title, int(width * TITLE_CHARACTERS_PER_INCH))
    note_lines = textwrap.wrap(note, int(width * NOTE_CHARACTERS_PER_INCH))
    total_height = 0.14 + TITLE_LINE_HEIGHT * len(title_lines) + NOTE_LINE_HEIGHT * len(note_lines) + height
    figure = Figure(figsize=(width, total_height), dpi=DPI)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06, rect=(0, 0, 1, height / total_height)))
    left, note_offset = 0.08 / width, 0.08 + TITLE_LINE_HEIGHT * len(title_lines)
    add_text = functools.partial(figure.text, left, va="top", parse_math=False)
    add_text(1 - 0.08 / total_height, "\n".join(title_lines), fontsize=12, weight="bold", color=TEXT_COLOR)
    add_text(1 - note_offset / total_height, "\n".join(note_lines), fontsize=9, color=GREY)
    return figure


def manual_layout(figure: Figure) -> float:
    """Switch the layout engine off, and return the top of the area for axes, as a share of the figure's height.

    With many panels the constrained layout takes most of the time of drawing; the caller sets the margins instead.
    """
    engine = figure.get_layout_engine()
    assert engine is not None
    top: float = engine.get()["rect"][3]
    figure.set_layout_engine("none")
    return top


def style_axes(axes: Axes) -> None:
    """Add a light grid, and remove the frame at the top and at the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)


def percent_formatter() -> Any:
    """Return a tick formatter that shows shares in 0..1 as percentages."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0)


def use_integer_ticks(axis: Any) -> None:
    """Place the ticks of a matplotlib axis at integers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))


def split_coordinates(points: Sequence[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
    """Return the x values and the y values of points."""
    return [point[0] for point in points], [point[1] for point in points]


def mark_at_bottom(axes: Axes, numbers: Sequence[float], marker: str, color: str, label: str) -> None:
    """Add markers at the lower edge of the axes, at these x values."""
    if numbers:
        y_positions = [0.02] * len(numbers)
        axes.scatter(
            numbers, y_positions, s=28, marker=marker, color=color, label=label,
            transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip


def single_axes_figure(chart: Chart, *, height: float = 4.6, note: str = "") -> tuple[Figure, Axes]:
    """Return a figure with the chart's title and note, and its only axes; `height` of the axes is in inches."""
    figure = titled_figure(chart.title, note or chart.note, 8.2, height)
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def add_legend(figure: Figure) -> None:
    """Add a legend below the axes."""
    figure.legend(loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def set_percent_axis(axes: Axes, values: Sequence[float]) -> float:
    """Limit the vertical axis to the displayed range of the values, and return the low end of that range."""
    low, high = display_range(values)
    margin = 0.06 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_formatter(percent_formatter())
    return low


def value_norm(values: Sequence[float]) -> Normalize:
    """Return the color scale over the displayed range of the values."""
    from matplotlib.colors import Normalize

    low, high = display_range(values)
    return Normalize(low if high > low else low - 0.01, high)


def set_ticks(axis_object: Any, axis: Axis, max_ticks: int = MAX_TICKS) -> None:
    """Set the ticks of a matplotlib axis to those of `axis`."""
    positions, labels = zip(*axis.ticks(max_ticks), strict=True)
    axis_object.set_ticks(positions, labels)
