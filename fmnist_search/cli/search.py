"""Running a study, and training a single recipe."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import (
    AsJson,
    DataDir,
    Deterministic,
    Device,
    Engine,
    Pruner,
    Sampler,
    Set,
    Threads,
    TrackingUri,
    Workdir,
    Workers,
    app,
)

if TYPE_CHECKING:
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.results.study import StudySummary


@app.command()
def search(
    study: Annotated[Path, typer.Argument(help="Study file, such as studies/quick.toml.")],
    name: Annotated[str | None, typer.Option(help="Another name for the study.", show_default=False)] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all.", show_default=False)] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of searching in all.", show_default=False)] = None,
    sampler: Sampler = None,
    pruner: Pruner = None,
    start: Annotated[
        list[str] | None,
        typer.Option(help="Try this first: a recipe file, preset:NAME, study:NAME or champion.", show_default=False),
    ] = None,
    device: Device = None,
    workers: Workers = None,
    threads: Threads = None,
    engine: Engine = None,
    deterministic: Deterministic = None,
    settings: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Put an earlier study of this name aside.")] = False,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Leave nothing in MLflow; no champion.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Run a study, or go on with it; then find its champion.

    Budgets are totals: the same command again continues and does not add.

    Examples:

      fmnist-search search studies/quick.toml

      fmnist-search search studies/quick.toml --trials 30

      fmnist-search search mine.toml --set optimizer.name=sgd --name sgd

      fmnist-search search studies/baseline.toml --sampler random --pruner one-epoch --name rule

      fmnist-search search studies/baseline.toml --dry-run
    """
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.config.toml_files import parse_assignment

    options = {
        "name": name,
        "budget.trials": trials,
        "budget.minutes": minutes,
        "sampler": sampler,
        "pruner": pruner,
        "execution.device": device,
        "execution.workers": int(workers) if workers and workers.isdigit() else workers,
        "execution.threads": threads,
        "execution.engine": engine,
        "execution.deterministic": deterministic,
    }
    overrides: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    overrides |= {"start.recipes": start} if start else {}
    overrides |= dict(map(parse_assignment, settings or []))
    config = StudyConfig.load(study, overrides)
    if dry_run:
        _show_preview(config, as_json)
        return
    from fmnist_search.cli.output import StudyDisplay, show_json
    from fmnist_search.workflows.study.api import run_study

    with StudyDisplay(config) as display:
        summary = run_study(
            config,
            tracking_uri=tracking_uri,
            workdir=workdir,
            data_dir=data_dir,
            fresh=fresh,
            tracked=not no_tracking,
            listener=display,
        )
    if as_json:
        show_json(summary)
    close(summary, f"fmnist-search search {study}", quiet=as_json)


def _show_preview(config: StudyConfig, as_json: bool) -> None:
    from fmnist_search.cli import output
    from fmnist_search.recipe.recipe import short_names
    from fmnist_search.search.suggest import searched
    from fmnist_search.workflows.study.api import preview

    shown = preview(config)
    if as_json:
        recipes = [
            {"recipe": recipe.flat(), "parameters": summary.parameters, "mult_adds": summary.mult_adds}
            for recipe, summary in shown.recipes
        ]
        output.show_json({"study": config.model_dump(exclude_none=True), "recipes": recipes, "seconds": shown.seconds})
        return
    output.out.print(config.to_toml(), markup=False)
    names = searched(config.space)
    rows = [
        [recipe.label, f"{s.parameters:,}", f"{s.mult_adds / 1e6:.1f} M", *_values(recipe.flat(), names)]
        for recipe, s in shown.recipes
    ]
    short = short_names(names)
    output.show_table(output.table(["network", "parameters", "multiply-adds", *short], rows, "The first recipes"))
    if shown.seconds is not None:
        output.out.print(
            f"\nabout {output.minutes(shown.seconds)} of training if nothing is pruned; nothing was started"
        )


def _values(flat: dict[str, Any], names: list[str]) -> list[str]:
    from fmnist_search.recipe.recipe import short_text

    return [short_text(flat[name]) if name in flat else "-" for name in names]


def close(summary: StudySummary, command: str, *, quiet: bool, searched: bool = True) -> None:
    """The last lines of a search: what was found, where to look, what to do next; and the exit code."""
    from fmnist_search.cli.output import Exit, out, percent, talk
    from fmnist_search.results.study import Ending, State

    if summary.ended_by is Ending.INTERRUPTED:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `mlflow run` sends one after the other; we are leaving
        talk.print(f"interrupted; nothing is lost: `{command}` goes on from here")
        raise typer.Exit(Exit.INTERRUPTED)
    if summary.ended_by is Ending.FAILURES:
        failed = [row for row in summary.trials if row.state is State.FAILED]
        talk.print(f"error: {len(failed)} trials failed, the last because {failed[-1].reason}; see budget.failures")
        raise typer.Exit(Exit.TOO_MANY_FAILURES)
    if summary.best is None:
        talk.print(f"error: no trial of {summary.name!r} has completed; give it more trials or minutes")
        raise typer.Exit(Exit.NOTHING_COMPLETED)
    if searched:
        new = f"{summary.new_trials} new trials" if summary.new_trials else "nothing left to do"
        talk.print(f"{summary.name}: {new}; {summary.ended_by.value}")
        for line in summary.edges:
            talk.print(f"{summary.name}: {line}")
    best = f"best trial {summary.best.number} ({summary.best.recipe.label}) at {percent(summary.best.value)}"
    if champion := summary.champion:
        if champion.verdict:
            talk.print(f"{summary.name}: {champion.model} {champion.verdict}")
        label = f"{f'ensemble of {champion.members}, ' if champion.members > 1 else ''}{champion.recipe.label}"
        best += (
            f"; {label} confirmed at {champion.confirmed}, {percent(champion.test.value)} on the test "
            f"images, registered as models:/{champion.model}/{champion.version} ({champion.alias})"
        )
    last = talk if quiet else out
    browse = "browse it with `fmnist-search ui`, next" if summary.run_id else "next"
    last.print(f"{summary.name}: {best}; {browse} `fmnist-search leaderboard`")
