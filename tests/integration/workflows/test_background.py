"""Searches that are started in the background, followed and stopped by other commands."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fmnist_search import run_study
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.results.study import StopReason, StudySummary
from fmnist_search.results.training import EpochReport, TrialState
from fmnist_search.search.study_store import StudyStore
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.running import running_sessions
from fmnist_search.workflows.study.watching import StudySnapshot, follow, load_watched
from fmnist_search.workspace import Workspace
from tests.integration.conftest import CommandResult, run_command
from tests.integration.reliability.stores import OPTUNA, query


def workspace_of(folder: Path) -> Workspace:
    return Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}")


def search(tiny: Path, callback: StudyCallback, **overrides: object) -> StudySummary:
    changes = {"budget.trials": 3, "budget.epochs": 2, "finalists.recipes": 0, "sampler": "random", **overrides}
    tracking = TrackingOptions(enabled=False)
    config = StudyConfig.load(tiny, changes)
    return run_study(config, workspace=workspace_of(tiny.parent), tracking=tracking, callback=callback)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class AfterEpochs(StudyCallback):
    """Does something after each epoch of the trial of a number."""

    def __init__(self, trial: str, action: Callable[[], object]) -> None:
        self._trial = trial
        self._action = action

    def on_epoch_end(self, name: str, report: EpochReport) -> None:
        if name.startswith(self._trial):
            self._action()


def test_a_search_in_the_foreground_is_seen_and_stopped_by_other_commands(tiny: Path) -> None:
    snapshots: list[StudySnapshot] = []
    stopped: list[CommandResult] = []
    statuses: list[CommandResult] = []

    def look_and_stop() -> None:
        workspace = workspace_of(tiny.parent)
        snapshots.append(next(follow(workspace, load_watched(workspace))))
        forms = ([], ["--json"], ["--all", "--json"])
        statuses.extend(run_command(tiny.parent, "status", *options) for options in forms)
        if not stopped:
            stopped.append(run_command(tiny.parent, "stop", "tiny", "--no-wait"))

    summary = search(tiny, AfterEpochs("001", look_and_stop), **{"budget.epochs": 3})
    assert stopped[0].exit_code == 0, stopped[0].stderr
    assert re.fullmatch(r"tiny: process \d+ stops after its running epochs; nothing is lost\n", stopped[0].stdout)
    assert summary.stop_reason is StopReason.INTERRUPTED
    assert [trial.state for trial in summary.trials] == [TrialState.COMPLETED, TrialState.INTERRUPTED]
    (error,) = run_command(tiny.parent, "stop").errors
    assert "no study is running here" in error

    snapshot = snapshots[-1]
    assert snapshot.is_running
    assert snapshot.stop_reason is StopReason.OPEN
    assert [trial.number for trial in snapshot.trials] == [0]
    (running,) = snapshot.running
    assert (running.number, running.recipe) == (1, summary.trials[1].recipe)
    assert running.curve
    assert running.curve == summary.trials[1].curve[: len(running.curve)]

    text, as_json, every_as_json = statuses[-3:]
    assert "trials: 1 running, 1 completed; its budget is not spent\n" in text.stdout
    assert (as_json.json["running"], as_json.json["completed"]) == (1, 1)
    assert every_as_json.json == [as_json.json]
    assert run_command(tiny.parent, "status", "--json").json["running"] == 0


@pytest.mark.in_process  # begins within half a second
def test_watch_prints_a_line_for_each_trial_until_the_search_ends(tiny: Path) -> None:
    watching = threading.Event()
    callback = AfterEpochs("000", lambda: watching.wait(120))
    thread = threading.Thread(target=search, args=(tiny, callback))
    thread.start()
    try:
        wait_until(lambda: bool(running_sessions(workspace_of(tiny.parent).sessions_folder)))
        threading.Timer(0.5, watching.set).start()
        watched = run_command(tiny.parent, "watch")
    finally:
        watching.set()
        thread.join()
    assert watched.exit_code == 0, watched.stderr
    first, *trials, last = watched.stdout.splitlines()
    assert first == "tiny: 0 of 3 trials, best -"
    ended = [line for line in trials if re.match(r"00\d ", line)]
    assert [line.split()[0] for line in ended] == ["000", "001", "002"]
    assert last.startswith("tiny: its search has ended; its budget of trials is spent; best trial ")
    again = run_command(tiny.parent, "watch").stdout.splitlines()
    assert again[0].startswith("tiny: 3 of 3 trials, best ")
    assert again[1].startswith("tiny: is not running; its budget of trials is spent; best trial ")
    status = run_command(tiny.parent, "status", "--json").json
    assert json.loads(run_command(tiny.parent, "watch", "--json").stdout) == status


def test_a_study_that_begins_anew_is_no_longer_watched(tiny: Path) -> None:
    workspace, config = workspace_of(tiny.parent), StudyConfig.load(tiny)
    StudyStore.open(workspace.storage_url, config)
    watched = load_watched(workspace)
    StudyStore.open(workspace.storage_url, config, fresh=True)
    with pytest.raises(UserError, match="study 'tiny': was archived or deleted"):
        list(follow(workspace, watched))


def test_a_dry_run_in_the_background_is_refused(tiny: Path) -> None:
    refused = run_command(tiny.parent, "search", tiny.name, "--dry-run", "--detach")
    assert refused.exit_code == 2
    assert refused.errors == [
        "error: --detach: a dry run starts nothing in the background; leave out --detach or --dry-run"
    ]


@pytest.mark.slow
def test_a_search_in_the_background_is_refused_at_once(tiny: Path) -> None:
    folder = tiny.parent
    (folder / "empty").mkdir()
    refused = run_command(folder, "search", tiny.name, "--detach", "--data-dir", "empty")
    assert refused.exit_code == 2
    (error,) = refused.errors
    assert error.startswith("error: empty: no train-images-idx3-ubyte")
    assert list((folder / "fmnist-search" / "logs").iterdir()) == []


@pytest.mark.slow
def test_a_search_in_the_background_runs_until_it_is_stopped(tiny: Path) -> None:
    folder = tiny.parent
    (folder / "psutil.py").write_text("raise SystemExit('a file of the current folder was imported')\n")
    words = ["search", tiny.name, "--trials", "500", "--set", "finalists.recipes=0"]
    started = run_command(folder, *words, "--detach", "--json")
    assert started.exit_code == 0, started.stderr
    (session,) = running_sessions(folder / "fmnist-search" / "sessions")
    log = folder / "fmnist-search" / "logs" / "tiny.log"
    assert started.json == {"study": "tiny", "process": session.process_id, "log": str(log)}
    try:
        wait_until(lambda: "completed" in log.read_text())
    finally:
        stopped = run_command(folder, "stop")
    assert stopped.exit_code == 0, stopped.stderr
    assert "tiny: has stopped" in stopped.stdout
    assert running_sessions(folder / "fmnist-search" / "sessions") == []
    wait_until(lambda: "continues the study" in log.read_text())
    assert "interrupted; nothing is lost: `fmnist-search search tiny.toml " in log.read_text()
    status = run_command(folder, "status", "--json").json
    assert status["ended_by"] == "open"
    states = {state for (state,) in query(folder / OPTUNA, "SELECT state FROM trials")}
    assert "COMPLETE" in states
    assert "RUNNING" not in states
