"""Pictures as files: of the images, of what augmentation makes of them, of the filters of a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmnist_search.cli.app import (
    DataDir,
    Force,
    OfStudy,
    Set,
    TrackingUri,
    Workdir,
    app,
    check_output,
    found_runs,
    image_source,
    recipe_named,
)
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DATASETS, DEFAULT_DATASET, dataset_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fmnist_search.recipe.recipe import Recipe

draw = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Draw a picture into a PNG file.")
app.add_typer(draw, name="draw")

Output = Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")]
Seed = Annotated[int, typer.Option(help="Another seed draws others.", min=0)]


@draw.command("samples")
def draw_samples(
    output: Output,
    count: Annotated[int, typer.Option(help="Images of each class.", min=1, max=50)] = 10,
    seed: Seed = 0,
    name: Annotated[str, typer.Option("--dataset", help=f"{', '.join(DATASETS)}.")] = DEFAULT_DATASET,
    force: Force = False,
    data_dir: DataDir = None,
) -> None:
    """Training images of each class, a row for each.

    Examples:

      fmnist-search draw samples --output samples.png

      fmnist-search draw samples --count 20 --seed 1 --output more.png
    """
    check_output(output, suffix=".png", force=force)
    from fmnist_search.data.loading import training_pool
    from fmnist_search.reporting.image_plots import samples_figure

    dataset = dataset_named(name)
    images = training_pool(dataset.name, image_source(data_dir))
    _write(samples_figure(images, dataset.classes, count, seed, f"{dataset.name}: training images"), output)


@draw.command("augmentations")
def draw_augmentations(
    output: Output,
    recipe: Annotated[str | None, typer.Argument(help="Recipe file, or name of a preset.", show_default=False)] = None,
    settings: Set = None,
    image: Annotated[int, typer.Option(help="Number of a training image, from 0.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Draws of each change.", min=1, max=50)] = 8,
    seed: Seed = 0,
    force: Force = False,
    data_dir: DataDir = None,
) -> None:
    """What a recipe's augmentation makes of a training image: each change by itself, then all together.

    Examples:

      fmnist-search draw augmentations recipe.toml --output changes.png

      fmnist-search draw augmentations --set augmentation.shift=2 --set augmentation.erasing=1 --output changes.png
    """
    check_output(output, suffix=".png", force=force)
    from fmnist_search.data.loading import prepare, training_pool
    from fmnist_search.reporting.image_plots import augmentations_figure

    chosen, source = _recipe(recipe, settings), image_source(data_dir)
    pool = training_pool(chosen.data.dataset, source)
    if image >= len(pool):
        raise UserError(f"--image {image}: there are {len(pool):,} training images; take one from 0 to {len(pool) - 1}")
    fill = round(prepare(chosen.data, source).mean)
    title = f"training image {image}, augmented"
    _write(augmentations_figure(pool.pixels[image], chosen.augmentation, fill, count, seed, title), output)


def _recipe(named: str | None, settings: list[str] | None) -> Recipe:
    """A recipe file or a preset, without either the defaults, with such settings."""
    from fmnist_search.config.toml_files import parse_assignment
    from fmnist_search.recipe.recipe import Recipe

    base = recipe_named(named) if named else Recipe()
    return base.replace(dict(map(parse_assignment, settings or [])))


@draw.command("filters")
def draw_filters(
    run: Annotated[str, typer.Argument(help="Id of a run in MLflow, or number of a trial.")],
    output: Output,
    study: OfStudy = None,
    force: Force = False,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
) -> None:
    """The filters of a trained network's first layer, from the weights that its run has kept.

    Examples:

      fmnist-search draw filters 17 --output filters.png

      fmnist-search draw filters 4f1c... --output filters.png
    """
    check_output(output, suffix=".png", force=force)
    from fmnist_search.reporting.training_plots import filters_figure
    from fmnist_search.tracking.store import Tracking, reaching
    from fmnist_search.tracking.stored_runs import kept_classifier, read_run

    home, (run_id,) = found_runs([run], study, tracking_uri, workdir)
    with reaching(home.tracking_uri):
        tracking = Tracking(home.tracking_uri, "fmnist-search")
        found = read_run(tracking, run_id)
        network = kept_classifier(home, tracking, found).network
    _write(filters_figure(network.state_dict(), found.name), output)


def _write(figure: Figure, output: Path) -> None:
    from fmnist_search.cli.output import out
    from fmnist_search.reporting.style import save_png

    save_png(figure, output)
    out.print(f"{output}: {output.stat().st_size:,} bytes", markup=False)
