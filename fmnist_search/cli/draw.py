"""Plots as PNG files: images, augmented images, and the filters of a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmnist_search.cli.app import (
    DataDirOption,
    ForceOption,
    SetOption,
    StorageOption,
    StudyOption,
    TrackingUriOption,
    WorkdirOption,
    app,
    check_output_path,
    image_source,
    load_recipe,
    make_workspace,
)
from fmnist_search.cli.command import CommandGroup
from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DATASETS, DEFAULT_DATASET, get_dataset
from fmnist_search.recipe.hyperparameters import MAX_SEED

if TYPE_CHECKING:
    from fmnist_search.recipe.recipe import Recipe

draw_app = CommandGroup(
    rich_markup_mode=None, no_args_is_help=True, help="Draw images, augmentations or filters as a PNG file."
)
app.add_typer(draw_app, name="draw")

OutputOption = Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the random choice.", min=0, max=MAX_SEED)]


@draw_app.command("samples")
def draw_samples(
    output: OutputOption,
    count: Annotated[int, typer.Option(help="Number of images of each class.", min=1, max=50)] = 10,
    seed: SeedOption = 0,
    dataset_name: Annotated[
        str, typer.Option("--dataset", help=f"Name of a dataset: {', '.join(DATASETS)}.")
    ] = DEFAULT_DATASET,
    force: ForceOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Draw training images, a row for each class.

    Examples:

      fmnist-search draw samples --output samples.png

      fmnist-search draw samples --count 20 --seed 1 --output more.png
    """
    check_output_path(output, suffix=".png", force=force)
    from fmnist_search.data.loading import read_training_set
    from fmnist_search.reporting.image_plots import samples_figure
    from fmnist_search.reporting.style import save_png

    dataset = get_dataset(dataset_name)
    images = read_training_set(dataset.name, image_source(data_dir))
    save_png(samples_figure(images, dataset.classes, count, seed, f"{dataset.name}: training images"), output)
    _print_size(output)


@draw_app.command("augmentations")
def draw_augmentations(
    output: OutputOption,
    recipe: Annotated[
        str | None,
        typer.Argument(help="Recipe file, or name of a preset; by default the default recipe.", show_default=False),
    ] = None,
    settings: SetOption = None,
    image: Annotated[
        int | None,
        typer.Option(
            help="Index of a training image, from 0; by default one of each class.", min=0, show_default=False
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="Number of images for each augmentation.", min=1, max=50)] = 10,
    seed: SeedOption = 0,
    force: ForceOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Draw training images with the augmentations of a recipe: each alone, then all together.

    By default the images are a random one of each class; with --image, all are copies of that one.

    Examples:

      fmnist-search draw augmentations recipe.toml --output changes.png

      fmnist-search draw augmentations --set augmentation.shift=2 --set augmentation.erasing=1 --output changes.png
    """
    check_output_path(output, suffix=".png", force=force)
    from fmnist_search.data.loading import load_images, read_training_set
    from fmnist_search.reporting.image_plots import augmentations_figure, images_of_all_classes
    from fmnist_search.reporting.style import save_png

    loaded, source = _load_recipe(recipe, settings), image_source(data_dir)
    pool = read_training_set(loaded.data.dataset, source)
    if image is not None and image >= len(pool):
        raise UserError(
            f"--image {image}: there are {len(pool):,} training images; give an index from 0 to {len(pool) - 1}"
        )
    fill = round(load_images(loaded.data, source).mean)
    if image is None:
        title = "training images, augmented"
        originals = images_of_all_classes(pool, len(get_dataset(loaded.data.dataset).classes), seed)
    else:
        title, originals = f"training image {image}, augmented", pool.pixels[image : image + 1]
    save_png(augmentations_figure(originals, loaded.augmentation, fill, count, seed, title), output)
    _print_size(output)


def _load_recipe(recipe_name: str | None, settings: list[str] | None) -> Recipe:
    """Return the recipe of a file or a preset, or the default recipe, with the settings of --set."""
    from fmnist_search.config.toml_files import parse_assignments
    from fmnist_search.recipe.recipe import Recipe

    base = load_recipe(recipe_name) if recipe_name else Recipe()
    return base.replace(parse_assignments(settings or []))


@draw_app.command("filters")
def draw_filters(
    run: Annotated[str, typer.Argument(help="Id of an MLflow run, or number of a trial.")],
    output: OutputOption,
    study: StudyOption = None,
    force: ForceOption = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
) -> None:
    """Draw the filters of the first layer of a trained network, from the weights that its run has stored.

    Examples:

      fmnist-search draw filters 17 --output filters.png

      fmnist-search draw filters 4f1c... --output filters.png
    """
    check_output_path(output, suffix=".png", force=force)
    from fmnist_search.reporting.style import save_png
    from fmnist_search.reporting.training_plots import filters_figure
    from fmnist_search.tracking.connection import store_errors
    from fmnist_search.tracking.store import MlflowStore
    from fmnist_search.tracking.stored_runs import read_run
    from fmnist_search.workflows.lookup import load_run_classifier, resolve_runs

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    (run_id,) = resolve_runs(workspace, [run], study)
    with store_errors(workspace.tracking_uri):
        tracking = MlflowStore(workspace.tracking_uri, "fmnist-search")
        found = read_run(tracking, run_id)
        network = load_run_classifier(workspace, tracking, found).network
    save_png(filters_figure(network.state_dict(), found.name), output)
    _print_size(output)


def _print_size(path: Path) -> None:
    from fmnist_search.cli.output import stdout

    stdout.print(f"{path}: {path.stat().st_size:,} bytes", markup=False)
