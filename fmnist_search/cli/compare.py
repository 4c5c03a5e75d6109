"""Comparison of stored runs, and of stored studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmnist_search.cli.app import (
    ForceOption,
    JsonOption,
    StorageOption,
    StudyOption,
    TrackingUriOption,
    WorkdirOption,
    app,
    check_output_path,
    make_workspace,
)
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.tracking.stored_runs import TrainedRun
    from fmnist_search.workflows.across_studies import ComparedStudy, EqualCompute, StudyComparison
    from fmnist_search.workspace import Workspace


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Names of studies; or ids of MLflow runs and numbers of trials.", metavar="RUN|STUDY..."),
    ],
    study: StudyOption = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show equal hyperparameters and settings as well.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="PNG file to write: best value against compute, of studies."),
    ] = None,
    force: ForceOption = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs, or compare studies.

    Runs: their results, and the hyperparameters in which they differ. Studies: the settings in which they differ, and
    which found the better value for the same compute, in trained epochs and in seconds. A word that is a number is the
    number of a trial, unless other words are names of studies.

    Examples:

      fmnist-search compare 3 17

      fmnist-search compare 3 17 --study deep

      fmnist-search compare 4f1c... 9b20... --all

      fmnist-search compare deep wide --output deep-or-wide.png
    """
    from fmnist_search.workflows.across_studies import are_studies

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    if output:
        check_output_path(output, suffix=".png", force=force)
    if are_studies(runs, workspace=workspace):
        if study is not None:
            raise UserError(f"--study {study}: belongs to numbers of trials; leave it out, or give numbers")
        _compare_studies(workspace, runs, output, show_all=show_all, as_json=as_json)
        return
    if output:
        raise UserError(f"--output {output}: shows studies; give names of studies, or leave it out")
    _compare_runs(workspace, runs, study, show_all=show_all, as_json=as_json)


# ---------------------------------------------------------------------------------------------- runs


def _compare_runs(workspace: Workspace, runs: list[str], study: str | None, *, show_all: bool, as_json: bool) -> None:
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import run_to_dict
    from fmnist_search.recipe.formatting import differing_names
    from fmnist_search.tracking.local_store import open_run_reader
    from fmnist_search.tracking.stored_runs import hyperparameter_texts, read_run
    from fmnist_search.workflows.lookup import resolve_runs

    run_ids = resolve_runs(workspace, runs, study)
    with open_run_reader(workspace.tracking_uri) as reader:
        found = [read_run(reader, run_id) for run_id in run_ids]
    texts = [hyperparameter_texts(run.recipe) for run in found]
    names = differing_names(texts)
    if as_json:
        output.print_json({"runs": [run_to_dict(run) for run in found], "differing": names})
        return
    shown = list(dict.fromkeys(name for each in texts for name in each)) if show_all else names
    figures = [_format_metrics(run) for run in found]
    rows = [[name, *(each[name] for each in figures)] for name in figures[0]]
    rows += [[name, *(each.get(name, "-") for each in texts)] for name in shown]
    output.print_table(output.make_table(["", *(run.name for run in found)], rows))
    if not names and len(found) > 1:
        output.stdout.print("\ntheir recipes are equal")


def _format_metrics(run: TrainedRun) -> dict[str, str]:
    """Return the results of a run as texts."""
    from fmnist_search.cli.output import format_percent

    return {
        "run": run.run_id,
        "kind": run.kind,
        "state": run.state,
        "val_accuracy": format_percent(run.accuracy),
        "best val_accuracy": format_percent(run.best),
        "epochs": str(run.epochs),
        "seconds": "-" if run.seconds is None else f"{run.seconds:.1f}",
        "parameters": "-" if run.parameters is None else f"{run.parameters:,}",
    }


# ------------------------------------------------------------------------------------------- studies


def _compare_studies(
    workspace: Workspace, names: list[str], picture: Path | None, *, show_all: bool, as_json: bool
) -> None:
    from fmnist_search.cli import output
    from fmnist_search.cli.serialization import study_comparison_to_dict
    from fmnist_search.workflows.across_studies import compare_studies

    comparison = compare_studies(names, workspace=workspace)
    lines = _conclusions(comparison)
    if as_json:
        output.print_json(study_comparison_to_dict(comparison))
    else:
        output.print_table(output.make_table(["", *(s.summary.name for s in comparison.studies)], _rows(comparison)))
        settings = _setting_rows(comparison, show_all=show_all)
        if settings:
            output.stdout.print()
            output.print_table(output.make_table(["", *(s.summary.name for s in comparison.studies)], settings))
        output.stdout.print()
        for line in lines:
            output.stdout.print(line, markup=False)
    if picture:
        from fmnist_search.reporting.study_comparison_plot import study_comparison_figure
        from fmnist_search.reporting.style import save_png

        figure = study_comparison_figure([each.progress for each in comparison.studies], "; ".join(lines))
        save_png(figure, picture)
        output.print_message(f"{picture}: written")


def _rows(comparison: StudyComparison) -> list[list[str]]:
    """Return the results of each study as texts."""
    from fmnist_search.cli.output import format_percent

    columns = list(map(_study_column, comparison.studies))
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    for unit, equal in _equal_computes(comparison).items():
        rows.append([f"best after {_format_amount(unit, equal)}", *map(format_percent, equal.values)])
    return rows


def _study_column(study: ComparedStudy) -> dict[str, str]:
    from fmnist_search.cli.output import format_duration, format_percent
    from fmnist_search.results.training import TrialState

    summary, progress, best = study.summary, study.progress, study.summary.best
    counts = ", ".join(f"{summary.count(state)} {state.value}" for state in TrialState if summary.count(state))
    return {
        "trials": counts or "none",
        "state": summary.stop_reason.value,
        "trained epochs": str(progress.epochs),
        "seconds of training": f"{progress.seconds:.1f}",
        "time of searching": format_duration(summary.searched_seconds),
        "best": format_percent(best.value if best else None),
        "best trial": f"{best.number} ({best.recipe.label})" if best else "-",
    }


def _equal_computes(comparison: StudyComparison) -> dict[str, EqualCompute]:
    return {"epochs": comparison.same_epochs, "seconds": comparison.same_seconds}


def _format_amount(unit: str, equal: EqualCompute) -> str:
    return f"{equal.amount:.0f} trained epochs" if unit == "epochs" else f"{equal.amount:.1f} s of training"


def _setting_rows(comparison: StudyComparison, *, show_all: bool) -> list[list[str]]:
    """Return the settings of each study: those in which they differ, or all."""
    every = dict.fromkeys(name for study in comparison.studies for name in study.settings)
    names = every if show_all else comparison.differing
    return [[name, *(study.settings.get(name, "-") for study in comparison.studies)] for name in names]


def _conclusions(comparison: StudyComparison) -> list[str]:
    """Return what the studies have in common, and which found the better value for the same compute."""
    groups = list(dict.fromkeys(name.partition(".")[0] for study in comparison.studies for name in study.settings))
    differing = {name.partition(".")[0] for name in comparison.differing}
    equal = [group for group in groups if group not in differing]
    lines = [f"equal: {', '.join(equal) or 'nothing'}; different: {', '.join(g for g in groups if g in differing)}"]
    if not differing:
        lines = ["their settings are equal"]
    if comparison.incomparable:
        names = ", ".join(comparison.incomparable)
        return [*lines, f"their values cannot be compared, because they come from other images or splits: {names}"]
    for unit, compute in _equal_computes(comparison).items():
        lines.append(f"after {_format_amount(unit, compute)}, {_verdict(comparison, compute)}")
    if "execution" in differing:
        lines.append("the seconds depend on the execution as well, in which they differ")
    return lines


def _verdict(comparison: StudyComparison, equal: EqualCompute) -> str:
    known = [value for value in equal.values if value is not None]
    if not known:
        return "no trial had completed"
    if equal.better is None:
        return "the best values are equal"
    if equal.lead is None:
        return f"only {equal.better} had completed a trial"
    verdict = f"{equal.better} is ahead by {100 * equal.lead:.2f} points"
    if comparison.chance is not None and equal.lead < comparison.chance:
        return f"{verdict}, which may be chance (up to {100 * comparison.chance:.2f} points)"
    return verdict
