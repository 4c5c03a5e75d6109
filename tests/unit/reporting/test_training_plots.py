"""Tests of `reporting.training_plots`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from fmnist_search.errors import UserError
from fmnist_search.models.cnn import Cnn
from fmnist_search.reporting.colors import RED
from fmnist_search.reporting.training_plots import (
    UNKNOWN_LABEL,
    calibration_figure,
    confusion_figure,
    filters_figure,
    mistakes_figure,
    predictions_figure,
    training_figure,
)
from fmnist_search.results.training import EpochReport
from fmnist_search.training.evaluation import Misclassification, calibration
from tests.support.figures import figure_texts, render_png

# No plot gives a warning. A connection that another test left open is no concern of these.
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.filterwarnings("default::ResourceWarning")]


def image_values(figure: Figure) -> Any:
    """Return the values behind the colors."""
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    return shown.tolist()


def cell_texts(figure: Figure) -> set[tuple[Any, str]]:
    return {(text.get_position(), text.get_text()) for text in figure.axes[0].texts}


def test_a_confusion_matrix_shows_all_counts_and_classes() -> None:
    figure = confusion_figure([[5, 0, 1], [0, 7, 0], [2, 3, 4]], ["a", "b", "c"], "title")
    axes = figure.axes[0]
    assert axes.get_title() == "title"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    # Rows are true classes: the cell at x = 2, y = 0 counts images of the first class that were predicted as the third.
    assert {((2, 0), "1"), ((0, 2), "2")} < cell_texts(figure)
    assert len(cell_texts(figure)) == 6
    assert image_values(figure)[0] == pytest.approx([5 / 6, 0, 1 / 6])


def test_a_normalised_confusion_matrix_shows_percentages_of_each_true_class() -> None:
    figure = confusion_figure([[3, 1], [0, 0]], ["a", "b"], "title", normalised=True)
    assert cell_texts(figure) == {((0, 0), "75.0"), ((1, 0), "25.0")}


def test_the_row_of_a_class_without_images_is_empty() -> None:
    figure = confusion_figure([[0, 0], [1, 1]], ["a", "b"], "a $title$ with any text")
    assert image_values(figure) == [[0, 0], [0.5, 0.5]]
    render_png(figure)


def make_report(epoch: int, rate: float = 0.1, val: float | None = 0.8) -> EpochReport:
    return EpochReport(epoch, 1 / epoch, 0.5, None if val is None else 0.5, val, rate, 1.0)


@pytest.mark.parametrize(
    ("rates", "panels"), [((0.1, 0.1), ["loss", "accuracy"]), ((0.1, 0.05), ["loss", "accuracy", "learning rate"])]
)
def test_the_learning_rate_is_drawn_if_it_varies(rates: tuple[float, float], panels: list[str]) -> None:
    figure = training_figure([make_report(1, rates[0]), make_report(2, rates[1])], "title")
    assert [axes.get_ylabel() for axes in figure.axes] == panels
    render_png(figure)


def test_the_note_says_that_a_training_has_no_validation() -> None:
    figure = training_figure([make_report(1, val=None)], "title")
    assert "1 epoch; without validation images" in figure_texts(figure)
    assert [line.get_label() for line in figure.axes[0].lines] == ["training"]
    render_png(figure)


def axes_images(figure: Figure) -> list[AxesImage]:
    return [image for axes in figure.axes for image in axes.images]


def test_mistakes_are_shown_with_true_and_predicted_class() -> None:
    pixels = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 28, 28)
    figure = mistakes_figure(
        pixels, [Misclassification(3, 0, 1, 0.99), Misclassification(1, 1, 0, 0.75)], ["a", "b"], "title"
    )
    assert [np.asarray(image.get_array()).max() for image in axes_images(figure)] == [3, 1]
    captions = [axes.get_title() for axes in figure.axes if axes.images]
    assert captions == ["a\nas b, 99.0%", "b\nas a, 75.0%"]
    render_png(figure)
    assert "no mistakes" in figure_texts(mistakes_figure(pixels, [], ["a", "b"], "title"))


def test_predictions_show_the_true_class_of_mistakes_only() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    pixels = torch.zeros(2, 28, 28, dtype=torch.uint8)
    figure = predictions_figure(pixels, probabilities, torch.tensor([0, 1]), ["a", "b"], "title")
    assert [axes.get_title() for axes in figure.axes if axes.images] == ["a, 90.0%", "a, 80.0%\ntrue: b"]
    assert [axes.title.get_color() == RED for axes in figure.axes if axes.images] == [False, True]
    assert "1 of 2 correct" in figure_texts(figure)
    render_png(figure)


def test_an_image_of_unknown_class_is_neither_correct_nor_a_mistake() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    pixels = torch.zeros(3, 28, 28, dtype=torch.uint8)
    some = predictions_figure(
        pixels, probabilities, torch.tensor([UNKNOWN_LABEL, 1, UNKNOWN_LABEL]), ["a", "b"], "title"
    )
    assert [axes.get_title() for axes in some.axes if axes.images] == ["a, 90.0%", "a, 80.0%\ntrue: b", "a, 70.0%"]
    assert "0 of 1 correct" in figure_texts(some)
    none = predictions_figure(pixels, probabilities, torch.full((3,), UNKNOWN_LABEL), ["a", "b"], "title")
    assert "correct" not in figure_texts(none)


@pytest.mark.parametrize(("count", "columns"), [(1, 3), (25, 5), (26, 10)])
def test_a_grid_of_many_images_is_wide(count: int, columns: int) -> None:
    pixels = torch.zeros(count, 28, 28, dtype=torch.uint8)
    figure = predictions_figure(pixels, torch.full((count, 2), 0.5), torch.zeros(count).long(), ["a", "b"], "title")
    assert len(axes_images(figure)) == count
    assert figure.axes[0].get_gridspec().ncols == columns  # type: ignore[union-attr]
    render_png(figure)


def test_a_reliability_diagram_shows_the_error_and_the_bins_with_images() -> None:
    probabilities = torch.tensor([[0.95, 0.05], [0.85, 0.15], [0.25, 0.75]])
    found = calibration(probabilities, torch.tensor([0, 1, 1]), bins=10)
    figure = calibration_figure(found, "cnn")
    assert f"cnn: expected calibration error {found.expected_error:.2%}" in figure_texts(figure)
    assert "3 images in 10 bins" in figure_texts(figure)
    curve = figure.axes[0].lines[-1]
    assert np.asarray(curve.get_xdata()).tolist() == pytest.approx([0.75, 0.85, 0.95])
    assert np.asarray(curve.get_ydata()).tolist() == [1, 0, 1]
    render_png(figure)


# ------------------------------------------------------------------------------------- the filters


def test_filters_are_the_kernels_of_the_first_layer_on_one_scale_around_0() -> None:
    kernels = torch.linspace(-3, 1, 4 * 9).reshape(4, 1, 3, 3)
    weights = {"norm.weight": torch.ones(1), "first.weight": kernels, "second.weight": torch.full((4, 4, 3, 3), 9.0)}
    figure = filters_figure(weights, "title")
    shown = axes_images(figure)[:4]
    assert np.allclose([np.asarray(image.get_array()) for image in shown], kernels[:, 0])
    assert {image.get_clim() for image in shown} == {(-3, 3)}
    assert "all 4 filters of 3 x 3" in figure_texts(figure)
    render_png(figure)


def test_kernels_behind_the_stem_are_drawn_as_filters_of_the_image() -> None:
    stem, convolution, *_ = Cnn(stem="space_to_depth", norm="none").build_network(10)  # type: ignore[misc]
    kernels = convolution.weight.detach()
    shown = axes_images(filters_figure({"1.weight": kernels}, "title"))[0]
    image = torch.rand(1, 1, 6, 6)
    response = (torch.as_tensor(np.asarray(shown.get_array())) * image[0, 0]).sum()
    assert torch.allclose(response, (kernels[0] * stem(image)[0]).sum(), atol=1e-5)


def test_rows_of_a_linear_layer_are_drawn_as_images_at_most_64() -> None:
    rows = torch.arange(100 * 784.0).reshape(100, 784)
    figure = filters_figure({"first.weight": rows, "first.bias": torch.zeros(100)}, "title")
    shown = [image for image in axes_images(figure) if np.asarray(image.get_array()).shape == (28, 28)]
    assert len(shown) == 64
    assert np.array_equal(np.asarray(shown[63].get_array()).ravel(), rows[63])
    assert "the first 64 of 100 filters of 28 x 28" in figure_texts(figure)
    render_png(figure)


def test_a_first_layer_without_image_input_is_an_error() -> None:
    with pytest.raises(UserError, match=r"mine: the first layer, first\.weight of shape 5x10, has no filters"):
        filters_figure({"first.weight": torch.zeros(5, 10)}, "mine")


def test_filters_that_are_all_0_are_drawn() -> None:
    render_png(filters_figure({"first.weight": torch.zeros(1, 1, 1, 1)}, "title"))
