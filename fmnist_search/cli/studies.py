"""Study files: their search spaces, their errors, and the studies of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import (
    ForceOption,
    JsonOption,
    PrunerOption,
    SamplerOption,
    SetOption,
    StorageOption,
    TrackingUriOption,
    WorkdirOption,
    app,
    check_output_path,
    make_workspace,
)
from fmnist_search.cli.command import CommandGroup
from fmnist_search.cli.streams import write_output
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.recipe.hyperparameters import Value


@app.command()
def space(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    sampler: SamplerOption = None,
    pruner: PrunerOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the search space of a study file after overrides: domains, their sizes, and conditions."""
    from fmnist_search.cli import output
    from fmnist_search.config.conditional_space import space_size
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.config.toml_files import parse_assignments

    options = {"sampler": sampler, "pruner": pruner}
    overrides = {key: value for key, value in options.items() if value is not None}
    config = StudyConfig.load(study, overrides | parse_assignments(settings or []))
    rows = _hyperparameter_rows(config)
    total = space_size(config.space)
    at_random = config.independently_sampled
    if as_json:
        size = {"recipes": total.recipe_count, "endless": total.unbounded, "drawn_at_random": at_random}
        output.print_json({"study": config.name, "space": rows, **size})
        return
    body = [
        [
            row["family"],
            row["hyperparameter"],
            row["domain"],
            _format_count(row["values"], "endless"),
            _format_conditions(row["where"]),
        ]
        for row in rows
    ]
    output.print_table(output.make_table(["family", "hyperparameter", "domain", "values", "only if"], body))
    output.stdout.print(f"\n{_format_size(total.recipe_count, total.unbounded)}", markup=False)
    if at_random:
        output.stdout.print(f"{config.sampler.name} samples independently: {', '.join(at_random)}", markup=False)


def _hyperparameter_rows(config: StudyConfig) -> list[dict[str, Any]]:
    """Return the hyperparameters of all families once, and those of each model family."""
    from fmnist_search.config.conditional_space import conditional_hyperparameters
    from fmnist_search.config.domain import value_count

    return [
        {
            "family": family if variable.name.startswith("model.") else "all",
            "hyperparameter": variable.name,
            "domain": str(variable.domain),
            "values": value_count(variable.domain),
            "where": dict(variable.conditions),
        }
        for number, family in enumerate(config.space.families)
        for variable in conditional_hyperparameters(config.space, family)
        if number == 0 or variable.name.startswith("model.")
    ]


def _format_conditions(conditions: Mapping[str, Sequence[Value]]) -> str:
    from fmnist_search.recipe.formatting import format_value

    return "; ".join(f"{name} = {', '.join(map(format_value, values))}" for name, values in conditions.items())


def _format_count(count: int | None, default: str = "-") -> str:
    return default if count is None else str(count)


def _format_size(recipe_count: int, unbounded: Sequence[str]) -> str:
    times = f" times endless values of {', '.join(unbounded)}" if unbounded else ""
    return f"{recipe_count:,} {'recipe' if recipe_count == 1 else 'recipes'}{times}"


# ------------------------------------------------------------------------------------------- studies

studies_app = CommandGroup(no_args_is_help=True, rich_markup_mode=None, help="List, check and copy study files.")
app.add_typer(studies_app, name="studies")


@studies_app.command("list")
def list_studies(
    folder: Annotated[Path, typer.Argument(help="Folder of study files.")] = Path("studies"),
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the study files of a folder and the stored studies, each with its question."""
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import listed_study_to_dict
    from fmnist_search.search.study_list import list_studies

    stored = {
        entry.name: entry for entry in list_studies(make_workspace(tracking_uri, workdir, storage=storage).storage_url)
    }
    files = _load_study_files(folder)
    rows = [
        listed_study_to_dict(stored.pop(config.name, None), config.name, config.question, path, config.builds_on)
        for path, config in files.items()
    ]
    rows += [listed_study_to_dict(entry, entry.name, entry.question) for entry in stored.values()]
    if as_json:
        output.print_json(rows)
        return
    body = [
        [
            row["study"],
            row["builds_on"] or "-",
            _format_count(row["trials"]),
            output.format_percent(row["best"]),
            row["file"] or "-",
            row["question"],
        ]
        for row in rows
    ]
    output.print_table(output.make_table(["study", "builds on", "trials", "best", "file", "question"], body))


def _load_study_files(folder: Path) -> dict[str, StudyConfig]:
    """Return the valid study files of a folder by path; print a message for each invalid one."""
    from fmnist_search.cli.output import stderr
    from fmnist_search.config.study_config import StudyConfig

    files = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            files[str(path)] = StudyConfig.load(path, run_plugins=False)
        except UserError as error:
            stderr.print(f"{path}: is not a valid study; see `fmnist-search studies check {path}`", markup=False)
            stderr.print(f"  {error.lines[0]}", markup=False)
    return files


@studies_app.command("check")
def check_studies(
    files: Annotated[list[Path], typer.Argument(help="Study files.")], as_json: JsonOption = False
) -> None:
    """Check study files; print a line for each error."""
    from fmnist_search.cli.output import print_json, stdout
    from fmnist_search.config.conditional_space import space_size
    from fmnist_search.config.study_config import StudyConfig

    problems: list[str] = []
    checked = []
    for path in files:
        try:
            config = StudyConfig.load(path)
        except UserError as error:
            problems += error.lines
            continue
        size = space_size(config.space)
        checked.append(
            {"file": str(path), "study": config.name, "recipes": size.recipe_count, "endless": size.unbounded}
        )
        if not as_json:
            recipes = _format_size(size.recipe_count, size.unbounded)
            stdout.print(f"{path}: valid; {config.name}, {recipes}", markup=False)
    if as_json:
        print_json({"checked": checked, "problems": problems})
    if problems:
        raise UserError(*problems)


@studies_app.command("copy")
def copy_studies(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names of shipped studies; without names, lists them.", show_default=False),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write study files that are part of this program into the current folder.

    Examples:

      fmnist-search studies copy

      fmnist-search studies copy quick
    """
    from fmnist_search.cli import output
    from fmnist_search.config.shipped_studies import copy_shipped_study, shipped_studies, shipped_study
    from fmnist_search.config.study_config import StudyConfig

    sources = {name: shipped_study(name) for name in names} if names else shipped_studies()
    if names:
        for name in sources:
            check_output_path(Path(f"{name}.toml"), force=force)
        for name in sources:
            copy_shipped_study(name, Path())
    questions = {name: StudyConfig.load(source).question for name, source in sources.items()}
    if as_json:
        output.print_json([{"study": name, "question": question} for name, question in questions.items()])
    elif names:
        for name in sources:
            output.stdout.print(f"{name}.toml: written; run it with `fmnist-search search {name}.toml`", markup=False)
    else:
        output.print_table(output.make_table(["study", "question"], [[*row] for row in questions.items()]))
        output.stdout.print("\n`fmnist-search studies copy NAME` writes one into this folder", markup=False)


@studies_app.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of study files, for editors that complete and check TOML."""
    import json

    from fmnist_search.config.schema import study_schema

    write_output(json.dumps(study_schema(), indent=2) + "\n")


@studies_app.command("keys")
def print_keys() -> None:
    """Print every key of a study file with its default and its meaning, as Markdown."""
    from fmnist_search.config.pages import study_keys_page

    write_output(study_keys_page())
