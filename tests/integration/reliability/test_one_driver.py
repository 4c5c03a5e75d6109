"""One search at a time runs a study: a second one, or `--fresh`, is refused in a line and changes nothing."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.integration.conftest import run_command, start_command
from tests.integration.reliability.stores import assert_whole, freeze, records, reported_epochs, wait_until

SEARCH = ["search", "tiny.toml", "--threads", "1", "--set", "data.train_images=3000", "--set", "budget.epochs=4"]
SEARCH += ["--set", "finalists.recipes=0", "--trials", "3"]


@pytest.mark.slow
def test_a_study_that_is_searched_refuses_a_second_search_and_a_fresh_start(tiny: Path) -> None:
    folder = tiny.parent
    search = [*SEARCH[:-1], "8"]
    first = start_command(folder, *search)
    wait_until(lambda: reported_epochs(folder, 2), first)  # the third trial has begun, so that another has ended
    for arguments in (["promote", "tiny", "--recipes", "1"], search, [*search, "--fresh"]):
        refused = run_command(folder, *arguments)
        assert refused.exit_code == 2, refused.stderr
        (error,) = refused.errors
        assert re.search(rf"^error: study 'tiny': .*process {first.pid}\b", error), error
    _, stderr = first.communicate(timeout=120)
    assert first.returncode == 0, stderr
    assert_whole(folder, 8)


@pytest.mark.slow
def test_two_searches_that_create_a_folder_at_once_share_it_or_one_is_refused(tiny: Path) -> None:
    folder = tiny.parent
    both = [start_command(folder, *SEARCH) for _ in range(2)]
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
    frozen = start_command(folder, *SEARCH, *short)
    wait_until(lambda: reported_epochs(folder, 0), frozen)
    freeze(frozen, folder)
    other = start_command(folder, *SEARCH, *short)
    wait_until(lambda: reported_epochs(folder, 0) > 2, other)
    frozen.send_signal(signal.SIGCONT)
    _, stderr = frozen.communicate(timeout=60)
    assert frozen.returncode == 2, stderr
    (error,) = (line for line in stderr.splitlines() if line.startswith("error:"))
    assert "taken over" in error
    assert str(other.pid) in error
    _, stderr = other.communicate(timeout=120)
    assert other.returncode == 0, stderr
    assert_whole(folder, 3)
    assert all(len(trial.curve) == 4 for trial in records(folder))
