"""Stored studies: status, single trials, importances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fmnist_search.cli.app import (
    JsonOption,
    StorageOption,
    StudyArgument,
    TrackingUriOption,
    WorkdirOption,
    app,
    make_workspace,
)
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.results.champion import Champion
    from fmnist_search.results.study import StudySummary, TrialRecord
    from fmnist_search.results.training import Overhead
    from fmnist_search.workspace import Workspace


AllStudiesOption = Annotated[bool, typer.Option("--all", help="Show all stored studies.")]


def check_scope(study: str | None, *, show_all: bool) -> None:
    """Check that --all is not given together with a study.

    Raises:
        UserError: if it is.
    """
    if show_all and study is not None:
        raise UserError(f"--all: shows all studies, and {study!r} names one; give one of the two")


@app.command()
def status(
    study: StudyArgument = None,
    show_all: AllStudiesOption = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the trials of a study by state, its best trial and its confirmed model; with --all, a row for each study.

    Examples:

      fmnist-search status

      fmnist-search status --all
    """
    from fmnist_search.cli.output import print_json
    from fmnist_search.cli.serialization import status_to_dict
    from fmnist_search.workflows import lookup

    check_scope(study, show_all=show_all)
    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    if show_all:
        _show_all_studies(workspace, as_json=as_json)
        return
    summary = lookup.status(study, workspace=workspace)
    if as_json:
        print_json(status_to_dict(summary))
    else:
        _print_status(summary, workspace)


def _print_status(summary: StudySummary, workspace: Workspace) -> None:
    from fmnist_search.cli.output import format_front, format_percent, stdout
    from fmnist_search.results.training import TrialState

    counts = {"running": len(summary.running), **{state.value: summary.count(state) for state in TrialState}}
    trials = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    stdout.print(f"{summary.name}: {summary.question}", markup=False)
    stdout.print(f"trials: {trials or 'none'}; {summary.stop_reason.value}")
    if best := summary.best:
        stdout.print(f"best: trial {best.number} ({best.recipe.label}) at {format_percent(best.value)}")
    if summary.front:
        stdout.print(format_front(summary.front))
    if selected := summary.champion:
        _print_selected(selected)
    if overhead := summary.overhead:
        stdout.print(f"overhead of a trial beside its training: {_format_overhead(overhead)}")
    for line in summary.boundary_warnings:
        stdout.print(f"at a boundary: {line}", markup=False)
    _print_outbox(workspace)


def _print_selected(selected: Champion) -> None:
    """Print what the study has confirmed and registered, and whether that became champion.

    The registry belongs to all studies: a champion from another one is named by the reason.
    """
    from fmnist_search.cli.output import format_test, stdout

    label = f"{f'ensemble of {selected.members}, ' if selected.members > 1 else ''}{selected.recipe.label}"
    stdout.print(
        f"confirmed: trial {selected.confirmed_score.trial} ({label}) at {selected.confirmed_score}, "
        f"{format_test(selected.test)}"
    )
    reason = f" ({selected.verdict})" if selected.verdict else ""
    stdout.print(f"registered: {selected.address}, {selected.alias} when it was compared{reason}", markup=False)


def _print_outbox(workspace: Workspace) -> None:
    from fmnist_search.cli.output import stdout
    from fmnist_search.tracking.outbox_file import OutboxError, warn_once
    from fmnist_search.workflows import lookup

    try:
        outbox = lookup.outbox_status(workspace=workspace)
    except OutboxError as error:
        warn_once(error)
        return
    if outbox.pending or outbox.rejected:
        counts = f"{outbox.pending} events wait to be sent, {sum(outbox.rejected.values())} were rejected"
        stdout.print(f"MLflow has not received all events: {counts}; see `fmnist-search sync`")


def _show_all_studies(workspace: Workspace, *, as_json: bool) -> None:
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import status_to_dict
    from fmnist_search.results.compute import trained_epochs
    from fmnist_search.results.training import TrialState
    from fmnist_search.workflows.across_studies import all_studies

    studies = all_studies(workspace=workspace)
    if as_json:
        output.print_json([status_to_dict(study.summary) for study in studies])
        return
    rows = []
    for study in studies:
        summary, data = study.summary, study.config.data
        best, selected = summary.best, summary.champion
        rows.append(
            [
                summary.name,
                str(len(summary.running)),
                *(str(summary.count(state)) for state in TrialState),
                str(trained_epochs(summary.trials)),
                output.format_duration(summary.searched_seconds),
                output.format_percent(best.value if best else None),
                str(best.number) if best else "-",
                selected.recipe.label if selected else "-",
                selected.alias if selected else "-",
                data.dataset,
                f"{data.training_count:,}",
                f"{data.validation:,}",
                str(data.seed),
                summary.stop_reason.value,
            ]
        )
    states = [state.value for state in TrialState]
    columns = [
        "study",
        "running",
        *states,
        "epochs",
        "time",
        "best",
        "trial",
        "confirmed",
        "alias",
        "dataset",
        "training",
        "validation",
        "split",
        "state",
    ]
    output.print_table(output.make_table(columns, rows))
    _print_outbox(workspace)


def _format_overhead(overhead: Overhead) -> str:
    parts = {"build": overhead.build, "capture": overhead.capture, "sampling": overhead.sampling}
    split = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in parts.items() if seconds)
    return f"{overhead.seconds * 1000:.0f} ms ({split}); in parallel, tracking took {overhead.tracking * 1000:.0f} ms"


@app.command()
def show(
    trial: Annotated[str, typer.Argument(help="Number of a trial, or `best`.")] = "best",
    study: Annotated[str | None, typer.Option(help="Name of the study; by default the latest.")] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Print only the recipe, as TOML.")] = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a trial: its result, its curve, its hyperparameters and its page in MLflow.

    Examples:

      fmnist-search show 17

      fmnist-search show best --recipe > best.toml
    """
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import trial_to_dict
    from fmnist_search.config.toml_files import recipe_to_toml
    from fmnist_search.search.suggest import displayed_names
    from fmnist_search.workflows import lookup

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    stored = lookup.load_study(workspace, study)
    summary = lookup.summarize_stored(workspace, stored)
    record = _find_trial(summary, trial)
    if recipe:
        output.stdout.print(recipe_to_toml(record.recipe), markup=False, end="")
        return
    page = lookup.run_url(record.run_id, workspace=workspace) if record.run_id else None
    if as_json:
        output.print_json({"study": summary.name, **trial_to_dict(record), "page": page})
        return
    output.print_trial(record, displayed_names(stored.config, (each.recipe for each in summary.trials)))
    if page:
        output.stdout.print(f"\nits page is {page} (while `fmnist-search ui` runs)", markup=False)
        output.stdout.print(f"train it again with `fmnist-search train --from-run {record.run_id}`", markup=False)


def _find_trial(summary: StudySummary, trial: str) -> TrialRecord:
    if trial == "best":
        if summary.best is None:
            raise UserError(f"study {summary.name!r}: no trial has completed; give the number of one", exit_code=3)
        return summary.best
    record = next((record for record in summary.trials if str(record.number) == trial), None)
    if record is None:
        last = max((record.number for record in summary.trials), default=None)
        remedy = "it has none yet" if last is None else f"give a number from 0 to {last}, or `best`"
        raise UserError(f"show {trial!r}: study {summary.name!r} has no such trial; {remedy}")
    return record


@app.command()
def importance(
    study: StudyArgument = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much each hyperparameter decides whether a trial is among the best."""
    from fmnist_search.cli import output
    from fmnist_search.search.analysis import load_ped_anova
    from fmnist_search.workflows.lookup import load_study

    stored = load_study(make_workspace(tracking_uri, workdir, storage=storage), study)
    load_ped_anova()
    found = stored.importances()
    name = stored.config.name
    if not found.are_reliable:
        output.print_message(
            f"{name}: {found.trials} completed trials are few: below {found.RELIABLE_TRIALS}, importances are mostly "
            "chance; search on with more trials"
        )
    if as_json:
        output.print_json({"study": name, "trials": found.trials, "importances": found.by_name})
        return
    rows = [[key, f"{share:.1%}", "█" * round(40 * share)] for key, share in found.by_name.items()]
    output.stdout.print(f"{name}: PED-ANOVA over {found.trials} completed trials, without pruned ones", markup=False)
    output.print_table(output.make_table(["hyperparameter", "share", ""], rows))
