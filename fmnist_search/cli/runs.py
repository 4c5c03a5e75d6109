"""Stored runs: reproduce them, and remove what is no longer needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import (
    DataDirOption,
    JsonOption,
    StorageOption,
    StudyOption,
    TrackingUriOption,
    WorkdirOption,
    app,
    make_workspace,
)
from fmnist_search.cli.command import TrainingCommand, confirm

if TYPE_CHECKING:
    from fmnist_search.workflows.garbage import GarbageItem, GarbageKind
    from fmnist_search.workflows.reproduce import EpochComparison, Reproduction


@app.command(cls=TrainingCommand)
def reproduce(
    run: Annotated[str, typer.Argument(help="Id of an MLflow run, or number of a trial.")],
    study: StudyOption = None,
    no_record: Annotated[bool, typer.Option("--no-record", help="Create no run in MLflow.")] = False,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the recipe of a run again under the same settings, and compare every epoch bit for bit.

    The exit code is 0 if all epochs are equal, else 1; then the differences of the environment are shown. The new run
    in MLflow has the tag `reproduces`.

    Examples:

      fmnist-search reproduce 17

      fmnist-search reproduce 4f1c... --no-record
    """
    from fmnist_search.cli.output import print_json
    from fmnist_search.cli.progress import TrainingProgressDisplay
    from fmnist_search.cli.serialization import reproduction_to_dict
    from fmnist_search.workflows import reproduce
    from fmnist_search.workflows.lookup import resolve_runs

    workspace = make_workspace(tracking_uri, workdir, data_dir, storage)
    (run_id,) = resolve_runs(workspace, [run], study)
    reproduction = reproduce.reproduce(
        run_id, workspace=workspace, callback=TrainingProgressDisplay(), record=not no_record
    )
    if as_json:
        print_json(reproduction_to_dict(reproduction))
    else:
        _print_reproduction(reproduction)
    if not reproduction.is_identical:
        raise typer.Exit(1)


def _print_reproduction(reproduction: Reproduction) -> None:
    from fmnist_search.cli.output import stdout

    for pair in reproduction.epochs:
        stdout.print(f"epoch {pair.epoch}: {_format_epoch_pair(pair)}", markup=False)
    if reproduction.reason:
        stdout.print(f"the training failed: {reproduction.reason}", markup=False)
    if not reproduction.is_identical:
        changed = [f"{name} was {was} and is {now}" for name, (was, now) in reproduction.environment_changes.items()]
        stdout.print(f"differences of the environment: {'; '.join(changed) or 'none is recorded'}", markup=False)
    verdict = "identical, bit for bit" if reproduction.is_identical else "not identical"
    where = f"; run {reproduction.run_id}" if reproduction.run_id else ""
    stdout.print(
        f"{reproduction.original.name}: {verdict}, over {len(reproduction.epochs)} epochs{where}", markup=False
    )


def _format_epoch_pair(epoch: EpochComparison) -> str:
    if epoch.is_identical:
        return f"identical {', '.join(epoch.metrics)}"
    different = [f"{name} {'missing' if by is None else f'by {by:+.3g}'}" for name, by in epoch.differences.items()]
    same = [name for name in epoch.metrics if name not in epoch.differences]
    return f"differs in {', '.join(different)}" + (f"; identical {', '.join(same)}" if same else "")


# -------------------------------------------------------------------------------------------- gc


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed, after a question.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without a question.")] = False,
    keep: Annotated[int, typer.Option(help="Number of best trials of each study whose weights stay.", min=1)] = 10,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """List files, models and runs that are no longer needed, with their size; remove them with --delete.

    What a registered model, a finalist or a study needs stays, also for studies that are continued later. Nothing
    outside the folders of this project is removed.

    Examples:

      fmnist-search gc

      fmnist-search gc --delete
    """
    from fmnist_search.cli.output import format_bytes, print_json, stderr, stdout
    from fmnist_search.workflows.garbage import find_garbage, remove_garbage
    from fmnist_search.workspace import image_cache_folder, sqlite_path

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    garbage = find_garbage(workspace, image_cache_folder(), keep)
    kept = [item for item in garbage if not item.is_removable]
    if not as_json:
        _print_garbage(garbage)
    if kept:
        note = _outside_note(kept) if sqlite_path(workspace.tracking_uri) else _server_note(kept)
        stderr.print(note, markup=False)
    removable = [item for item in garbage if item.is_removable]
    removed: list[GarbageItem] = []
    if delete and removable:
        size = format_bytes(_total_bytes(removable))
        confirm("gc --delete", f"Remove these {len(removable)} permanently, {size}?", yes=yes)
        removed = remove_garbage(workspace, image_cache_folder(), keep, removable)
    if as_json:
        print_json(_garbage_to_dict(garbage, removed))
    elif delete:
        in_use = len(removable) - len(removed)
        rest = f"; {in_use} are in use again and stay" if in_use else ""
        stdout.print(f"freed {format_bytes(_total_bytes(removed))}: {len(removed)} removed{rest}")


def _print_garbage(garbage: list[GarbageItem]) -> None:
    from fmnist_search.cli import output

    if not garbage:
        output.stdout.print("nothing to remove")
        return
    groups = dict.fromkeys((item.kind, item.owner) for item in garbage)
    rows = []
    for kind, owner in groups:
        items = [item for item in garbage if (item.kind, item.owner) == (kind, owner)]
        rows.append([kind.value, owner, str(len(items)), output.format_bytes(_total_bytes(items))])
    rows.append(["total", "", str(len(garbage)), output.format_bytes(_total_bytes(garbage))])
    output.print_table(output.make_table(["what", "of", "count", "size"], rows))


def _outside_note(items: list[GarbageItem]) -> str:
    """Return that items outside the folders of the project stay, and what to do if they are its own."""
    return (
        f"{len(items)} of these lie outside this project and stay, such as {items[0].location}; if the project was "
        "moved or copied, run `fmnist-search relocate`"
    )


def _server_note(items: list[GarbageItem]) -> str:
    """Return how to remove what only the machine of the tracking server can remove."""
    from fmnist_search.workflows.garbage import GarbageKind

    line = f"{len(items)} of these belong to the tracking server and stay"
    runs = ",".join(item.name for item in items if item.kind is GarbageKind.RUNS)
    remedy = (
        f"; on its machine, `mlflow gc --run-ids {runs}` removes the runs, and all deleted experiments" if runs else ""
    )
    return line + remedy


def _garbage_to_dict(garbage: list[GarbageItem], removed: list[GarbageItem]) -> dict[str, Any]:
    return {
        "groups": [_garbage_group_to_dict(kind, garbage) for kind in dict.fromkeys(item.kind for item in garbage)],
        "bytes": _total_bytes(garbage),
        "removed": len(removed),
        "freed": _total_bytes(removed),
    }


def _garbage_group_to_dict(kind: GarbageKind, garbage: list[GarbageItem]) -> dict[str, Any]:
    items = [item for item in garbage if item.kind is kind]
    group, description = _garbage_kind_texts(kind)
    return {
        "group": group,
        "what": description,
        "bytes": _total_bytes(items),
        "items": [{"of": item.owner, "name": item.name, "bytes": item.size_bytes} for item in items],
    }


def _garbage_kind_texts(kind: GarbageKind) -> tuple[str, str]:
    from fmnist_search.workflows.garbage import GarbageKind

    return {
        GarbageKind.ARCHIVED: ("aside", "weights of studies that were put aside"),
        GarbageKind.ORPHANED: ("gone", "weights of studies that are gone"),
        GarbageKind.OUTRANKED: ("beaten", "weights of trials that are not among the best of their study"),
        GarbageKind.DELETED: ("deleted", "weights of trainings whose runs were deleted"),
        GarbageKind.CHECKPOINTS: ("checkpoints", "checkpoints of studies that are gone or were put aside"),
        GarbageKind.INCOMPLETE: ("unfinished", "files that were never finished"),
        GarbageKind.MODELS: ("models", "models that no registered version refers to"),
        GarbageKind.RUNS: ("runs", "runs that were deleted in MLflow"),
    }[kind]


def _total_bytes(items: list[GarbageItem]) -> int:
    return sum(item.size_bytes for item in items)
