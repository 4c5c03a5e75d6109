"""What all pictures are drawn on: a page with its title and note, plain axes, a PNG at the end.

matplotlib is imported where something is drawn: half a second, which a study has only once its trials run.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write
from fmnist_search.reporting.axes import MAX_TICKS, Axis
from fmnist_search.reporting.chart_data import Chart, display_range
from fmnist_search.reporting.colors import GREY, TEXT_COLOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure


DPI = 110
TITLE_LINE_HEIGHT, NOTE_LINE_HEIGHT = 0.22, 0.16
"""Inches for a line of the title, and of what stands below it."""


def figure_to_png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write a picture as a PNG file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic_write(path) as file:
            file.write(figure_to_png(figure))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another place") from None


def titled_figure(title: str, note: str, width: float, height: float) -> Figure:
    """A title, below it in small what is shown, and so many inches below both for axes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    titles, notes = (textwrap.wrap(text, int(width * a_inch)) for text, a_inch in ((title, 10.5), (note, 15)))
    head = 0.14 + TITLE_LINE_HEIGHT * len(titles) + NOTE_LINE_HEIGHT * len(notes)
    whole = head + height
    figure = Figure(figsize=(width, whole), dpi=DPI)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06, rect=(0, 0, 1, height / whole)))
    left, below = 0.08 / width, 0.08 + TITLE_LINE_HEIGHT * len(titles)
    write = functools.partial(figure.text, left, va="top", parse_math=False)
    write(1 - 0.08 / whole, "\n".join(titles), fontsize=12, weight="bold", color=TEXT_COLOR)
    write(1 - below / whole, "\n".join(notes), fontsize=9, color=GREY)
    return figure


def manual_layout(figure: Figure) -> float:
    """Leave the layout to known margins, below the returned height: to find them, a dozen panels take the longest."""
    engine = figure.get_layout_engine()
    assert engine is not None
    top: float = engine.get()["rect"][3]
    figure.set_layout_engine("none")
    return top


def style_axes(axes: Axes) -> None:
    """Axes with a faint grid, and no frame at the top and at the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)


def percent_formatter() -> Any:
    """Formats shares as percents."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0)


def use_integer_ticks(axis: Any) -> None:
    """Let an axis of matplotlib have ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))


def split_coordinates(points: Sequence[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
    """Places across and places up of such pairs."""
    return [pair[0] for pair in points], [pair[1] for pair in points]


VALUE_COLORMAP = "viridis_r"
"""The best is dark, so that it stands out on white."""


def mark_at_bottom(axes: Axes, numbers: Sequence[float], marker: str, color: str, label: str) -> None:
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


def single_axes_figure(chart: Chart, *, height: float = 4.6, note: str = "") -> tuple[Figure, Axes]:
    """Return a figure with the chart's title and note, and its only axes; `height` of the axes is in inches."""
    figure = titled_figure(chart.title, note or chart.note, 8.2, height)
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def add_legend(figure: Figure) -> None:
    """Below the axes, where it hides nothing."""
    figure.legend(loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def set_percent_axis(axes: Axes, values: Sequence[float]) -> float:
    """The values' own window as the vertical axis; gives its lower end."""
    low, high = display_range(values)
    margin = 0.06 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_formatter(percent_formatter())
    return low


def value_norm(values: Sequence[float]) -> Normalize:
    """Return the color scale of these values, without far outliers."""
    from matplotlib.colors import Normalize

    low, high = display_range(values)
    return Normalize(low if high > low else low - 0.01, high)


def set_ticks(axis_object: Any, axis: Axis, max_ticks: int = MAX_TICKS) -> None:
    """Set the ticks of a matplotlib axis to those of `axis`."""
    places, texts = zip(*axis.ticks(max_ticks), strict=True)
    axis_object.set_ticks(places, texts)
