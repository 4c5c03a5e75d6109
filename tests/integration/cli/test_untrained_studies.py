"""Commands about studies without a completed trial, whose trials have no runs in MLflow."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from fmnist_search.workspace import Workspace
from tests.integration.conftest import TINY_STUDY, CommandResult, RunCommand, run_command
from tests.support.stored_studies import store_trials
from tests.support.studies import make_study


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a study without trials, and with one whose trials were all pruned."""
    folder = tmp_path_factory.mktemp("untrained")
    (folder / "tiny.toml").write_text(TINY_STUDY)
    store_trials(folder, make_study(name="waiting"), {}, threads=None)
    store_trials(folder, make_study(name="hopeless", finalists={"recipes": 0}), {(0.1,): 1.0, (0.2, 0.3): 2.0})
    return folder


def assert_single_error(outcome: CommandResult, *expected: str, code: int = 2) -> None:
    assert outcome.exit_code == code, outcome
    (line,) = outcome.errors
    for text in expected:
        assert text in line


def test_status_says_that_trials_were_pruned_and_names_no_best_one(untrained: Path) -> None:
    outcome = run_command(untrained, "status", "hopeless")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.splitlines()[1:] == ["trials: 2 pruned; its budget is not spent"]


def test_watch_says_that_the_study_is_not_running_and_names_no_best_trial(untrained: Path) -> None:
    lines = run_command(untrained, "watch", "hopeless").stdout.splitlines()
    assert lines == ["hopeless: 2 of 20 trials, best -, 2 pruned", "hopeless: is not running; its budget is not spent"]


def test_leaderboard_of_all_studies_says_that_no_trial_has_completed(untrained: Path) -> None:
    assert run_command(untrained, "leaderboard", "--all").stdout == "no trial has completed yet\n"


def test_a_trial_without_a_run_is_shown_without_a_page(untrained: Path) -> None:
    outcome = run_command(untrained, "show", 1, "--study", "hopeless")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.startswith("trial 1: ")
    assert "page" not in outcome.stdout
    assert "--from-run" not in outcome.stdout


def test_studies_without_a_completed_trial_are_compared_and_drawn(untrained: Path) -> None:
    outcome = run_command(untrained, "compare", "waiting", "hopeless", "--output", "both.png")
    assert outcome.exit_code == 0, outcome.stderr
    assert ["execution.precision", "auto", "float32"] in map(str.split, outcome.stdout.splitlines())
    assert (untrained / "both.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compare", "0", "1", "--study", "hopeless"], ["trial 0", "'hopeless' has no run in MLflow"]),
        (["promote", "hopeless"], ["'hopeless': has finalists.recipes = 0", "--recipes"]),
        (
            ["search", "tiny.toml", "--start", "study:hopeless", "--no-tracking"],
            ["'hopeless' has no completed trial", "search it"],
        ),
        (["search", "tiny.toml", "--start", "champion", "--no-tracking"], ["champion is in MLflow", "--no-tracking"]),
    ],
)
def test_what_needs_a_completed_trial_or_mlflow_is_refused(
    untrained: Path, arguments: list[str], expected: list[str]
) -> None:
    assert_single_error(run_command(untrained, *arguments), *expected)


def test_a_storage_that_does_not_say_its_version_is_listed_by_optuna(untrained: Path) -> None:
    listed = run_command(untrained, "studies", "list", "--json").json
    assert {"waiting", "hopeless"} <= {study["study"] for study in listed}
    with closing(sqlite3.connect(untrained / "fmnist-search" / "optuna.db")) as database:
        database.execute("DELETE FROM version_info")
        database.commit()
    assert run_command(untrained, "studies", "list", "--json").json == listed


def test_a_study_that_is_only_just_created_is_not_shown_yet(command: RunCommand, tmp_path: Path) -> None:
    workspace = Workspace.resolve(f"sqlite:///{tmp_path / 'mlflow.db'}")
    workspace.folder.mkdir()
    optuna.create_study(study_name="new", storage=workspace.storage_url)
    for arguments in (["status", "--all"], ["leaderboard", "--all"]):
        assert_single_error(command(*arguments), "no study yet")
