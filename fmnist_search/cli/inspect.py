"""Looking at studies and their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import AsJson, Pruner, Sampler, Set, StudyName, TrackingUri, Workdir, app
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.results.study import Overhead, StudySummary, TrialRow


@app.command()
def status(
    study: StudyName = None, tracking_uri: TrackingUri = None, workdir: Workdir = None, as_json: AsJson = False
) -> None:
    """How a study stands: its trials, its best, its champion."""
    from fmnist_search.cli.output import out, percent, show_json
    from fmnist_search.results.study import State
    from fmnist_search.workflows.study.api import unsent

    summary = _summary(study, tracking_uri, workdir)
    if as_json:
        show_json({**{state.value: summary.count(state) for state in State}, **_plain_summary(summary)})
        return
    counts = ", ".join(f"{summary.count(state)} {state.value}" for state in State if summary.count(state))
    out.print(f"{summary.name}: {summary.question}", markup=False)
    out.print(f"trials: {counts or 'none'}; {summary.ended_by.value}")
    if summary.best:
        out.print(f"best: trial {summary.best.number} ({summary.best.recipe.label}) at {percent(summary.best.value)}")
    if champion := summary.champion:
        test = percent(champion.test.value)
        out.print(f"champion: {champion.recipe.label}, {champion.confirmed}, {test} on the test images")
    if overhead := summary.overhead:
        out.print(f"beside training, a trial takes {_overhead(overhead)}")
    for line in summary.edges:
        out.print(f"at an edge: {line}", markup=False)
    left = unsent(tracking_uri=tracking_uri, workdir=workdir)
    if left.waiting or left.refused:
        count = f"{left.waiting} events wait to be sent and {sum(left.refused.values())} were refused"
        out.print(f"MLflow has not got everything: {count}; see `fmnist-search sync`")


def _overhead(overhead: Overhead) -> str:
    parts = {"build": overhead.build, "capture": overhead.capture, "sampling": overhead.sampling}
    split = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in parts.items() if seconds)
    return f"{overhead.seconds * 1000:.0f} ms ({split}); {overhead.tracking * 1000:.0f} ms of tracking run beside it"


@app.command()
def leaderboard(
    study: StudyName = None,
    top: Annotated[int, typer.Option(help="How many rows.", min=1)] = 10,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    as_json: AsJson = False,
) -> None:
    """The best completed trials of a study."""
    from fmnist_search.cli import output
    from fmnist_search.search.suggest import searched
    from fmnist_search.workflows.study.api import config_of

    summary = _summary(study, tracking_uri, workdir)
    rows = summary.leaders[:top]
    if as_json:
        output.show_json(rows)
        return
    config = config_of(summary.name, tracking_uri=tracking_uri, workdir=workdir)
    output.show_table(output.leaderboard(rows, searched(config.space)))


def _summary(study: str | None, tracking_uri: str | None, workdir: str | None) -> StudySummary:
    from fmnist_search.workflows.study.api import latest_study
    from fmnist_search.workflows.study.api import status as read

    name = study or latest_study(tracking_uri=tracking_uri, workdir=workdir)
    return read(name, tracking_uri=tracking_uri, workdir=workdir)


def _plain_summary(summary: StudySummary) -> dict[str, Any]:
    return {
        "study": summary.name,
        "question": summary.question,
        "ended_by": summary.ended_by.name.lower(),
        "best": summary.best,
        "champion": summary.champion,
        "run_id": summary.run_id,
        "edges": summary.edges,
        "overhead": summary.overhead,
    }


@app.command()
def show(
    trial: Annotated[str, typer.Argument(help="Number of a trial, or `best`.")] = "best",
    study: Annotated[str | None, typer.Option(help="Name of a study; by default the latest.")] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Print its recipe as TOML and nothing else.")] = False,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    as_json: AsJson = False,
) -> None:
    """A trial: its recipe, its curve, where to find it.

    Examples:

      fmnist-search show 17

      fmnist-search show best --recipe > best.toml
    """
    from fmnist_search.cli import output
    from fmnist_search.config.toml_files import recipe_to_toml
    from fmnist_search.search.suggest import searched
    from fmnist_search.workflows.study.api import config_of, page_of

    summary = _summary(study, tracking_uri, workdir)
    row = _row(summary, trial)
    if recipe:
        output.out.print(recipe_to_toml(row.recipe), markup=False, end="")
        return
    page = page_of(row.run_id, tracking_uri=tracking_uri, workdir=workdir) if row.run_id else None
    if as_json:
        output.show_json({"study": summary.name, **output.plain_row(row), "page": page})
        return
    names = searched(config_of(summary.name, tracking_uri=tracking_uri, workdir=workdir).space)
    output.show_trial(row, names)
    if page:
        output.out.print(f"\nsee it at {page} (while `fmnist-search ui` runs)", markup=False)
        output.out.print(f"train it again with `fmnist-search train --from-run {row.run_id}`", markup=False)


def _row(summary: StudySummary, trial: str) -> TrialRow:
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
    study: StudyName = None, tracking_uri: TrackingUri = None, workdir: Workdir = None, as_json: AsJson = False
) -> None:
    """Which hyperparameters decide whether a trial is among the best."""
    from fmnist_search.cli import output
    from fmnist_search.workflows.study.api import importance as measure
    from fmnist_search.workflows.study.api import latest_study

    name = study or latest_study(tracking_uri=tracking_uri, workdir=workdir)
    found = measure(name, tracking_uri=tracking_uri, workdir=workdir)
    if as_json:
        output.show_json({"study": name, "trials": found.trials, "importances": found.shares})
        return
    rows = [[key, f"{share:.1%}", "█" * round(40 * share)] for key, share in found.shares.items()]
    output.out.print(f"{name}: PED-ANOVA over {found.trials} completed trials; pruned ones do not enter", markup=False)
    output.show_table(output.table(["hyperparameter", "share", ""], rows))


@app.command()
def space(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    sampler: Sampler = None,
    pruner: Pruner = None,
    settings: Set = None,
    as_json: AsJson = False,
) -> None:
    """What a study file searches, overrides applied: domains, their sizes, and what depends on what."""
    from fmnist_search.cli import output
    from fmnist_search.config.conditional_space import size
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.config.toml_files import parse_assignment
    from fmnist_search.search.samplers import drawn_at_random

    options = {"sampler": sampler, "pruner": pruner}
    overrides = {key: value for key, value in options.items() if value is not None}
    config = StudyConfig.load(study, overrides | dict(map(parse_assignment, settings or [])))
    rows = _space_rows(config)
    total = size(config.space)
    at_random = drawn_at_random(config.sampler, config.space)
    if as_json:
        found = {"recipes": total.recipes, "endless": total.endless, "drawn_at_random": at_random}
        output.show_json({"study": config.name, "space": rows, **found})
        return
    body = [
        [row["family"], row["hyperparameter"], row["domain"], _text(row["values"], "endless"), _where(row["where"])]
        for row in rows
    ]
    output.show_table(output.table(["family", "hyperparameter", "domain", "values", "only where"], body))
    times = f", times endless values of {', '.join(total.endless)}" if total.endless else ""
    output.out.print(f"\n{total.recipes:,} recipes{times}", markup=False)
    if at_random:
        output.out.print(f"{config.sampler.name} leaves to chance: {', '.join(at_random)}", markup=False)


def _space_rows(config: StudyConfig) -> list[dict[str, Any]]:
    """What varies in each family, and once what varies in all."""
    from fmnist_search.config.conditional_space import count, variables

    return [
        {
            "family": family if variable.name.startswith("model.") else "all",
            "hyperparameter": variable.name,
            "domain": str(variable.domain),
            "values": count(variable.domain),
            "where": dict(variable.depends_on),
        }
        for number, family in enumerate(config.space.families)
        for variable in variables(config.space, family)
        if number == 0 or variable.name.startswith("model.")
    ]


def _where(gates: Any) -> str:
    from fmnist_search.recipe.recipe import text_of

    return "; ".join(f"{gate} = {', '.join(map(text_of, wanted))}" for gate, wanted in gates.items())


studies = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Study files, and the studies that were run.")
app.add_typer(studies, name="studies")


@studies.command("list")
def list_studies(
    folder: Annotated[Path, typer.Argument(help="Folder of study files.")] = Path("studies"),
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    as_json: AsJson = False,
) -> None:
    """The study files of a folder and the studies that were run, each with its question."""
    from fmnist_search.cli import output
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.workflows.study.api import all_studies

    stored = {s.name: s for s in all_studies(tracking_uri=tracking_uri, workdir=workdir)}
    files = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            files[str(path)] = StudyConfig.load(path)
        except UserError as error:
            output.talk.print(f"{path}: is no valid study; `fmnist-search studies check {path}`", markup=False)
            output.talk.print(f"  {error.lines[0]}", markup=False)
    known = {config.name for config in files.values()}
    rows = [_listed(stored.get(c.name), c.name, c.question, path, c.builds_on) for path, c in files.items()]
    rows += [_listed(s, s.name, s.question) for s in stored.values() if s.name not in known]
    if as_json:
        output.show_json(rows)
        return
    body = [
        [row["study"], row["builds_on"] or "-", _text(row["trials"]), output.percent(row["best"]), row["file"] or "-",
         row["question"]]
        for row in rows
    ]  # fmt: skip
    output.show_table(output.table(["study", "builds on", "trials", "best", "file", "question"], body))


def _listed(
    summary: StudySummary | None, name: str, question: str, file: str | None = None, builds_on: str = ""
) -> dict[str, Any]:
    return {
        "study": name,
        "builds_on": builds_on or None,
        "trials": len(summary.trials) if summary else None,
        "best": summary.best.value if summary and summary.best else None,
        "file": file,
        "question": question,
    }


def _text(count: int | None, without: str = "-") -> str:
    return without if count is None else str(count)


@studies.command("check")
def check_studies(files: Annotated[list[Path], typer.Argument(help="Study files.")], as_json: AsJson = False) -> None:
    """Check study files; every mistake is a line."""
    from fmnist_search.cli.output import out, show_json
    from fmnist_search.config.conditional_space import size
    from fmnist_search.config.study_config import StudyConfig

    problems: list[str] = []
    checked = []
    for path in files:
        try:
            config = StudyConfig.load(path)
        except UserError as error:
            problems += error.lines
            continue
        found = size(config.space)
        checked.append({"file": str(path), "study": config.name, "recipes": found.recipes, "endless": found.endless})
        if not as_json:
            times = f" times endless values of {', '.join(found.endless)}" if found.endless else ""
            out.print(f"{path}: fine; {config.name}, {found.recipes:,} recipes{times}", markup=False)
    if as_json:
        show_json({"checked": checked, "problems": problems})
    if problems:
        raise UserError(*problems)


@studies.command("schema")
def print_schema() -> None:
    """The JSON Schema of study files, for editors that complete and check TOML."""
    import json

    from fmnist_search.config.schema import study_schema

    typer.echo(json.dumps(study_schema(), indent=2))


@studies.command("keys")
def print_keys() -> None:
    """Every key of a study file with its default and meaning, as Markdown."""
    from fmnist_search.config.schema import study_keys

    typer.echo(study_keys(), nl=False)
