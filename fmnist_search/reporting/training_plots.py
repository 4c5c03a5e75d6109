"""Plots of a training and of a trained network, drawn with matplotlib from plain results. Imports no MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.reporting.colors import BLUE, GREY, ORANGE, RED, TEXT_COLOR
from fmnist_search.reporting.style import (
    manual_layout,
    percent_formatter,
    split_coordinates,
    style_axes,
    titled_figure,
    use_integer_ticks,
)
from fmnist_search.results.champion import LearningRateResult
from fmnist_search.results.training import EpochReport, TrialState
from fmnist_search.training.evaluation import Calibration, Misclassification

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

INCHES_PER_CLASS, MAX_CONFUSION_INCHES = 0.45, 20.0
MAX_CLASSES_WITH_NUMBERS = 50
"""Size of a confusion matrix with many classes, and the most with which its cells have numbers."""
UNKNOWN_LABEL = -1
"""The label of an image whose true class is unknown."""
MAX_FILTERS = 64
FILTERS_PER_ROW = 8
IMAGES_PER_ROW, IMAGES_PER_WIDE_ROW = 5, 10
"""Columns of a grid of images, and of a large one, which would have more rows than columns."""


def confusion_figure(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str, *, normalised: bool = False
) -> Figure:
    """Return a confusion matrix as a figure, rows true and columns predicted, colored by the share of each row.

    The cells show counts of images, or if `normalised` the shares of the row in percent; none with many classes.
    """
    from matplotlib.figure import Figure

    side = min(max(6.0, INCHES_PER_CLASS * len(classes)), MAX_CONFUSION_INCHES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = [[cell / max(sum(row), 1) for cell in row] for row in confusion]
    cells = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, parse_math=False)
    for y, row in enumerate(confusion):
        for x, cell in enumerate(row):
            if cell and len(classes) <= MAX_CLASSES_WITH_NUMBERS:
                text = f"{100 * shares[y][x]:.1f}" if normalised else str(cell)
                color = "white" if shares[y][x] > 0.5 else "black"
                axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color)
    label = "share of the true class" + (", cells in percent" if normalised else "")
    figure.colorbar(cells, ax=axes, label=label, format=percent_formatter())
    return figure


def training_figure(epochs: Sequence[EpochReport], title: str) -> Figure:
    """Return loss and accuracy over the epochs of one training, and the learning rate if it changes, as a figure.

    Training values are of the current weights during the epoch, validation values of the averaged weights after it.
    """
    rates = [report.learning_rate for report in epochs]
    varies = len(set(rates)) > 1
    panels = 3 if varies else 2
    validated = any(report.val_loss is not None for report in epochs)
    count = "1 epoch" if len(epochs) == 1 else f"{len(epochs)} epochs"
    note = count if validated else f"{count}; without validation images"
    figure = titled_figure(title, note, 3.4 * panels, 3.2)
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    numbers = [report.epoch for report in epochs]
    losses, accuracies = all_axes[0], all_axes[1]
    for axes, name, train, val in (
        (losses, "loss", [r.train_loss for r in epochs], [r.val_loss for r in epochs]),
        (accuracies, "accuracy", [r.train_accuracy for r in epochs], [r.val_accuracy for r in epochs]),
    ):
        axes.plot(numbers, train, color=ORANGE, marker="s", markersize=3.5, label="training")
        points = [(number, value) for number, value in zip(numbers, val, strict=True) if value is not None]
        if points:
            axes.plot(*split_coordinates(points), color=BLUE, marker="o", markersize=3.5, label="validation")
        axes.set_ylabel(name)
        axes.legend(fontsize=8, frameon=False)
    accuracies.yaxis.set_major_formatter(percent_formatter())
    if varies:
        all_axes[2].plot(numbers, rates, color=TEXT_COLOR, marker="o", markersize=3.5)
        all_axes[2].set_ylabel("learning rate")
        all_axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axes in all_axes:
        axes.set_xlabel("epoch")
        use_integer_ticks(axes.xaxis)
        style_axes(axes)
    return figure


def sweep_figure(rates: Sequence[LearningRateResult], title: str) -> Figure:
    """Return the results of networks at several learning rates as a figure, a row for each network.

    Left: mean validation accuracy over the epochs, a curve for each rate. Right: the last accuracy of each seed, and
    the mean, over the learning rate.
    """
    networks = list(dict.fromkeys(rate.network for rate in rates))
    seeds = max(len(rate.results) for rate in rates)
    incomplete = sum(result.state is not TrialState.COMPLETED for rate in rates for result in rate.results)
    note = f"validation accuracy, {seeds} seed{'s' * (seeds > 1)} for each learning rate"
    note += f"; {incomplete} of all trainings did not complete" if incomplete else ""
    figure = titled_figure(title, note, 9.0, 3.0 * len(networks))
    panels = figure.subplots(len(networks), 2, squeeze=False, sharey=True)
    for network, (curves, ends) in zip(networks, panels, strict=True):
        network_rates = [rate for rate in rates if rate.network == network]
        for index, rate in enumerate(network_rates):
            color = _rate_color(index, len(network_rates))
            if curve := rate.mean_curve:
                label = f"{rate.factor:g}x: {rate.learning_rate:.3g}"
                curves.plot(range(1, len(curve) + 1), curve, color=color, marker="o", markersize=3, label=label)
            ends.plot([rate.learning_rate] * len(rate.accuracies), rate.accuracies, "o", color=color, markersize=4)
        means = [(rate.learning_rate, fmean(rate.accuracies)) for rate in network_rates if rate.accuracies]
        ends.plot(*split_coordinates(means), color=GREY, linewidth=1, zorder=1)
        ends.set_xscale("log")
        tick_values = [rate.learning_rate for rate in network_rates]
        ends.set_xticks(tick_values, [f"{value:.3g}" for value in tick_values])
        ends.minorticks_off()
        curves.set_ylabel(network)
        curves.yaxis.set_major_formatter(percent_formatter())
        curves.legend(fontsize=8, frameon=False)
        curves.set_xlabel("epoch")
        ends.set_xlabel("learning rate")
        use_integer_ticks(curves.xaxis)
        for axes in (curves, ends):
            style_axes(axes)
    return figure


def _rate_color(index: int, count: int) -> str:
    """Return the color of a rate by its index: the higher the rate, the darker."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis_r"](0.15 + 0.85 * index / max(count - 1, 1)))


def mistakes_figure(
    pixels: Tensor, mistakes: Sequence[Misclassification], classes: Sequence[str], title: str
) -> Figure:
    """Return the images of mistakes as a figure, with true class, predicted class and its probability.

    `pixels` are all images (N, 28, 28) uint8; `mistakes` hold indices of them.
    """
    captions = [
        (f"{classes[mistake.true]}\nas {classes[mistake.predicted]}, {mistake.probability:.1%}", TEXT_COLOR)
        for mistake in mistakes
    ]
    note = "true class, predicted class and its probability; the most confident first" if mistakes else "no mistakes"
    return _image_grid([pixels[mistake.index] for mistake in mistakes], captions, title, note)


def predictions_figure(
    pixels: Tensor, probabilities: Tensor, labels: Tensor, classes: Sequence[str], title: str
) -> Figure:
    """Return images with predicted class and probability as a figure; mistakes are red and show the true class too.

    `pixels` are uint8 (N, 28, 28), `probabilities` (N, classes), `labels` (N,), -1 for an unknown true class.
    """
    best, predicted = probabilities.cpu().max(dim=1)
    captions = []
    for probability, guess, label in zip(best.tolist(), predicted.tolist(), labels.tolist(), strict=True):
        is_wrong = label not in (guess, UNKNOWN_LABEL)
        second_line = f"\ntrue: {classes[label]}" if is_wrong else ""
        captions.append((f"{classes[guess]}, {probability:.1%}{second_line}", RED if is_wrong else TEXT_COLOR))
    known = int((labels != UNKNOWN_LABEL).sum())
    hits = int((predicted == labels.cpu()).sum())
    note = f"{hits} of {known} correct; mistakes in red" if known else "predicted class and its probability"
    return _image_grid(list(pixels), captions, title, note)


def calibration_figure(calibration: Calibration, title: str) -> Figure:
    """Return a reliability diagram as a figure: accuracy over confidence, and the number of images in each bin."""
    images = sum(bin_.images for bin_ in calibration.bins)
    bins = len(calibration.bins)
    figure = titled_figure(
        f"{title}: expected calibration error {calibration.expected_error:.2%}",
        f"{images:,} images in {bins} bins of equal width; on the diagonal, confidence equals accuracy",
        6.4,
        5,
    )
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [bin_ for bin_ in calibration.bins if bin_.images]
    curve.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    for bin_ in filled:
        curve.plot([bin_.confidence] * 2, [bin_.confidence, bin_.accuracy], color=ORANGE, linewidth=3, alpha=0.6)
    points = [(bin_.confidence, bin_.accuracy) for bin_ in filled]
    curve.plot(*split_coordinates(points), color=BLUE, marker="o", markersize=4, label="accuracy")
    curve.set_ylabel("accuracy")
    curve.yaxis.set_major_formatter(percent_formatter())
    curve.set_ylim(-0.02, 1.02)
    curve.legend(fontsize=8, frameon=False, loc="upper left")
    width = 1 / bins
    counts.bar([bin_.low for bin_ in calibration.bins], [bin_.images for bin_ in calibration.bins],
               width=width * 0.92, align="edge", color=BLUE)  # fmt: skip
    counts.set_yscale("symlog", linthresh=1)
    counts.set_ylabel("images")
    counts.set_xlabel("confidence: the probability of the predicted class")
    counts.set_xlim(0, 1)
    counts.xaxis.set_major_formatter(percent_formatter())
    for axes in (curve, counts):
        style_axes(axes)
    return figure


def filters_figure(weights: Mapping[str, Tensor], title: str) -> Figure:
    """Return the first 64 filters of a network's first layer as a figure, on one color scale with 0 in the middle.

    `weights` are the network's weights by name, in the order of its layers. Filters are the kernels (N, 1, H, W) of a
    convolution, or the rows (N, 784) of a linear layer, drawn as images. Kernels (N, 4, H, W) stand behind the stem
    that makes 2 x 2 pixels four channels, and are drawn as what they are on the image: (N, 1, 2H, 2W).

    Raises:
        UserError: if the input of the first layer is not an image.
    """
    name, layer = next((name, tensor) for name, tensor in weights.items() if tensor.ndim > 1)
    layer = layer.detach().float().cpu()
    if layer.ndim == 2 and layer.shape[1] == IMAGE_SIZE**2:
        layer = layer.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE)
    if layer.ndim == 4 and layer.shape[1] == 4:
        squares = layer.reshape(len(layer), 1, 2, 2, *layer.shape[2:]).permute(0, 1, 4, 2, 5, 3)
        layer = squares.flatten(4).flatten(2, 3)
    if layer.ndim != 4 or layer.shape[1] != 1:
        shape = "x".join(map(str, layer.shape))
        raise UserError(
            f"{title}: the first layer, {name} of shape {shape}, has no filters of an image; choose another network"
        )
    count, (height, width) = len(layer), layer.shape[2:]
    shown = layer[:MAX_FILTERS, 0].numpy()
    selection = f"the first {MAX_FILTERS} of {count}" if count > MAX_FILTERS else f"all {count}"
    columns = min(count, FILTERS_PER_ROW)
    rows = math.ceil(len(shown) / columns)
    note = f"first layer: {selection} filters of {width} x {height}; white is 0"
    figure = titled_figure(title, note, 6.4, max(0.68 * rows, 1.6))
    axes = figure.subplots()
    limit = float(abs(shown).max()) or 1.0
    for index, kernel in enumerate(shown):
        row, column = divmod(index, columns)
        extent = (column, column + 0.9, row + 0.9, row)
        drawn_filter = axes.imshow(kernel, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=extent)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_axis_off()
    figure.colorbar(drawn_filter, ax=axes, label="weight", shrink=min(1.0, 2.5 / rows))
    return figure


def _image_grid(images: Sequence[Tensor], captions: Sequence[tuple[str, str]], title: str, note: str) -> Figure:
    max_columns = IMAGES_PER_ROW if len(images) <= IMAGES_PER_ROW**2 else IMAGES_PER_WIDE_ROW
    columns = min(max(len(images), 3), max_columns)
    rows = max(math.ceil(len(images) / columns), 1)
    figure = titled_figure(title, note, 1.75 * columns, 1.85 * rows)
    top = manual_layout(figure) - 0.3 / figure.get_figheight()
    grid = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": top, "wspace": 0.05, "hspace": 0.35}
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, image, (caption, color) in zip(panels.flat, images, captions, strict=False):
        panel.imshow(image.cpu().numpy(), cmap="gray_r", vmin=0, vmax=255)
        panel.set_title(caption, fontsize=7.5, color=color, parse_math=False)
    return figure
