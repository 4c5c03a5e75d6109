"""Runs once they are on record: compared, trained again, and cleared away."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_search.cli.app import AsJson, DataDir, OfStudy, TrackingUri, Workdir, app, found_runs
from fmnist_search.errors import UserError

if TYPE_CHECKING:
    from fmnist_search.tracking.stored_runs import TrainedRun
    from fmnist_search.workflows.garbage import Leftover
    from fmnist_search.workflows.reproduce import EpochPair, Reproduction


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Ids of runs in MLflow, or numbers of trials.", metavar="RUN...")],
    study: OfStudy = None,
    every: Annotated[bool, typer.Option("--all", help="Hyperparameters that are the same as well.")] = False,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    as_json: AsJson = False,
) -> None:
    """Runs side by side: what they reached, and the hyperparameters in which they differ.

    Examples:

      fmnist-search compare 3 17

      fmnist-search compare 3 17 --study deep

      fmnist-search compare 4f1c... 9b20... --all
    """
    from fmnist_search.cli import output
    from fmnist_search.tracking.store import Tracking, reaching
    from fmnist_search.tracking.stored_runs import differing, hyperparameters, read_run

    home, run_ids = found_runs(runs, study, tracking_uri, workdir)
    with reaching(home.tracking_uri):
        tracking = Tracking(home.tracking_uri, "fmnist-search")
        found = [read_run(tracking, run_id) for run_id in run_ids]
    names = differing([run.recipe for run in found])
    if as_json:
        output.show_json({"runs": found, "differing": names})
        return
    texts = [hyperparameters(run.recipe) for run in found]
    shown = list(dict.fromkeys(name for each in texts for name in each)) if every else names
    figures = [_figures(run) for run in found]
    rows = [[name, *(each[name] for each in figures)] for name in figures[0]]
    rows += [[name, *(each.get(name, "-") for each in texts)] for name in shown]
    output.show_table(output.table(["", *(run.name for run in found)], rows))
    if not names and len(found) > 1:
        output.out.print("\ntheir recipes are the same")


def _figures(run: TrainedRun) -> dict[str, str]:
    """What a run reached, for people."""
    from fmnist_search.cli.output import percent

    return {
        "run": run.run_id,
        "kind": run.kind,
        "state": run.state,
        "val_accuracy": percent(run.accuracy),
        "best val_accuracy": percent(run.best),
        "epochs": str(run.epochs),
        "seconds": "-" if run.seconds is None else f"{run.seconds:.1f}",
        "parameters": "-" if run.parameters is None else f"{run.parameters:,}",
    }


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(help="Id of a run in MLflow, or number of a trial.")],
    study: OfStudy = None,
    no_record: Annotated[bool, typer.Option("--no-record", help="Leave no run in MLflow.")] = False,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Train a run's recipe again under its own conditions, and compare every epoch bit for bit.

    Exits with 0 where all are the same, and with 1 where they are not; then it says what of the environment is not as
    it was. The new run in MLflow carries the tag `reproduces`.

    Examples:

      fmnist-search reproduce 17

      fmnist-search reproduce 4f1c... --no-record
    """
    from fmnist_search.cli.output import TrainingDisplay, show_json
    from fmnist_search.workflows import reproduce

    home, (run_id,) = found_runs([run], study, tracking_uri, workdir)
    done = reproduce.reproduce(home, run_id, listener=TrainingDisplay(), data_dir=data_dir, record=not no_record)
    if as_json:
        show_json(_plain(done))
    else:
        _show(done)
    if not done.is_same:
        raise typer.Exit(1)


def _plain(done: Reproduction) -> dict[str, Any]:
    epochs = [
        {
            "epoch": pair.epoch,
            "same": pair.is_same,
            **{name: {"was": was, "is": now} for name, (was, now) in pair.figures.items()},
        }
        for pair in done.epochs
    ]
    return {
        "run": done.original.run_id,
        "same": done.is_same,
        "epochs": epochs,
        "reason": done.reason,
        "execution": done.execution,
        "environment": {name: {"was": was, "is": now} for name, (was, now) in done.changed.items()},
        "run_id": done.run_id,
    }


def _show(done: Reproduction) -> None:
    from fmnist_search.cli.output import out

    for pair in done.epochs:
        out.print(f"epoch {pair.epoch}: {_said(pair)}", markup=False)
    if done.reason:
        out.print(f"the training failed: {done.reason}", markup=False)
    if not done.is_same:
        changed = [f"{name} was {was} and is {now}" for name, (was, now) in done.changed.items()]
        out.print(f"of the environment, {'; '.join(changed) or 'nothing on record differs'}", markup=False)
    verdict = "the same, bit for bit" if done.is_same else "not the same"
    where = f"; run {done.run_id}" if done.run_id else ""
    out.print(f"{done.original.name}: {verdict}, over {len(done.epochs)} epochs{where}", markup=False)


def _said(pair: EpochPair) -> str:
    if pair.is_same:
        return f"the same {', '.join(pair.figures)}"
    off = [f"{name} {'missing' if by is None else f'by {by:+.3g}'}" for name, by in pair.differences.items()]
    same = [name for name in pair.figures if name not in pair.differences]
    return f"differs in {', '.join(off)}" + (f"; the same {', '.join(same)}" if same else "")


# -------------------------------------------------------------------------------------------- gc


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it, after a second question.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask no second question.")] = False,
    keep: Annotated[int, typer.Option(help="How many of a study's best trials keep their weights.", min=1)] = 10,
    tracking_uri: TrackingUri = None,
    workdir: Workdir = None,
    as_json: AsJson = False,
) -> None:
    """List what nothing needs any more, with its size; with --delete, remove it.

    What a registered model, a finalist or a study needs stays, whether the study goes on now or later.

    Examples:

      fmnist-search gc

      fmnist-search gc --delete
    """
    from fmnist_search.cli.output import out, show_json, talk
    from fmnist_search.workflows.garbage import is_ours_to_remove, leftovers, remove
    from fmnist_search.workspace import Home, image_cache

    home = Home.find(tracking_uri, workdir)
    listed = leftovers(home, image_cache(), keep)
    left = [item for item in listed if not is_ours_to_remove(home, item)]
    if not as_json:
        _show_leftovers(listed)
    if left:
        talk.print(_servers_part(left), markup=False)
    going = [item for item in listed if is_ours_to_remove(home, item)]
    removed: list[Leftover] = []
    if delete and going:
        if not yes:
            _confirm(going)
        removed = remove(home, image_cache(), keep, going)
    if as_json:
        show_json({**_plain_leftovers(listed), "removed": len(removed), "freed": _bytes(removed)})
    elif delete:
        stayed = f"; {len(going) - len(removed)} are in use again and stay" if len(removed) < len(going) else ""
        out.print(f"freed {_size(_bytes(removed))}: {len(removed)} removed{stayed}")


def _confirm(going: list[Leftover]) -> None:
    if not sys.stdin.isatty():
        raise UserError("gc --delete: asks before it removes, and nobody is there to answer; add --yes")
    question = f"Remove these {len(going)} for good, {_size(_bytes(going))}?"
    if not typer.confirm(question, err=True):
        raise typer.Exit(0)


def _show_leftovers(listed: list[Leftover]) -> None:
    from fmnist_search.cli import output

    if not listed:
        output.out.print("nothing is left over")
        return
    places = dict.fromkeys((item.group, item.place) for item in listed)
    rows = []
    for group, place in places:
        items = [item for item in listed if (item.group, item.place) == (group, place)]
        rows.append([group.value, place, str(len(items)), _size(_bytes(items))])
    rows.append(["in all", "", str(len(listed)), _size(_bytes(listed))])
    output.show_table(output.table(["what", "of", "count", "size"], rows))


def _servers_part(left: list[Leftover]) -> str:
    """What to do with what only the machine of the tracking server can remove."""
    from fmnist_search.workflows.garbage import Group

    line = f"{len(left)} of these are the tracking server's and stay"
    runs = ",".join(item.name for item in left if item.group is Group.RUNS)
    remedy = f"; there, `mlflow gc --run-ids {runs}` removes the runs, and all deleted experiments" if runs else ""
    return line + remedy


def _plain_leftovers(listed: list[Leftover]) -> dict[str, Any]:
    groups = [
        {
            "group": group.name.lower(),
            "what": group.value,
            "bytes": _bytes([item for item in listed if item.group is group]),
            "items": [
                {"of": item.place, "name": item.name, "bytes": item.bytes} for item in listed if item.group is group
            ],
        }
        for group in dict.fromkeys(item.group for item in listed)
    ]
    return {"groups": groups, "bytes": _bytes(listed)}


def _bytes(items: list[Leftover]) -> int:
    return sum(item.bytes for item in items)


def _size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
