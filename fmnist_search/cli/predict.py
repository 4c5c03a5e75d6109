"""Predictions of a registered model for image files and test images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import (
    DataDirOption,
    JsonOption,
    TrackingUriOption,
    TrustOption,
    app,
    check_output_path,
    image_source,
)
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import MAX_CLASSES, TEST_SET_SIZE

if TYPE_CHECKING:
    from fmnist_search.registry.packaging import LoadedModel

PREDICTION_BATCH_SIZE = 1_000
"""Images in a batch: memory stays bounded for any number of images."""
MAX_GRID_IMAGES = 100
"""Images in the grid of --grid at most."""


@app.command()
def predict(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files of one item each, IDX files, or folders of image files.", show_default=False),
    ] = None,
    test_image: Annotated[
        list[int] | None, typer.Option(help="Index of a test image, from 0; repeatable.", min=0, show_default=False)
    ] = None,
    test_images: Annotated[
        str | None,
        typer.Option(help="Test images from index A to B-1, such as 0:25.", metavar="A:B", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="MLflow address of the model, id of a training's run, or file of weights; by default the champion."
        ),
    ] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Resize images to 28 by 28 pixels.")] = False,
    invert: Annotated[
        bool, typer.Option("--invert", help="Invert images that show a dark item on a light background.")
    ] = False,
    top: Annotated[
        int, typer.Option(help="Number of classes to show, the most probable first.", min=1, max=MAX_CLASSES)
    ] = 1,
    grid: Annotated[
        Path | None,
        typer.Option(
            help="PNG file for the images with their predicted classes, wrong ones in red.", show_default=False
        ),
    ] = None,
    trust: TrustOption = False,
    tracking_uri: TrackingUriOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the classes of image files or of test images.

    An image file is a PNG, a JPEG, or an IDX file of many images, `.gz` or not, whatever its name; a folder stands for
    all its PNG and JPEG files in order of their names.

    Examples:

      fmnist-search predict shoe.png --resize --invert --top 3

      fmnist-search predict wardrobe/ --resize --grid wardrobe.png

      fmnist-search predict --test-image 0 --test-image 1

      fmnist-search predict --test-images 0:25 --grid first.png

      fmnist-search predict --test-image 0 --model out/weights.pt
    """
    import itertools

    import numpy as np

    from fmnist_search.cli import output
    from fmnist_search.cli.image_files import read_image_files

    numbers = [*(test_image or []), *_parse_range(test_images)]
    if not images and not numbers:
        raise UserError("predict: give an image file, --test-image NUMBER or --test-images A:B")
    if grid:
        check_output_path(grid, suffix=".png")
    files = read_image_files(images or [], resize=resize, invert=invert, on_message=output.print_message)
    loaded = _load_model(model, tracking_uri, trust=trust)
    from_files = ((image.name, image.pixels, None) for image in files)
    inputs = itertools.chain(from_files, _load_test_images(numbers, loaded, data_dir))
    rows: list[dict[str, Any]] = []
    drawn: list[tuple[Any, Any]] = []
    while batch := list(itertools.islice(inputs, PREDICTION_BATCH_SIZE)):
        names, pixels, truths = zip(*batch, strict=True)
        probabilities = loaded.probabilities(np.stack(pixels))
        rows += [
            _prediction_to_dict(*row, loaded.classes, top) for row in zip(names, truths, probabilities, strict=True)
        ]
        drawn += list(zip(pixels, probabilities, strict=True))[: max(MAX_GRID_IMAGES - len(drawn), 0)] if grid else []
    if grid and drawn:
        _save_grid(grid, drawn, [row["true"] for row in rows], loaded.classes, loaded.uri)
        if len(rows) > len(drawn):
            output.print_message(f"{grid}: shows the first {len(drawn)} of {len(rows):,}")
    if as_json:
        output.print_json(rows)
        return
    columns = ["image", "class", "probability", *(["then"] if top > 1 else []), *(["true class"] if numbers else [])]
    output.print_table(output.make_table(columns, ([_format_cell(row, column) for column in columns] for row in rows)))


def _parse_range(text: str | None) -> range:
    """Return the indices from A to B-1, given as A:B."""
    if text is None:
        return range(0)
    found = re.fullmatch("([0-9]{1,9}):([0-9]{1,9})", text)
    indices = range(int(found[1]), int(found[2])) if found else range(0)
    if not indices or indices.stop > TEST_SET_SIZE:
        raise UserError(
            f"--test-images {text}: is not a range of the {TEST_SET_SIZE:,} test images; write A:B, such as 0:25 for "
            "the first 25"
        )
    return indices


def _save_grid(
    path: Path, predictions: list[tuple[Any, Any]], true_classes: list[str | None], classes: tuple[str, ...], title: str
) -> None:
    """Write the images with their predicted classes as a PNG; a true class is None if it is unknown."""
    import numpy as np
    import torch

    from fmnist_search.reporting.style import save_png
    from fmnist_search.reporting.training_plots import UNKNOWN_LABEL, predictions_figure

    pixels, probabilities = (torch.from_numpy(np.stack(part)) for part in zip(*predictions, strict=True))
    labels = torch.tensor(
        [UNKNOWN_LABEL if true is None else classes.index(true) for true in true_classes[: len(predictions)]]
    )
    save_png(predictions_figure(pixels, probabilities, labels, classes, title), path)


def _load_test_images(
    indices: list[int], model: LoadedModel, data_dir: Path | None
) -> list[tuple[str, Any, str | None]]:
    """Return test images of the model's dataset: name, pixels (28, 28) uint8 and class of each."""
    from fmnist_search.data.loading import read_test_set

    if not indices:
        return []
    test = read_test_set(model.dataset, image_source(data_dir))
    if beyond := [number for number in indices if number >= len(test)]:
        raise UserError(f"test image {beyond[0]}: there are {len(test):,}; take one from 0 to {len(test) - 1}")
    return [(f"test image {n}", test.pixels[n].numpy(), model.classes[int(test.labels[n])]) for n in indices]


def _prediction_to_dict(
    name: str, true_class: str | None, probabilities: Any, classes: tuple[str, ...], top: int
) -> dict[str, Any]:
    best = probabilities.argsort()[::-1][:top]
    ranked = [{"class": classes[place], "probability": float(probabilities[place])} for place in best]
    return {"image": name, **ranked[0], "true": true_class, "top": ranked}


def _format_cell(row: dict[str, Any], column: str) -> str:
    match column:
        case "probability":
            return f"{row['probability']:.1%}"
        case "then":
            return ", ".join(f"{rank['class']} {rank['probability']:.1%}" for rank in row["top"][1:])
        case "true class":
            return row["true"] or "-"
    return str(row[column])


def _load_model(model: str | None, tracking_uri: str | None, *, trust: bool) -> LoadedModel:
    from fmnist_search.registry.packaging import DEFAULT_MODEL
    from fmnist_search.tracking.connection import connect
    from fmnist_search.workflows.trained_models import is_file, load_model
    from fmnist_search.workspace import resolve_tracking_uri as resolve

    address, uri = model or DEFAULT_MODEL, resolve(tracking_uri)
    if not is_file(address):  # which needs no store
        connect(uri)
    return load_model(address, uri, trust=trust)
