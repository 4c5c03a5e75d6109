"""Stored studies as a whole: deleted, renamed and exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmnist_search.cli.app import (
    JsonOption,
    StorageOption,
    TrackingUriOption,
    WorkdirOption,
    make_workspace,
    plots_enabled,
)
from fmnist_search.cli.command import confirm
from fmnist_search.cli.studies import studies_app
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.workflows.study_changes import StudyChange

StudyNameArgument = Annotated[str, typer.Argument(help="Name of a stored study.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@studies_app.command("delete")
def delete(
    study: StudyNameArgument,
    yes: YesOption = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a stored study: its trials, its runs in MLflow, its weights and its checkpoints.

    The runs are marked as deleted in MLflow, and `mlflow gc` removes them for good. Registered models stay, and so do
    the runs that they come from. A study that is being searched is not deleted.
    """
    from fmnist_search.workflows.lookup import load_study

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    trials = len(load_study(workspace, study).trial_records())
    confirm("studies delete", f"Delete the study {study!r} with {trials} trials, its runs and its files?", yes=yes)
    from fmnist_search.workflows.study_changes import delete_study

    change = delete_study(study, workspace=workspace)
    _print(change, f"{study}: deleted with {_counts(change)}", as_json)


@studies_app.command("rename")
def rename(
    study: StudyNameArgument,
    new: Annotated[str, typer.Argument(help="Its new name.")],
    yes: YesOption = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rename a stored study in Optuna's storage and in MLflow, with its weights and its checkpoints.

    It can be continued: with its new name in the study file, or with `search --name`. A study that is being searched
    is not renamed.
    """
    from fmnist_search.workflows.lookup import load_study

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    load_study(workspace, study)
    confirm("studies rename", f"Rename the study {study!r} to {new!r}, with its runs and its files?", yes=yes)
    from fmnist_search.workflows.study_changes import rename_study

    change = rename_study(study, new, workspace=workspace)
    _print(change, f"{new}: renamed from {study}, with {_counts(change)}", as_json)


@studies_app.command("export")
def export(
    context: typer.Context,
    study: StudyNameArgument,
    output: Annotated[Path, typer.Option(help="Folder for the files.")],
    force: Annotated[bool, typer.Option("--force", help="Replace files in the folder of --output.")] = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a stored study as files: its study file, its trials as CSV and JSON, its recipes, its note and its plots.

    Example:

      fmnist-search studies export quick --output quick
    """
    import json

    from fmnist_search.cli.output import print_json, stdout
    from fmnist_search.cli.serialization import trial_to_dict
    from fmnist_search.files import atomic_write
    from fmnist_search.workflows.lookup import status
    from fmnist_search.workflows.study_export import study_files

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    trials = status(study, workspace=workspace).trials
    if not force and output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output {output}: is not empty; name another folder, or replace its files with --force")
    files = study_files(study, plots=plots_enabled(context), workspace=workspace)
    files["trials.json"] = (json.dumps([trial_to_dict(trial) for trial in trials], indent=2) + "\n").encode()
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic_write(output / name) as file:
                file.write(content)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); name another folder") from None
    if as_json:
        print_json({"study": study, "files": [str(output / name) for name in files]})
    else:
        stdout.print(f"{study}: {len(trials)} trials in {output}: {', '.join(files)}", markup=False)


def _counts(change: StudyChange) -> str:
    return f"{change.trials} trials and {change.runs} runs in MLflow"


def _print(change: StudyChange, line: str, as_json: bool) -> None:
    from fmnist_search.cli.output import print_json, stdout

    if as_json:
        print_json(
            {"study": change.study, "trials": change.trials, "runs": change.runs, "versions": list(change.versions)}
        )
        return
    stays = f"; registered models stay: {', '.join(change.versions)}" if change.versions else ""
    stdout.print(line + stays, markup=False)
