"""Looking at studies and their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import (
    JsonOption,
    PrunerOption,
    SamplerOption,
    SetOption,
    StudyArgument,
    TrackingUriOption,
    WorkdirOption,
    app,
    make_workspace,
)
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.results.study import StudySummary, TrialRecord
    from fmnist_search.results.training import Overhead
    from fmnist_search.workspace import Workspace


@app.command()
def status(
    study: StudyArgument = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """How a study stands: its trials, its best, its champion."""
    from fmnist_search.cli.output import format_percent, print_json, stdout
    from fmnist_search.cli.serialization import status_to_dict
    from fmnist_search.results.training import TrialState
    from fmnist_search.workflows.lookup import outbox_status

    workspace = make_workspace(tracking_uri, workdir)
    summary = _load_summary(study, workspace)
    if as_json:
        print_json(status_to_dict(summary))
        return
    counts = ", ".join(f"{summary.count(state)} {state.value}" for state in TrialState if summary.count(state))
    stdout.print(f"{summary.name}: {summary.question}", markup=False)
    stdout.print(f"trials: {counts or 'none'}; {summary.stop_reason.value}")
    if summary.best:
        stdout.print(
            f"best: trial {summary.best.number} ({summary.best.recipe.label}) at {format_percent(summary.best.value)}"
        )
    if champion := summary.champion:
        test = format_percent(champion.test.value)
        stdout.print(f"champion: {champion.recipe.label}, {champion.confirmed_score}, {test} on the test images")
    if overhead := summary.overhead:
        stdout.print(f"beside training, a trial takes {_format_overhead(overhead)}")
    for line in summary.boundary_warnings:
        stdout.print(f"at an edge: {line}", markup=False)
    left = outbox_status(workspace=workspace)
    if left.pending or left.rejected:
        count = f"{left.pending} events wait to be sent and {sum(left.rejected.values())} were refused"
        stdout.print(f"MLflow has not got everything: {count}; see `fmnist-search sync`")


def _format_overhead(overhead: Overhead) -> str:
    parts = {"build": overhead.build, "capture": overhead.capture, "sampling": overhead.sampling}
    split = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in parts.items() if seconds)
    return f"{overhead.seconds * 1000:.0f} ms ({split}); {overhead.tracking * 1000:.0f} ms of tracking run beside it"


@app.command()
def leaderboard(
    study: StudyArgument = None,
    top: Annotated[int, typer.Option(help="How many rows.", min=1)] = 10,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """The best completed trials of a study."""
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import trial_to_dict
    from fmnist_search.config.conditional_space import varying_names
    from fmnist_search.workflows.lookup import load_study_config

    workspace = make_workspace(tracking_uri, workdir)
    summary = _load_summary(study, workspace)
    rows = summary.ranked_trials[:top]
    if as_json:
        output.print_json([trial_to_dict(row) for row in rows])
        return
    config = load_study_config(summary.name, workspace=workspace)
    output.print_table(output.leaderboard_table(rows, varying_names(config.space)))


def _load_summary(study: str | None, workspace: Workspace) -> StudySummary:
    from fmnist_search.workflows.lookup import latest_study
    from fmnist_search.workflows.lookup import status as read

    name = study or latest_study(workspace=workspace)
    return read(name, workspace=workspace)


@app.command()
def show(
    trial: Annotated[str, typer.Argument(help="Number of a trial, or `best`.")] = "best",
    study: Annotated[str | None, typer.Option(help="Name of a study; by default the latest.")] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Print its recipe as TOML and nothing else.")] = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """A trial: its recipe, its curve, where to find it.

    Examples:

      fmnist-search show 17

      fmnist-search show best --recipe > best.toml
    """
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import trial_to_dict
    from fmnist_search.config.conditional_space import varying_names
    from fmnist_search.config.toml_files import recipe_to_toml
    from fmnist_search.workflows.lookup import load_study_config, run_url

    workspace = make_workspace(tracking_uri, workdir)
    summary = _load_summary(study, workspace)
    row = _find_trial(summary, trial)
    if recipe:
        output.stdout.print(recipe_to_toml(row.recipe), markup=False, end="")
        return
    page = run_url(row.run_id, workspace=workspace) if row.run_id else None
    if as_json:
        output.print_json({"study": summary.name, **trial_to_dict(row), "page": page})
        return
    names = varying_names(load_study_config(summary.name, workspace=workspace).space)
    output.print_trial(row, names)
    if page:
        output.stdout.print(f"\nsee it at {page} (while `fmnist-search ui` runs)", markup=False)
        output.stdout.print(f"train it again with `fmnist-search train --from-run {row.run_id}`", markup=False)


def _find_trial(summary: StudySummary, trial: str) -> TrialRecord:
    if trial == "best":
        if summary.best is None:
            raise UserError(f"study {summary.name!r}: no trial has completed; name one by its number", exit_code=3)
        return summary.best
    row = next((row for row in summary.trials if str(row.number) == trial), None)
    if row is None:
        last = max((row.number for row in summary.trials), default=None)
        known = "it has none yet" if last is None else f"give a number from 0 to {last}, or `best`"
        raise UserError(f"show {trial!r}: study {summary.name!r} has no such trial; {known}")
    return row


@app.command()
def importance(
    study: StudyArgument = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which hyperparameters decide whether a trial is among the best."""
    from fmnist_search.cli import output
    from fmnist_search.workflows.lookup import importance as measure
    from fmnist_search.workflows.lookup import latest_study

    workspace = make_workspace(tracking_uri, workdir)
    name = study or latest_study(workspace=workspace)
    found = measure(name, workspace=workspace)
    if as_json:
        output.print_json({"study": name, "trials": found.trials, "importances": found.by_name})
        return
    rows = [[key, f"{share:.1%}", "█" * round(40 * share)] for key, share in found.by_name.items()]
    output.stdout.print(
        f"{name}: PED-ANOVA over {found.trials} completed trials; pruned ones do not enter", markup=False
    )
    output.print_table(output.make_table(["hyperparameter", "share", ""], rows))


@app.command()
def space(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    sampler: SamplerOption = None,
    pruner: PrunerOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a study file searches, overrides applied: domains, their sizes, and what depends on what."""
    from fmnist_search.cli import output
    from fmnist_search.config.conditional_space import space_size
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.config.toml_files import parse_assignment

    options = {"sampler": sampler, "pruner": pruner}
    overrides = {key: value for key, value in options.items() if value is not None}
    config = StudyConfig.load(study, overrides | dict(map(parse_assignment, settings or [])))
    rows = _variable_rows(config)
    total = space_size(config.space)
    at_random = config.independently_sampled
    if as_json:
        found = {"recipes": total.recipe_count, "endless": total.unbounded, "drawn_at_random": at_random}
        output.print_json({"study": config.name, "space": rows, **found})
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
    output.print_table(output.make_table(["family", "hyperparameter", "domain", "values", "only where"], body))
    times = f", times endless values of {', '.join(total.unbounded)}" if total.unbounded else ""
    output.stdout.print(f"\n{total.recipe_count:,} recipes{times}", markup=False)
    if at_random:
        output.stdout.print(f"{config.sampler.name} samples independently: {', '.join(at_random)}", markup=False)


def _variable_rows(config: StudyConfig) -> list[dict[str, Any]]:
    """What varies in each family, and once what varies in all."""
    from fmnist_search.config.conditional_space import conditional_hyperparameters, value_count

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


def _format_conditions(conditions: Any) -> str:
    from fmnist_search.recipe.formatting import format_value

    return "; ".join(f"{gate} = {', '.join(map(format_value, wanted))}" for gate, wanted in conditions.items())


studies_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Study files, and the studies that were run."
)
app.add_typer(studies_app, name="studies")


@studies_app.command("list")
def list_studies(
    folder: Annotated[Path, typer.Argument(help="Folder of study files.")] = Path("studies"),
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """The study files of a folder and the studies that were run, each with its question."""
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import listed_study_to_dict
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.workflows.lookup import all_studies

    stored = {s.name: s for s in all_studies(workspace=make_workspace(tracking_uri, workdir))}
    files = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            files[str(path)] = StudyConfig.load(path)
        except UserError as error:
            output.stderr.print(f"{path}: is no valid study; `fmnist-search studies check {path}`", markup=False)
            output.stderr.print(f"  {error.lines[0]}", markup=False)
    known = {config.name for config in files.values()}
    rows = [
        listed_study_to_dict(stored.get(c.name), c.name, c.question, path, c.builds_on) for path, c in files.items()
    ]
    rows += [listed_study_to_dict(s, s.name, s.question) for s in stored.values() if s.name not in known]
    if as_json:
        output.print_json(rows)
        return
    body = [
        [row["study"], row["builds_on"] or "-", _format_count(row["trials"]), output.format_percent(row["best"]),
         row["file"] or "-",
         row["question"]]
        for row in rows
    ]  # fmt: skip
    output.print_table(output.make_table(["study", "builds on", "trials", "best", "file", "question"], body))


def _format_count(count: int | None, default: str = "-") -> str:
    return default if count is None else str(count)


@studies_app.command("check")
def check_studies(
    files: Annotated[list[Path], typer.Argument(help="Study files.")], as_json: JsonOption = False
) -> None:
    """Check study files; every mistake is a line."""
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
        found = space_size(config.space)
        checked.append(
            {"file": str(path), "study": config.name, "recipes": found.recipe_count, "endless": found.unbounded}
        )
        if not as_json:
            times = f" times endless values of {', '.join(found.unbounded)}" if found.unbounded else ""
            stdout.print(f"{path}: fine; {config.name}, {found.recipe_count:,} recipes{times}", markup=False)
    if as_json:
        print_json({"checked": checked, "problems": problems})
    if problems:
        raise UserError(*problems)


@studies_app.command("schema")
def print_schema() -> None:
    """The JSON Schema of study files, for editors that complete and check TOML."""
    import json

    from fmnist_search.config.schema import study_schema

    typer.echo(json.dumps(study_schema(), indent=2))


@studies_app.command("keys")
def print_keys() -> None:
    """Every key of a study file with its default and meaning, as Markdown."""
    from fmnist_search.config.schema import study_keys_page

    typer.echo(study_keys_page(), nl=False)
