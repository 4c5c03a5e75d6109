"""Families of networks and published presets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmnist_search.cli.app import JsonOption, SetOption, app
from fmnist_search.cli.command import CommandGroup
from fmnist_search.cli.streams import write_output

if TYPE_CHECKING:
    from fmnist_search.models.presets import Preset

models_app = CommandGroup(rich_markup_mode=None)
app.add_typer(models_app, name="models")


@models_app.callback(invoke_without_command=True)
def list_presets(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the published networks that this program knows as presets, with their size and accuracy.

    For registered models see `evaluate`, `predict` and the MLflow UI.

    Examples:

      fmnist-search models

      fmnist-search models show lenet --set model.width_1=64
    """
    if context.invoked_subcommand:
        return
    from fmnist_search.cli import output
    from fmnist_search.cli.model_serialization import preset_to_dict
    from fmnist_search.models.presets import PRESETS
    from fmnist_search.recipe.families import FAMILIES

    rows = [preset_to_dict(preset, preset.parameters, preset.mult_adds) for preset in PRESETS.values()]
    if as_json:
        output.print_json(rows)
        return
    columns = ["preset", "family", "parameters", "mult_adds", "published", "notes"]
    body = [[f"{row[name]:,}" if isinstance(row[name], int) else row[name] for name in columns] for row in rows]
    output.print_table(output.make_table(columns, body))
    output.stdout.print(f"\nfamilies that a study can search: {', '.join(FAMILIES)}", markup=False)


@models_app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(help="Name of a preset or a family.")],
    settings: SetOption = None,
    batch_size: Annotated[
        int, typer.Option(help="Number of images whose shapes, multiply-adds and memory are counted.", min=1, max=4_096)
    ] = 1,
    recipe: Annotated[bool, typer.Option("--recipe", help="Print only the recipe, as TOML.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a network layer by layer: shapes, parameters, and multiply-adds of one image or of a batch.

    Examples:

      fmnist-search models show simple-cnn --set model.width_1=64

      fmnist-search models show lenet --batch-size 64

      fmnist-search models show lenet --recipe > lenet.toml
    """
    from dataclasses import replace

    from fmnist_search.cli import output
    from fmnist_search.cli.model_serialization import layer_to_dict, preset_to_dict
    from fmnist_search.config.toml_files import parse_assignments
    from fmnist_search.models.classifier import check_size
    from fmnist_search.models.presets import get_preset
    from fmnist_search.reporting.model_summary import summarize

    preset = get_preset(name)
    changes = parse_assignments(settings or [])
    preset = replace(preset, recipe=preset.recipe.replace(changes))
    if recipe:
        check_size(preset.recipe.model, preset.recipe.data.num_classes)
        output.stdout.print(_preset_to_toml(preset), markup=False, end="")
        return
    summary = summarize(preset.recipe.model, preset.recipe.data.num_classes, batch_size)
    if as_json:
        values = {key: value for key, value in preset.recipe.to_flat_dict().items() if key.startswith("model.")}
        row = {
            **preset_to_dict(preset, summary.parameters, summary.mult_adds),
            "changed": changes,
            **({"batch_size": batch_size} if batch_size > 1 else {}),
            "hyperparameters": values,
            "layers": [layer_to_dict(layer) for layer in summary.layers],
        }
        output.print_json(row)
        return
    output.stdout.print(summary.text, markup=False)
    output.stdout.print(f"{name}: {preset.recipe.label}, {summary.parameters:,} parameters", markup=False)
    published = "published of the unchanged preset" if changes else "published"
    for label, text in ((published, preset.published_accuracy), ("notes", preset.notes)):
        if text:
            output.stdout.print(f"{label}: {text}", markup=False)


@models_app.command("recipes")
def write_recipes(folder: Annotated[Path, typer.Argument(help="Folder for the recipe files.")]) -> None:
    """Write the recipe file of every preset into a folder."""
    from fmnist_search.files import atomic_write
    from fmnist_search.models.presets import PRESETS

    folder.mkdir(parents=True, exist_ok=True)
    for preset in PRESETS.values():
        with atomic_write(folder / f"{preset.name}.toml") as file:
            file.write(_preset_to_toml(preset).encode())


def _preset_to_toml(preset: Preset) -> str:
    """Return a recipe file of the values that differ from the defaults, below comments with the author's figures."""
    from fmnist_search.config.toml_files import recipe_to_toml

    comments = {"published": preset.published_accuracy, "notes": preset.notes}
    head = [f"# {preset.name}", *(f"# {key}: {text}" for key, text in comments.items() if text)]
    return "\n".join([*head, "", recipe_to_toml(preset.recipe, brief=True)])


@models_app.command("page")
def print_page() -> None:
    """Print every preset and family as Markdown."""
    from fmnist_search.config.pages import presets_page

    write_output(presets_page())
