"""One search at a time runs a study: a second one, or `--fresh`, is refused in a line and changes nothing."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.results.training import Decision, EpochReport
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workspace import Workspace, sqlite_uri
from tests.integration.conftest import CommandResult, fork_command, run_command
from tests.integration.reliability.stores import assert_whole, databases, records, reported_epochs, wait_until
from tests.support.frozen_processes import freeze

SEARCH = ["search", "tiny.toml", "--threads", "1", "--set", "data.train_images=3000", "--set", "budget.epochs=4"]
SEARCH += ["--set", "finalists.recipes=0", "--trials", "3"]


@pytest.mark.slow
def test_a_study_that_is_searched_refuses_a_second_search_and_a_fresh_start(tiny: Path) -> None:
    folder, search = tiny.parent, ["search", "tiny.toml"]
    refused: list[CommandResult] = []

    def run_others(report: EpochReport) -> Decision:
        if reported_epochs(folder, 1) and not refused:  # the second trial has begun, so that another has ended
            commands = (["promote", "tiny", "--recipes", "1"], search, [*search, "--fresh"])
            refused.extend(run_command(folder, *arguments) for arguments in commands)
        return Decision.CONTINUE

    config = StudyConfig.load(tiny, {"finalists.recipes": 0, "budget.trials": 2})
    workspace = Workspace(sqlite_uri(folder / "mlflow.db"), folder / "fmnist-search")
    run_study(config, workspace=workspace, tracking=TrackingOptions(plot_interval=None), stopper=run_others)
    assert [each.exit_code for each in refused] == [2, 2, 2], refused
    for each in refused:
        (error,) = each.errors
        assert re.search(rf"^error: study 'tiny': .*process {os.getpid()}\b", error), error
    assert_whole(folder, 2)


@pytest.mark.slow
def test_two_searches_that_create_a_folder_at_once_share_it_or_one_is_refused(tiny: Path) -> None:
    folder = tiny.parent
    both = [fork_command(folder, *SEARCH) for _ in range(2)]
    ends = [process.communicate(timeout=180)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], ends
    (refused,) = (stderr for process, stderr in zip(both, ends, strict=True) if process.returncode)
    assert next(line for line in refused.splitlines() if line.startswith("error:")).startswith("error: study 'tiny': ")
    assert "Traceback" not in "".join(ends)
    assert_whole(folder, 3)


@pytest.mark.slow
def test_a_frozen_search_that_was_taken_over_ends_and_changes_nothing(tiny: Path) -> None:
    folder = tiny.parent
    short = ["--set", "execution.heartbeat_seconds=0.5", "--set", "execution.lease_seconds=2"]
    frozen = fork_command(folder, *SEARCH, *short)
    wait_until(lambda: reported_epochs(folder, 0), frozen)
    freeze(frozen, databases(folder))
    other = fork_command(folder, *SEARCH, *short)
    wait_until(lambda: reported_epochs(folder, 0) > 2, other)
    frozen.send_signal(signal.SIGCONT)
    _, stderr = frozen.communicate(timeout=180)
    assert frozen.returncode == 2, stderr
    (error,) = (line for line in stderr.splitlines() if line.startswith("error:"))
    assert "taken over" in error
    assert str(other.pid) in error
    _, stderr = other.communicate(timeout=120)
    assert other.returncode == 0, stderr
    assert_whole(folder, 3)
    assert all(len(trial.curve) == 4 for trial in records(folder))
