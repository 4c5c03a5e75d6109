"""Searches that run: started in the background, followed and stopped from another terminal."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmnist_search.cli.app import (
    JsonOption,
    StorageOption,
    TrackingUriOption,
    WorkdirOption,
    app,
    load_recipe,
    make_workspace,
)
from fmnist_search.cli.command import given_words, pop_flag
from fmnist_search.cli.streams import write_output
from fmnist_search.errors import UserError
from fmnist_search.text import redacted_command

if TYPE_CHECKING:
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.search.lease import Driver
    from fmnist_search.search.study_store import StudyStore
    from fmnist_search.workflows.study.running import RunningSession
    from fmnist_search.workflows.study.watching import StudySnapshot
    from fmnist_search.workspace import Workspace

POLL_SECONDS, STORAGE_POLL_SECONDS = 0.1, 0.5
"""Seconds between two checks whether a session has begun or ended, by its file and by Optuna's storage."""

RunningArgument = Annotated[
    str | None, typer.Argument(help="Name of a study; by default the one that runs.", show_default=False)
]


@app.command()
def watch(
    study: RunningArgument = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a running study from another terminal, until its search ends.

    In a terminal the running trials are shown with their curves; each trial that ends is a line. Ctrl-C ends only the
    display. With --json each line is an object: a trial that has ended, and at last the status of the study.
    """
    from fmnist_search.workflows.study.watching import follow, load_watched

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    study_store = load_watched(workspace, study)
    snapshots = follow(workspace, study_store)
    if as_json:
        _print_json_lines(workspace, study_store, snapshots)
    else:
        _show(workspace, study_store, snapshots)


def _show(workspace: Workspace, study_store: StudyStore, snapshots: Iterable[StudySnapshot]) -> None:
    from fmnist_search.cli.output import format_percent, stdout
    from fmnist_search.cli.progress import StudyProgressDisplay
    from fmnist_search.workflows.lookup import summarize_stored

    name, seen, was_running, is_confirming = study_store.config.name, None, False, False
    with StudyProgressDisplay(study_store.config, stdout) as display:
        for snapshot in snapshots:
            if seen is None:
                display.on_study_start(snapshot.trials, study_store.searched_seconds)
                display.print_counts()
                seen = {trial.number for trial in snapshot.trials}
            display.show_running(snapshot.running)
            for trial in snapshot.trials:
                if trial.number not in seen:
                    display.on_trial_end(trial)
                    seen.add(trial.number)
            was_running = was_running or snapshot.is_running
            if snapshot.is_running and snapshot.stop_reason.is_final and not snapshot.running and not is_confirming:
                is_confirming = True
                display.on_message(f"{name}: {snapshot.stop_reason.value}; its best recipes are confirmed now")
    summary = summarize_stored(workspace, study_store)
    text = f"{name}: {'its search has ended' if was_running else 'is not running'}; {summary.stop_reason.value}"
    if summary.best:
        text += (
            f"; best trial {summary.best.number} ({summary.best.recipe.label}) at {format_percent(summary.best.value)}"
        )
    if champion := summary.champion:
        text += f"; registered as models:/{champion.model}/{champion.version} ({champion.alias})"
    stdout.print(text)


def _print_json_lines(workspace: Workspace, study_store: StudyStore, snapshots: Iterable[StudySnapshot]) -> None:
    from fmnist_search.cli.serialization import status_to_dict, trial_to_dict
    from fmnist_search.workflows.lookup import summarize_stored

    seen: set[int] | None = None
    for snapshot in snapshots:
        for trial in snapshot.trials if seen is not None else ():
            if trial.number not in (seen or ()):
                write_output(json.dumps(trial_to_dict(trial)) + "\n")
        seen = {trial.number for trial in snapshot.trials}
    write_output(json.dumps(status_to_dict(summarize_stored(workspace, study_store))) + "\n")


@app.command()
def stop(
    study: RunningArgument = None,
    trial: Annotated[
        int | None, typer.Option(help="Number of a running or paused trial to end in place of the search.", min=0)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the search has ended.")] = True,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
) -> None:
    """Stop a running search or promotion, as Ctrl-C in its terminal does.

    The running epochs are finished and all results are kept; the command that started the search continues it. A
    second `stop` does not wait for the epochs. A search that cannot be signalled from here, such as one on another
    machine, is asked through Optuna's storage. With --trial, only that trial ends, as a pruned one.
    """
    from fmnist_search.cli.output import stdout
    from fmnist_search.workflows.study.running import find_running, running_sessions

    workspace = make_workspace(tracking_uri, workdir, storage=storage)
    name, sessions, driver = find_running(workspace, study)
    if trial is not None:
        from fmnist_search.workflows.study.requests import request_stop_of_trial

        request_stop_of_trial(workspace, name, trial)
        stdout.print(f"{name}: trial {trial} ends as pruned after its epoch; the search goes on", markup=False)
        return
    asked = _stop_each(workspace, sessions, driver)
    while wait and set(sessions) & set(running_sessions(workspace.sessions_folder)):
        time.sleep(POLL_SECONDS)
    while wait and asked and _is_driving(workspace, asked):
        time.sleep(STORAGE_POLL_SECONDS)
    if wait:
        stdout.print(f"{name}: has stopped; the same `fmnist-search search` command continues it", markup=False)


def _stop_each(workspace: Workspace, sessions: Sequence[RunningSession], driver: Driver | None) -> Driver | None:
    """Signal the sessions of this folder, and ask a driver that cannot be signalled; return it if it was asked.

    Raises:
        UserError: if a session can neither be signalled nor asked.
    """
    from fmnist_search.cli.output import stdout
    from fmnist_search.workflows.study.requests import request_stop
    from fmnist_search.workflows.study.running import interrupt

    for session in sessions:
        try:
            interrupt(session)
        except UserError:
            if driver is None or driver.process != session.process:
                raise
        else:
            text = f"{session.study}: process {session.process_id} stops after its running epochs; nothing is lost"
            stdout.print(text, markup=False)
            driver = None if driver and driver.process == session.process else driver
    if driver:
        request_stop(workspace, driver)
        text = f"{driver.study}: {driver} was asked to stop after its running epochs; nothing is lost"
        stdout.print(text, markup=False)
    return driver


def _is_driving(workspace: Workspace, driver: Driver) -> bool:
    """Return whether a driver still holds its lease."""
    from fmnist_search.search.lease import current_driver

    current = current_driver(workspace.storage_url, driver.study)
    return current is not None and current.session == driver.session


@app.command()
def enqueue(
    recipe: Annotated[str | None, typer.Argument(help="Recipe file, or name of a preset.", show_default=False)] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; by default the latest.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Value of a hyperparameter, in place of that of the recipe; repeatable. Without a recipe, the sampler "
            "chooses the others.",
        ),
    ] = None,
    tracking_uri: TrackingUriOption = None,
    workdir: WorkdirOption = None,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a recipe be the next new trial of a study, of a search that runs or of the next one.

    A recipe outside the search space is refused unless the study file has start.outside = "try".

    Examples:

      fmnist-search enqueue lenet --study quick

      fmnist-search enqueue --study quick --set optimizer.learning_rate=0.01
    """
    from fmnist_search.cli.output import print_json, stdout
    from fmnist_search.config.toml_files import parse_assignments
    from fmnist_search.results.study import StopReason
    from fmnist_search.workflows.study.requests import check_searchable
    from fmnist_search.workflows.study.requests import enqueue as enqueue_recipe

    given = parse_assignments(settings or [])
    if recipe is None and not given:
        raise UserError("enqueue: gives neither a recipe nor a value; name a recipe file, or add --set NAME=VALUE")
    check_searchable(given)
    values = load_recipe(recipe).replace(given).to_flat_dict() if recipe else given
    source = recipe or ", ".join(settings or [])
    queued = enqueue_recipe(
        source, values, study=study, workspace=make_workspace(tracking_uri, workdir, storage=storage)
    )
    if as_json:
        driver = str(queued.driver) if queued.driver else None
        print_json({"study": queued.study, "recipe": source, "outside": list(queued.outside), "searched_by": driver})
        return
    outside = f", outside the space ({'; '.join(queued.outside)})" if queued.outside else ""
    when = f"taken by {queued.driver}" if queued.driver else "taken by the next search"
    if not queued.driver and queued.stop_reason is StopReason.TRIALS:
        when += ", which needs more --trials"
    stdout.print(f"{queued.study}: {source} is the next trial{outside}, {when}", markup=False)


def search_in_background(
    context: typer.Context, config: StudyConfig, workspace: Workspace, *, as_json: bool = False
) -> None:
    """Start the search that this command line describes in a process of its own, and say how to follow and stop it.

    Returns when the search has begun, so whatever is refused is refused by this command.

    Raises:
        typer.Exit: if the process ended before that, with its exit code, after what it has written was printed.
    """
    from fmnist_search.cli import output
    from fmnist_search.files import make_private_folder
    from fmnist_search.workflows.study.running import has_session

    config.check_names()
    workspace.check_writable()
    log = workspace.log_path(config.name)
    make_private_folder(log.parent)
    words = ["search", *given_words(context, without={"detach", "as_json"})]
    if pop_flag(sys.argv[1:], "--debug")[0]:
        words.insert(0, "--debug")
    with log.open("ab") as file:
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fmnist_search", *words],  # imports nothing from the current folder
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # closing the terminal does not end it
        )
    try:
        while not has_session(workspace.sessions_folder, process.pid):
            if process.poll() is not None:
                _print_log(log, start)
                raise typer.Exit(process.returncode if process.returncode >= 0 else output.ExitCode.UNEXPECTED_ERROR)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        raise
    if as_json:
        output.print_json({"study": config.name, "process": process.pid, "log": str(log)})
        return
    name = redacted_command([config.name, *given_words(context, only={"tracking_uri", "workdir", "storage"})])
    shown = os.path.relpath(log)
    output.stdout.print(
        f"{config.name}: process {process.pid} searches in the background and writes to {shown}\n"
        f"follow it with `fmnist-search watch {name}` or `tail -f {shlex.quote(shown)}`, "
        f"stop it with `fmnist-search stop {name}`"
    )


def _print_log(log: Path, start: int) -> None:
    """Print on stderr what a refused search has written to its log, and remove a log that holds nothing else."""
    from fmnist_search.cli.output import stderr

    with log.open("rb") as file:
        file.seek(start)
        stderr.print(file.read().decode(errors="replace"), end="")
    if start == 0:
        log.unlink()
