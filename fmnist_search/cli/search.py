"""Running a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import (
    BackendOption,
    DataDirOption,
    DeterministicOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    PrunerOption,
    SamplerOption,
    SetOption,
    StorageOption,
    ThreadsOption,
    TrackingUriOption,
    WorkdirOption,
    WorkersOption,
    app,
    make_workspace,
    parse_workers,
    tracking_options,
)
from fmnist_search.cli.command import TrainingCommand, given_command
from fmnist_search.cli.mlflow_run import find_file
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.results.study import StudySummary
    from fmnist_search.workflows.study.preview import Preview


@app.command(cls=TrainingCommand)
def search(
    context: typer.Context,
    study: Annotated[Path, typer.Argument(help="Study file; `fmnist-search studies copy` lists some to start with.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the study, in place of the one in the file.", show_default=False)
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Number of trials in all sessions of the study.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes of searching in all sessions of the study.", show_default=False)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of a trial that is not pruned.", show_default=False)
    ] = None,
    sampler: SamplerOption = None,
    pruner: PrunerOption = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            help="Recipe to try first: a recipe file, preset:NAME, study:NAME or champion; repeatable.",
            show_default=False,
        ),
    ] = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    engine: EngineOption = None,
    deterministic: DeterministicOption = None,
    settings: SetOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Archive an earlier study of this name and begin anew.")
    ] = False,
    no_tracking: Annotated[
        bool, typer.Option("--no-tracking", help="Write nothing to MLflow; the study has no champion then.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the study and its first networks, and start nothing.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Search in the background; `watch` follows the search, and `stop` ends it."),
    ] = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a study, or continue it; then find its champion.

    Budgets count all sessions: the same command run again continues the study and adds no trials to its budget.

    Examples:

      fmnist-search search quick.toml

      fmnist-search search quick.toml --trials 30

      fmnist-search search mine.toml --set optimizer.name=sgd --name sgd

      fmnist-search search baseline.toml --sampler random --pruner one-epoch --name rule

      fmnist-search search baseline.toml --dry-run

      fmnist-search search baseline.toml --detach

      fmnist-search search baseline.toml --backend ray
    """
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.config.toml_files import parse_assignments

    options = {
        "name": name,
        "budget.trials": trials,
        "budget.minutes": minutes,
        "budget.epochs": epochs,
        "sampler": sampler,
        "pruner": pruner,
        "execution.backend": backend,
        "execution.device": device,
        "execution.workers": None if workers is None else parse_workers(workers),
        "execution.threads": threads,
        "execution.engine": engine,
        "execution.deterministic": deterministic,
    }
    overrides: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    overrides |= {"start.recipes": start} if start else {}
    overrides |= parse_assignments(settings or [])
    config = StudyConfig.load(find_file(study), overrides)
    if dry_run and detach:
        raise UserError("--detach: a dry run starts nothing in the background; leave out --detach or --dry-run")
    workspace = make_workspace(tracking_uri, workdir, data_dir, storage)
    if dry_run:
        from fmnist_search.workflows.study.preview import preview

        tracking = tracking_options(context, enabled=not no_tracking)
        _print_preview(config, preview(config, workspace=workspace, fresh=fresh, tracking=tracking), as_json)
        return
    if detach:
        from fmnist_search.cli.running import search_in_background

        search_in_background(context, config, workspace, as_json=as_json)
        return
    from fmnist_search.cli.output import print_json
    from fmnist_search.cli.progress import StudyProgressDisplay
    from fmnist_search.cli.serialization import search_to_dict
    from fmnist_search.workflows.study.api import run_study

    with StudyProgressDisplay(config) as display:
        summary = run_study(
            config,
            workspace=workspace,
            fresh=fresh,
            tracking=tracking_options(context, enabled=not no_tracking),
            callback=display,
        )
    if as_json:
        print_json(search_to_dict(summary))
    print_summary(summary, given_command(context, without={"fresh"}), quiet=as_json)


def _print_preview(config: StudyConfig, preview: Preview, as_json: bool) -> None:
    from fmnist_search.cli import output
    from fmnist_search.recipe.formatting import short_names
    from fmnist_search.search.suggest import displayed_names

    limit = config.budget.max_mult_adds
    refused = [limit is not None and first.summary.mult_adds > limit for first in preview.recipes]
    if as_json:
        recipes = [
            {
                "recipe": first.recipe.to_flat_dict(),
                "parameters": first.summary.parameters,
                "mult_adds": first.summary.mult_adds,
                **({} if limit is None else {"refused": is_refused}),
                **({} if first.source is None else {"start": first.source}),
            }
            for first, is_refused in zip(preview.recipes, refused, strict=True)
        ]
        output.print_json(
            {"study": config.model_dump(exclude_none=True), "recipes": recipes, "seconds": preview.seconds}
        )
        return
    output.stdout.print(config.to_toml(), markup=False)
    names = displayed_names(config, (first.recipe for first in preview.recipes))
    started = any(first.source for first in preview.recipes)
    rows = [
        [
            first.recipe.label,
            f"{first.summary.parameters:,}",
            f"{first.summary.mult_adds / 1e6:.1f} M",
            *_format_values(first.recipe.to_flat_dict(), names),
            *([first.source or "-"] if started else []),
            *(["refused"] if is_refused else []),
        ]
        for first, is_refused in zip(preview.recipes, refused, strict=True)
    ]
    columns = ["network", "parameters", "multiply-adds", *short_names(names)]
    columns += [*(["start"] if started else []), *([""] if any(refused) else [])]
    output.print_table(output.make_table(columns, rows, "The first recipes"))
    if limit is not None:
        output.stdout.print(
            f"\n{sum(refused)} of these {len(refused)} networks would be refused: more than budget.max_mult_adds = "
            f"{limit:,}"
        )
    if config.budget.max_seconds_per_epoch is not None:
        output.stdout.print("\nbudget.max_seconds_per_epoch is measured in the first epoch of each trial")
    estimate = ""
    if preview.seconds is not None:
        estimate = f"about {output.format_duration(preview.seconds)} of training if nothing is pruned; "
    output.stdout.print(f"\n{estimate}nothing was started")


def _format_values(flat: dict[str, Any], names: list[str]) -> list[str]:
    from fmnist_search.recipe.formatting import format_value_short

    return [format_value_short(flat[name]) if name in flat else "-" for name in names]


def print_summary(summary: StudySummary, command: str, *, quiet: bool, after_search: bool = True) -> None:
    """Print the result of a search and the next command.

    Raises:
        typer.Exit: with the exit code of a search that was interrupted, failed or completed no trial.
    """
    from fmnist_search.cli.output import ExitCode, format_front, format_percent, format_test, stderr, stdout
    from fmnist_search.results.study import StopReason
    from fmnist_search.results.training import TrialState
    from fmnist_search.workflows.interruption import ignore_sigterm_while_ending

    if summary.stop_reason is StopReason.INTERRUPTED:
        ignore_sigterm_while_ending()  # `mlflow run` sends SIGINT and then SIGTERM
        stderr.print(f"interrupted; nothing is lost: `{command}` continues the study")
        raise typer.Exit(ExitCode.INTERRUPTED)
    if summary.stop_reason is StopReason.FAILURES:
        failed = [trial for trial in summary.trials if trial.state is TrialState.FAILED]
        stderr.print(f"error: {len(failed)} trials failed, the last because {failed[-1].reason}; see budget.failures")
        raise typer.Exit(ExitCode.TOO_MANY_FAILURES)
    if summary.stop_reason is StopReason.LOSSES:
        stderr.print(f"error: {summary.stop_reason.value}; the same command goes on with a larger budget.losses")
        raise typer.Exit(ExitCode.TOO_MANY_FAILURES)
    if summary.best is None and summary.stop_reason is StopReason.REFUSED:
        stderr.print(f"error: no trial of {summary.name!r} has completed: {summary.stop_reason.value}")
        raise typer.Exit(ExitCode.NOTHING_COMPLETED)
    if summary.best is None:
        stderr.print(f"error: no trial of {summary.name!r} has completed; give it more trials or minutes")
        raise typer.Exit(ExitCode.NOTHING_COMPLETED)
    if after_search:
        new = f"{summary.new_trials} new trials" if summary.new_trials else "nothing left to do"
        stderr.print(f"{summary.name}: {new}; {summary.stop_reason.value}")
        for line in summary.boundary_warnings:
            stderr.print(f"{summary.name}: {line}")
        if summary.front:
            command = f"fmnist-search leaderboard --pareto {summary.cost_metric}"
            stderr.print(f"{summary.name}: {format_front(summary.front)}; see `{command}`")
    best = f"best trial {summary.best.number} ({summary.best.recipe.label}) at {format_percent(summary.best.value)}"
    if champion := summary.champion:
        if champion.verdict:
            stderr.print(f"{summary.name}: {champion.model} {champion.verdict}")
        label = f"{f'ensemble of {champion.members}, ' if champion.members > 1 else ''}{champion.recipe.label}"
        best += (
            f"; {label} confirmed at {champion.confirmed_score}, {format_test(champion.test)}, "
            f"registered as models:/{champion.model}/{champion.version} ({champion.alias})"
        )
    last = stderr if quiet else stdout
    browse = "browse it with `fmnist-search ui`, next" if summary.run_id else "next"
    last.print(f"{summary.name}: {best}; {browse} `fmnist-search leaderboard`")
