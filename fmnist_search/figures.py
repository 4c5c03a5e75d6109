"""Pictures of a study and of a trained network, drawn by matplotlib from plain results.

Knows neither MLflow nor Optuna. Each picture of a study says which trials entered it. matplotlib is imported where
something is drawn: half a second, which a study has only once its trials run.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fmnist_search.charts import (
    BLUE,
    COLORS,
    COSTS,
    FEW_TICKS,
    GREY,
    INK,
    MANY_TICKS,
    ORANGE,
    RED,
    Axis,
    Chart,
    Cost,
    StudyView,
    best_so_far,
    pareto_front,
    surface_points,
    window,
)
from fmnist_search.domains import Space
from fmnist_search.evaluate import Calibration, Mistake
from fmnist_search.results import EpochReport, Importances, State, TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from torch import Tensor

VALUES = "viridis_r"
"""The best is dark, so that it stands out on white."""

DPI = 110
TITLE_LINE, NOTE_LINE = 0.22, 0.16
"""Inches for a line of the title, and of what stands below it."""
MOST_PANELS, MOST_LINES_APART, PANELS_A_ROW = 12, 10, 4
NAMED_POINTS = 8


def study_figures(
    rows: Sequence[TrialRow], space: Space, importances: Importances | None = None
) -> dict[str, Callable[[], Figure]]:
    """The pictures of a study by name, each drawn when it is called; only those for which there is something to show.

    `rows` are all trials that ended. The contour, and the order of hyperparameters, need importances.
    """
    view = StudyView(rows, space, importances)
    return {name: functools.partial(_PAINTERS[name], view, chart) for name, chart in view.charts.items()}


# ----------------------------------------------------------------------------- how a search went


def _history(view: StudyView, chart: Chart) -> Figure:
    figure, axes = _canvas(chart)
    shown = [row.value for row in chart.entered if row.state is not State.FAILED and row.value is not None]
    floor = _percent_axis(axes, shown)
    for state, alpha in ((State.INTERRUPTED, 0.6), (State.PRUNED, 0.35), (State.COMPLETED, 1.0)):
        own = [(row.number, row.value) for row in chart.entered if row.state is state and row.value is not None]
        inside = [(number, value) for number, value in own if value >= floor]
        below = [number for number, value in own if value < floor]
        if own:
            axes.scatter(*_columns(inside), s=28, color=COLORS[state], alpha=alpha, label=state.value)
            _on_the_floor(axes, below, "v", COLORS[state], f"{state.value}, below the axis")
    _on_the_floor(axes, [row.number for row in chart.entered if row.state is State.FAILED], "x", RED, "failed")
    steps = best_so_far(chart.entered)
    if steps:
        last = max(row.number for row in view.rows)
        numbers, best = _columns([*steps, (last, steps[-1][1])])
        axes.step(numbers, best, where="post", color=INK, linewidth=1.5, label="best so far", zorder=1)
    axes.set_xlabel("trial")
    axes.set_ylabel("validation accuracy")
    _whole_numbers(axes.xaxis)
    _legend(figure)
    return figure


def _on_the_floor(axes: Axes, numbers: Sequence[float], marker: str, color: str, label: str) -> None:
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

    figure, axes = _canvas(chart)
    norm = _value_norm([row.value for row in chart.entered if row.state is State.COMPLETED and row.value is not None])
    _percent_axis(axes, [value for row in chart.entered for value in row.curve])
    for state in (State.INTERRUPTED, State.FAILED, State.PRUNED, State.COMPLETED):
        rows = sorted((row for row in chart.entered if row.state is state), key=lambda row: row.value or 0.0)
        lines = [list(enumerate(row.curve, start=1)) for row in rows]
        if state is State.COMPLETED and rows:
            values = [row.value or 0.0 for row in rows]
            drawn = LineCollection(lines, cmap=VALUES, norm=norm, array=values, linewidths=1.4, label=state.value)
            figure.colorbar(
                axes.add_collection(drawn), ax=axes, label="last epoch of completed trials", format=_percents()
            )
        elif rows:
            axes.add_collection(
                LineCollection(lines, colors=COLORS[state], linewidths=1, alpha=0.35, label=state.value)
            )
        ends = [line[-1] for line in lines]
        if state is not State.COMPLETED and ends:
            axes.scatter(*_columns(ends), s=10, color=COLORS[state], alpha=0.5)
    if view.completed:
        best = max(view.completed, key=lambda row: (row.value or 0.0, -row.number))
        epochs = range(1, len(best.curve) + 1)
        axes.plot(epochs, best.curve, color=INK, linewidth=2, marker="o", markersize=4, label=f"trial {best.number}")
    longest = max(len(row.curve) for row in chart.entered)
    axes.set_xlim(1 - 0.03 * longest, longest + 0.03 * longest)
    _whole_numbers(axes.xaxis)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy")
    _legend(figure)
    return figure


def _timeline(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import PolyCollection

    bars, pauses = view.timeline
    figure, axes = _canvas(chart)
    end = max(bar.ended for bar in bars)
    unit, name = (60.0, "minutes") if end < 3 * 3600 else (3600.0, "hours")
    for state, color in COLORS.items():
        own = [bar for bar in bars if bar.row.state is state]
        boxes = [
            [
                (x, bar.row.number + y)
                for x, y in _corners(bar.began / unit, max(bar.ended, bar.began + end / 500) / unit)
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
    numbers = [bar.row.number for bar in bars]
    axes.set_ylim(max(numbers) + 0.8, min(numbers) - 0.8)
    _whole_numbers(axes.yaxis)
    axes.set_xlabel(f"{name} since the study began")
    axes.set_ylabel("trial")
    _legend(figure)
    return figure


def _corners(left: float, right: float) -> list[tuple[float, float]]:
    return [(left, -0.4), (right, -0.4), (right, 0.4), (left, 0.4)]


# -------------------------------------------------------------------------------- what decided


def _importances(view: StudyView, chart: Chart) -> Figure:
    assert view.importances is not None
    shares = view.importances.shares
    figure, axes = _canvas(chart, height=max(2.2, 1.3 + 0.3 * len(shares)))
    axes.barh(list(shares), list(shares.values()), color=BLUE, height=0.7)
    for place, share in enumerate(shares.values()):
        axes.text(share, place, f" {share:.1%}", va="center", fontsize=8, color=INK)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, max(max(shares.values()) * 1.12, 0.01))
    axes.xaxis.set_major_formatter(_percents())
    axes.set_xlabel("share of the importance")
    axes.tick_params(axis="y", length=0)
    return figure


def _parallel_coordinates(view: StudyView, chart: Chart) -> Figure:
    from matplotlib.collections import LineCollection

    shown, note = chart.first(MOST_LINES_APART)
    figure, axes = _canvas(chart, note=note)
    rows = sorted(chart.entered, key=lambda row: row.value or 0.0)
    values = [row.value or 0.0 for row in rows]
    norm = _value_norm(values)
    absent = -0.1
    lines = [
        [*((x, absent if (place := axis.place(row, 0.05)) is None else place) for x, axis in enumerate(shown)),
         (len(shown), min(max(float(norm(value)), 0.0), 1.0))]
        for row, value in zip(rows, values, strict=True)
    ]  # fmt: skip
    drawn = LineCollection(
        lines, cmap=VALUES, norm=norm, array=values, linewidths=1.2, alpha=min(0.85, max(0.35, 50 / len(rows)))
    )
    axes.add_collection(drawn)
    for x, axis in enumerate(shown):
        missing = any(axis.place(row) is None for row in rows)
        _upright(axes, x, axis.ticks() + ([(absent, "none")] if missing else []))
    low, high = norm.vmin or 0.0, norm.vmax or 1.0
    _upright(axes, len(shown), [(step / 4, f"{low + step / 4 * (high - low):.1%}") for step in range(5)])
    axes.set_xlim(-0.35, len(shown) + 0.35)
    axes.set_ylim(-0.14 if any(axis.place(row) is None for axis in shown for row in rows) else -0.07, 1.07)
    axes.set_xticks(
        range(len(shown) + 1), [*(_folded(axis.label) for axis in shown), "validation\naccuracy"], fontsize=8
    )
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _upright(axes: Axes, x: float, ticks: Sequence[tuple[float, str]]) -> None:
    """An axis of its own, with its texts at its left."""
    axes.plot([x, x], [0, 1], color=INK, linewidth=0.8, zorder=3)
    for place, text in ticks:
        axes.plot([x - 0.02, x + 0.02], [place, place], color=INK, linewidth=0.8, zorder=3)
        box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "edgecolor": "none"}
        axes.text(x - 0.04, place, text, ha="right", va="center", fontsize=7, color=INK, bbox=box, zorder=4)


def _slices(view: StudyView, chart: Chart) -> Figure:
    shown, note = chart.first(MOST_PANELS)
    values = [row.value for row in chart.entered if row.value is not None]
    below = sum(value < window(values)[0] for value in values)
    columns = min(len(shown), PANELS_A_ROW)
    lines = math.ceil(len(shown) / columns)
    note = f"{note}; {below} lie below the axis" if below else note
    figure = _page(chart.title, note, max(2 * columns + 1.5, 8.2), lines * (2 if columns > 2 else 3))
    panels, beside = _panels(figure, lines, columns)
    numbers = [row.number for row in chart.entered]
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for panel, axis in zip(panels, shown, strict=False):
        there = [(row, x) for row in chart.entered if (x := axis.place(row, 0.3)) is not None]
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
        _place_axis(panel.xaxis, axis, FEW_TICKS)
        panel.set_xlim(-0.12, 1.12)
        panel.set_xlabel(axis.label, fontsize=8)
        panel.tick_params(labelsize=7)
        _tidy(panel)
    _percent_axis(panels[0], values)
    panels[0].set_ylabel("validation accuracy", fontsize=8)
    figure.colorbar(drawn, cax=beside).ax.tick_params(labelsize=7)
    beside.set_title("trial", fontsize=8)
    return figure


def _panels(figure: Figure, lines: int, columns: int) -> tuple[list[Axes], Axes]:
    """Panels of one vertical axis, and at their right a place for the colours."""
    width, height = figure.get_size_inches()
    top = _laid_out_by_hand(figure) - 0.1 / height
    bottom, left, right = 0.45 / height, 0.75 / width, 1 - 0.75 / width
    grid = {"left": left, "right": right, "bottom": bottom, "top": top, "wspace": 0.12, "hspace": 0.35}
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False, gridspec_kw=grid)
    tall = min(top - bottom - 0.2 / height, 4 / height)
    return list(panels.flat), figure.add_axes((right + 0.2 / width, bottom, 0.12 / width, tall))


def _contour(view: StudyView, chart: Chart) -> Figure:
    figure, axes = _canvas(chart)
    x, y = chart.axes
    values = [row.value for row in chart.entered if row.value is not None]
    norm = _value_norm(values)
    surface = surface_points(chart)
    if surface:
        across, up, heights = zip(*surface, strict=True)
        low, high = norm.vmin or 0.0, norm.vmax or 1.0
        inside = [min(max(height, low), high) for height in heights]
        levels = [low + (high - low) * step / 12 for step in range(13)]
        with contextlib.suppress(RuntimeError):  # the places lie on one line
            axes.tricontourf(across, up, inside, levels=levels, cmap=VALUES, norm=norm)
    points = [(x.place(row), y.place(row)) for row in chart.entered]
    drawn = axes.scatter(*_columns(points), c=values, cmap=VALUES, norm=norm, s=34, edgecolors="white", linewidths=0.7)
    figure.colorbar(drawn, ax=axes, label="validation accuracy", format=_percents())
    for side, axis in ((axes.xaxis, x), (axes.yaxis, y)):
        _place_axis(side, axis)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel(x.name)
    axes.set_ylabel(y.name)
    return figure


# ------------------------------------------------------------------------------- what it costs


def _accuracy_against(view: StudyView, chart: Chart, *, cost: Cost) -> Figure:
    figure, axes = _canvas(chart)
    rows = chart.entered
    points = [(cost.of(row), row.value or 0.0) for row in rows]
    floor = _percent_axis(axes, [value for _, value in points])
    inside = [point for point in points if point[1] >= floor]
    axes.scatter(*_columns(inside), s=28, color=BLUE, alpha=0.55, label="completed")
    _on_the_floor(axes, [cost for cost, value in points if value < floor], "v", BLUE, "completed, below the axis")
    front = [place for place in pareto_front(points) if points[place][1] >= floor]
    axes.step(
        *_columns([points[place] for place in front]),
        where="post", color=RED, marker="o", markersize=6, linewidth=1.3, label="Pareto front, by trial",
    )  # fmt: skip
    for place in front[-NAMED_POINTS:]:
        axes.annotate(
            str(rows[place].number), points[place], xytext=(-4, 5), textcoords="offset points",
            ha="right", fontsize=8, color=INK,
        )  # fmt: skip
    costs = [cost for cost, _ in points]
    if max(costs) > 4 * min(costs):
        axes.set_xscale("log")
    _cost_axis(axes, min(costs), max(costs))
    axes.set_xlabel(cost.label)
    axes.set_ylabel("validation accuracy")
    _legend(figure)
    return figure


def _cost_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if axes.get_xscale() == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


_PAINTERS: dict[str, Callable[[StudyView, Chart], Figure]] = {
    "history": _history,
    "importances": _importances,
    "parallel_coordinates": _parallel_coordinates,
    "slices": _slices,
    "contour": _contour,
    "learning_curves": _learning_curves,
    "timeline": _timeline,
    **{name: functools.partial(_accuracy_against, cost=cost) for name, cost in COSTS.items()},
}


# ------------------------------------------------------------------------- of a trained network


def confusion_figure(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str, *, normalised: bool = False
) -> Figure:
    """A confusion matrix, rows true and columns predicted, coloured by each row's shares.

    The cells say counts, or `normalised` the shares in percent.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    shares = [[cell / max(sum(row), 1) for cell in row] for row in confusion]
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, parse_math=False)
    for y, row in enumerate(confusion):
        for x, cell in enumerate(row):
            if cell:
                text = f"{100 * shares[y][x]:.1f}" if normalised else str(cell)
                color = "white" if shares[y][x] > 0.5 else "black"
                axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color)
    label = "share of the true class" + (", cells in percent" if normalised else "")
    figure.colorbar(picture, ax=axes, label=label, format=_percents())
    return figure


def training_figure(epochs: Sequence[EpochReport], title: str) -> Figure:
    """Loss and accuracy over the epochs of one training, and its learning rate where that varies.

    Training figures are of the raw weights while they moved, validation figures of the averaged ones.
    """
    rates = [report.learning_rate for report in epochs]
    varies = len(set(rates)) > 1
    panels = 3 if varies else 2
    validated = any(report.val_loss is not None for report in epochs)
    told = "" if validated else "; nothing was held back for validation"
    count = "1 epoch" if len(epochs) == 1 else f"{len(epochs)} epochs"
    figure = _page(title, count + told, 3.4 * panels, 3.2)
    every = figure.subplots(1, panels, squeeze=False)[0]
    numbers = [report.epoch for report in epochs]
    losses, accuracies = every[0], every[1]
    for axes, name, train, val in (
        (losses, "loss", [r.train_loss for r in epochs], [r.val_loss for r in epochs]),
        (accuracies, "accuracy", [r.train_accuracy for r in epochs], [r.val_accuracy for r in epochs]),
    ):
        axes.plot(numbers, train, color=ORANGE, marker="s", markersize=3.5, label="training")
        pairs = [(number, value) for number, value in zip(numbers, val, strict=True) if value is not None]
        if pairs:
            axes.plot(*_columns(pairs), color=BLUE, marker="o", markersize=3.5, label="validation")
        axes.set_ylabel(name)
        axes.legend(fontsize=8, frameon=False)
    accuracies.yaxis.set_major_formatter(_percents())
    if varies:
        every[2].plot(numbers, rates, color=INK, marker="o", markersize=3.5)
        every[2].set_ylabel("learning rate")
        every[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axes in every:
        axes.set_xlabel("epoch")
        _whole_numbers(axes.xaxis)
        _tidy(axes)
    return figure


def mistakes_figure(pixels: Tensor, mistakes: Sequence[Mistake], classes: Sequence[str], title: str) -> Figure:
    """The images of the most confident mistakes: what they show, what they were taken for, and how surely.

    `pixels` are all images (N, 28, 28) uint8, which the mistakes index.
    """
    captions = [
        (f"{classes[mistake.true]}\nas {classes[mistake.predicted]}, {mistake.probability:.1%}", INK)
        for mistake in mistakes
    ]
    note = "true class, predicted class and its probability; the most confident first" if mistakes else "no mistakes"
    return _gallery([pixels[mistake.index] for mistake in mistakes], captions, title, note)


def predictions_figure(
    pixels: Tensor, probabilities: Tensor, labels: Tensor, classes: Sequence[str], title: str
) -> Figure:
    """A grid of images with what they were taken for and how surely; mistakes also say the true class.

    `pixels` (N, 28, 28) uint8, `probabilities` (N, classes), `labels` (N,).
    """
    best, predicted = probabilities.cpu().max(dim=1)
    captions = []
    for probability, guess, label in zip(best.tolist(), predicted.tolist(), labels.tolist(), strict=True):
        right = guess == label
        second = "" if right else f"\nis {classes[label]}"
        captions.append((f"{classes[guess]}, {probability:.1%}{second}", INK if right else RED))
    hits = int((predicted == labels.cpu()).sum())
    return _gallery(list(pixels), captions, title, f"{hits} of {len(captions)} right; a mistake says its true class")


def calibration_figure(calibration: Calibration, title: str) -> Figure:
    """The reliability curve: accuracy against confidence, and below it how many images are how confident."""
    images = sum(bin_.images for bin_ in calibration.bins)
    bins = len(calibration.bins)
    figure = _page(
        f"{title}: expected calibration error {calibration.error:.2%}",
        f"{images:,} images in {bins} bins of equal width; on the diagonal, confidence is what it says",
        6.4,
        5,
    )
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [bin_ for bin_ in calibration.bins if bin_.images]
    curve.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    for bin_ in filled:
        curve.plot([bin_.confidence] * 2, [bin_.confidence, bin_.accuracy], color=ORANGE, linewidth=3, alpha=0.6)
    points = [(bin_.confidence, bin_.accuracy) for bin_ in filled]
    curve.plot(*_columns(points), color=BLUE, marker="o", markersize=4, label="accuracy")
    curve.set_ylabel("accuracy")
    curve.yaxis.set_major_formatter(_percents())
    curve.set_ylim(-0.02, 1.02)
    curve.legend(fontsize=8, frameon=False, loc="upper left")
    width = 1 / bins
    counts.bar([bin_.low for bin_ in calibration.bins], [bin_.images for bin_ in calibration.bins],
               width=width * 0.92, align="edge", color=BLUE)  # fmt: skip
    counts.set_yscale("symlog", linthresh=1)
    counts.set_ylabel("images")
    counts.set_xlabel("confidence: the probability of the predicted class")
    counts.set_xlim(0, 1)
    counts.xaxis.set_major_formatter(_percents())
    for axes in (curve, counts):
        _tidy(axes)
    return figure


def _gallery(images: Sequence[Tensor], captions: Sequence[tuple[str, str]], title: str, note: str) -> Figure:
    columns = min(max(len(images), 3), 5)
    lines = max(math.ceil(len(images) / columns), 1)
    figure = _page(title, note, 1.75 * columns, 1.85 * lines)
    top = _laid_out_by_hand(figure) - 0.3 / figure.get_figheight()
    grid = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": top, "wspace": 0.05, "hspace": 0.35}
    panels = figure.subplots(lines, columns, squeeze=False, gridspec_kw=grid)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, image, (caption, color) in zip(panels.flat, images, captions, strict=False):
        panel.imshow(image.cpu().numpy(), cmap="gray_r", vmin=0, vmax=255)
        panel.set_title(caption, fontsize=7.5, color=color)
    return figure


# ---------------------------------------------------------------------------- what all share


def as_png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _canvas(chart: Chart, *, height: float = 4.6, note: str = "") -> tuple[Figure, Axes]:
    figure = _page(chart.title, note or chart.note, 8.2, height)
    axes = figure.subplots()
    _tidy(axes)
    return figure, axes


def _page(title: str, note: str, width: float, height: float) -> Figure:
    """A title, below it in small what is shown, and so many inches below both for axes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    titles, notes = (textwrap.wrap(text, int(width * a_inch)) for text, a_inch in ((title, 10.5), (note, 15)))
    head = 0.14 + TITLE_LINE * len(titles) + NOTE_LINE * len(notes)
    whole = head + height
    figure = Figure(figsize=(width, whole), dpi=DPI)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06, rect=(0, 0, 1, height / whole)))
    left, below = 0.08 / width, 0.08 + TITLE_LINE * len(titles)
    write = functools.partial(figure.text, left, va="top", parse_math=False)
    write(1 - 0.08 / whole, "\n".join(titles), fontsize=12, weight="bold", color=INK)
    write(1 - below / whole, "\n".join(notes), fontsize=9, color=GREY)
    return figure


def _laid_out_by_hand(figure: Figure) -> float:
    """Leave the layout to known margins, below the returned height: to find them, a dozen panels take the longest."""
    engine = figure.get_layout_engine()
    assert engine is not None
    top: float = engine.get()["rect"][3]
    figure.set_layout_engine("none")
    return top


def _legend(figure: Figure) -> None:
    """Below the axes, where it hides nothing."""
    figure.legend(loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)


def _percent_axis(axes: Axes, values: Sequence[float]) -> float:
    """The values' own window as the vertical axis; gives its lower end."""
    low, high = window(values)
    margin = 0.06 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_formatter(_percents())
    return low


def _percents() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0)


def _value_norm(values: Sequence[float]) -> Normalize:
    from matplotlib.colors import Normalize

    low, high = window(values)
    return Normalize(low if high > low else low - 0.01, high)


def _place_axis(side: Any, axis: Axis, most: int = MANY_TICKS) -> None:
    places, texts = zip(*axis.ticks(most), strict=True)
    side.set_ticks(places, texts)


def _whole_numbers(side: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    side.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))


def _folded(name: str) -> str:
    return name.replace(".", ".\n").replace("_", "_\n") if len(name) > 10 else name


def _columns(pairs: Sequence[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
