"""Every picture is drawn whatever a study is like, and shows what it says it shows."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from fmnist_search.evaluate import Mistake, calibration
from fmnist_search.figures import (
    calibration_figure,
    confusion_figure,
    mistakes_figure,
    predictions_figure,
    study_figures,
    training_figure,
)
from fmnist_search.recipe import Recipe
from fmnist_search.results import EpochReport, State
from tests.spaces import study
from tests.trials import ENDINGS, rows_of, shares_of

TWO_FAMILIES: dict[str, Any] = {
    "common": {
        "family": ["cnn", "mlp"],
        "optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
        "optimizer.name": ["sgd", "adamw"],
        "optimizer.nesterov": [True, False],
    },
    "cnn": {"depth": [1, 2, 3], "width_3": [8, 16]},
    "mlp": {"depth": {"low": 1, "high": 4}},
}
ONE_HYPERPARAMETER = {"common": {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}}
IMPORTANT = ["optimizer.learning_rate", "model.depth", "batch_size"]


def drawn(figure: Figure) -> bytes:
    """The picture as a file; what overlaps beyond repair is warned of, and a warning is an error here."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
    return picture.getvalue()


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize("space", [None, TWO_FAMILIES, ONE_HYPERPARAMETER], ids=["one", "two families", "single"])
@pytest.mark.parametrize("count", [0, 1, 2, 12])
@pytest.mark.filterwarnings("error")
def test_every_picture_of_every_study_is_drawn_and_says_who_entered(count: int, space: Any) -> None:
    config = study(space)
    pictures = study_figures(rows_of(config, count), config.space, shares_of(IMPORTANT, count))
    for name, draw in pictures.items():
        figure = draw()
        drawn(figure)
        assert "completed" in texts(figure), name
    assert ("history" in pictures) == (count > 0)


@pytest.mark.parametrize("ending", [State.PRUNED, State.FAILED, State.INTERRUPTED])
@pytest.mark.filterwarnings("error")
def test_studies_in_which_nothing_completed_are_drawn(ending: State) -> None:
    config = study()
    pictures = study_figures(rows_of(config, 12, [ending]), config.space)
    assert "timeline" in pictures
    for draw in pictures.values():
        drawn(draw())


@pytest.mark.filterwarnings("error")
def test_a_study_of_three_hundred_trials_is_drawn() -> None:
    config = study()
    pictures = study_figures(rows_of(config, 300), config.space, shares_of(IMPORTANT, 150))
    assert len(pictures) == 9
    for draw in pictures.values():
        drawn(draw())


@pytest.mark.filterwarnings("error")
def test_trials_that_are_all_alike_are_drawn() -> None:
    config = study()
    (alike,) = rows_of(config, 1)
    rows = [dataclasses.replace(alike, number=number) for number in range(5)]
    for draw in study_figures(rows, config.space, shares_of(IMPORTANT, 5)).values():
        drawn(draw())


def test_the_same_study_gives_the_same_pictures() -> None:
    config = study()
    first, second = (study_figures(rows_of(config, 12), config.space)["slices"] for _ in range(2))
    assert drawn(first()) == drawn(second())


def test_drawing_leaves_the_style_of_others_alone() -> None:
    config = study()
    before = dict(matplotlib.rcParams)
    drawn(study_figures(rows_of(config, 12), config.space)["history"]())
    assert dict(matplotlib.rcParams) == before


def test_the_history_shows_every_value_and_the_best_so_far() -> None:
    config = study()
    rows = rows_of(config, 12)
    axes = study_figures(rows, config.space)["history"]().axes[0]
    shown = {tuple(point) for dots in axes.collections for point in np.round(np.asarray(dots.get_offsets()), 6)}
    low = axes.get_ylim()[0]
    for row in rows:
        if row.state in (State.COMPLETED, State.PRUNED) and row.value is not None and row.value >= low:
            assert (row.number, round(row.value, 6)) in shown
    (best,) = axes.lines
    assert np.asarray(best.get_ydata())[-1] == max(row.value or 0 for row in rows if row.state is State.COMPLETED)


def test_parallel_coordinates_have_a_line_for_each_completed_trial() -> None:
    config = study()
    rows = rows_of(config, 24)
    axes = study_figures(rows, config.space)["parallel_coordinates"]().axes[0]
    (lines,) = (found for found in axes.collections if isinstance(found, LineCollection))
    assert len(lines.get_segments()) == sum(row.state is State.COMPLETED for row in rows)
    assert ENDINGS.count(State.COMPLETED) == 3
    assert "none" in {text.get_text() for text in axes.texts}, "networks of fewer blocks have no third width"


# ---------------------------------------------------------------------------- of a trained network


def shares(figure: Figure) -> Any:
    """What the colours show."""
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    return shown.tolist()


def cells(figure: Figure) -> set[tuple[Any, str]]:
    return {(text.get_position(), text.get_text()) for text in figure.axes[0].texts}


def test_a_confusion_matrix_shows_every_count_and_every_class() -> None:
    figure = confusion_figure([[5, 0, 1], [0, 7, 0], [2, 3, 4]], ["a", "b", "c"], "title")
    axes = figure.axes[0]
    assert axes.get_title() == "title"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    # Rows are the true classes: what stands at x = 2, y = 0 was of the first class and taken for the third.
    assert {((2, 0), "1"), ((0, 2), "2")} < cells(figure)
    assert len(cells(figure)) == 6
    assert shares(figure)[0] == pytest.approx([5 / 6, 0, 1 / 6])


def test_a_normalised_confusion_matrix_shows_percents_of_each_true_class() -> None:
    figure = confusion_figure([[3, 1], [0, 0]], ["a", "b"], "title", normalised=True)
    assert cells(figure) == {((0, 0), "75.0"), ((1, 0), "25.0")}


def test_a_class_without_images_leaves_its_row_empty() -> None:
    figure = confusion_figure([[0, 0], [1, 1]], ["a", "b"], "a $title$ of whatever text")
    assert shares(figure) == [[0, 0], [0.5, 0.5]]
    drawn(figure)


def report(epoch: int, rate: float = 0.1, val: float | None = 0.8) -> EpochReport:
    return EpochReport(epoch, 1 / epoch, 0.5, None if val is None else 0.5, val, rate, 1.0)


@pytest.mark.parametrize(
    ("rates", "panels"), [((0.1, 0.1), ["loss", "accuracy"]), ((0.1, 0.05), ["loss", "accuracy", "learning rate"])]
)
def test_the_learning_rate_is_drawn_where_it_varies(rates: tuple[float, float], panels: list[str]) -> None:
    figure = training_figure([report(1, rates[0]), report(2, rates[1])], "title")
    assert [axes.get_ylabel() for axes in figure.axes] == panels
    drawn(figure)


def test_a_training_without_validation_says_so() -> None:
    figure = training_figure([report(1, val=None)], "title")
    assert "1 epoch; nothing was held back for validation" in texts(figure)
    assert [line.get_label() for line in figure.axes[0].lines] == ["training"]
    drawn(figure)


def pictures_in(figure: Figure) -> list[AxesImage]:
    return [image for axes in figure.axes for image in axes.images]


def test_the_gallery_shows_the_images_of_the_mistakes_and_what_they_were_taken_for() -> None:
    pixels = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 28, 28)
    figure = mistakes_figure(pixels, [Mistake(3, 0, 1, 0.99), Mistake(1, 1, 0, 0.75)], ["a", "b"], "title")
    assert [np.asarray(image.get_array()).max() for image in pictures_in(figure)] == [3, 1]
    captions = [axes.get_title() for axes in figure.axes if axes.images]
    assert captions == ["a\nas b, 99.0%", "b\nas a, 75.0%"]
    drawn(figure)
    assert "no mistakes" in texts(mistakes_figure(pixels, [], ["a", "b"], "title"))


def test_a_grid_of_predictions_says_the_true_class_of_mistakes_alone() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    pixels = torch.zeros(2, 28, 28, dtype=torch.uint8)
    figure = predictions_figure(pixels, probabilities, torch.tensor([0, 1]), ["a", "b"], "title")
    assert [axes.get_title() for axes in figure.axes if axes.images] == ["a, 90.0%", "a, 80.0%\nis b"]
    assert "1 of 2 right" in texts(figure)
    drawn(figure)


def test_a_reliability_curve_says_its_error_and_shows_the_bins_that_hold_images() -> None:
    probabilities = torch.tensor([[0.95, 0.05], [0.85, 0.15], [0.25, 0.75]])
    found = calibration(probabilities, torch.tensor([0, 1, 1]), bins=10)
    figure = calibration_figure(found, "cnn")
    assert f"cnn: expected calibration error {found.error:.2%}" in texts(figure)
    assert "3 images in 10 bins" in texts(figure)
    curve = figure.axes[0].lines[-1]
    assert np.asarray(curve.get_xdata()).tolist() == pytest.approx([0.75, 0.85, 0.95])
    assert np.asarray(curve.get_ydata()).tolist() == [1, 0, 1]
    drawn(figure)


def test_recipes_of_old_studies_have_no_parameters_and_that_picture_is_left_out() -> None:
    config = study()
    rows = [dataclasses.replace(row, parameters=0) for row in rows_of(config, 12)]
    pictures = study_figures(rows, config.space)
    assert "accuracy_parameters" not in pictures
    assert "accuracy_seconds" in pictures
    assert Recipe().model.family == "cnn"
