"""A study whose budget limits what a network costs: `search`, `--dry-run`, `status`, and the note."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.cli.test_errors import assert_error
from tests.integration.cli.test_two_objectives import STUDY
from tests.integration.conftest import FinishedStudy, run_command

LIMITED = STUDY.replace('metrics = ["val_accuracy", "mult_adds"]', "").replace('"front"', '"limited"')
"""Networks of 3,190, 12,730 and 50,890 multiply-adds, each at two learning rates."""
LIMIT = ["--set", "budget.max_mult_adds=20000"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "limited.toml").write_text(LIMITED)
    return tmp_path


def test_a_dry_run_shows_which_networks_would_be_refused(folder: Path) -> None:
    text = run_command(folder, "search", "limited.toml", "--dry-run", *LIMIT).stdout
    found = run_command(folder, "search", "limited.toml", "--dry-run", "--json", *LIMIT).json
    refused = [recipe["mult_adds"] > 20_000 for recipe in found["recipes"]]
    assert [recipe["refused"] for recipe in found["recipes"]] == refused
    assert f"{sum(refused)} of these 5 networks would be refused: more than budget.max_mult_adds = 20,000" in text
    assert [line.endswith("refused") for line in text.splitlines() if line.startswith("mlp ")] == refused


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--set", "budget.max_mult_adds=3000"], "budget.max_mult_adds: 3,000 refuses all of 6 networks of the space"),
        (["--start", "preset:lenet", "--set", "start.outside=try", *LIMIT], "start.recipes: preset:lenet: has 5,435,9"),
        (["--set", "budget.max_mult_adds=0"], "budget.max_mult_adds"),
        (["--set", "budget.max_seconds_per_epoch=0"], "budget.max_seconds_per_epoch"),
    ],
)
def test_a_budget_that_allows_nothing_is_one_line(folder: Path, options: list[str], line: str) -> None:
    assert_error(run_command(folder, "search", "limited.toml", "--no-tracking", *options), line)


@pytest.mark.slow
def test_a_refused_network_is_not_trained_and_is_counted(folder: Path) -> None:
    first = run_command(folder, "search", "limited.toml", *LIMIT)
    assert first.exit_code == 0, first.stderr
    finished = FinishedStudy(folder, first)
    assert (
        sum("multiply-adds are more than budget.max_mult_adds = 20,000" in line for line in first.stderr.splitlines())
        == 1
    )
    assert "trials: 4 completed, 2 refused; its space is exhausted" in finished.run("status").stdout
    found = finished.run("status", "--json").json
    assert (found["completed"], found["refused"]) == (4, 2)
    trials = finished.run("search", "limited.toml", "--json", *LIMIT).json["trials"]
    refused = [trial for trial in trials if trial["state"] == "refused"]
    assert [(trial["mult_adds"], trial["epochs"], trial["run_id"]) for trial in refused] == [(50_890, 0, "")] * 2
    assert "refused (50,890 multiply-adds are more than" in finished.run("show", refused[0]["number"]).stdout
    client = MlflowClient(finished.tracking_uri)
    run = client.get_run(found["run_id"])
    assert run.data.metrics["progress/refused"] == 2
    assert "Trials: 4 completed, 2 refused" in run.data.tags["mlflow.note.content"]
    assert "2 refused" not in finished.run("doctor", "--study", "limited").stdout


@pytest.mark.slow
def test_a_trial_with_a_slow_first_epoch_is_pruned_even_if_that_was_its_last(folder: Path) -> None:
    options = ["--set", "budget.max_seconds_per_epoch=1e-6", "--set", "budget.trials=2", "--no-tracking"]
    outcome = run_command(folder, "search", "limited.toml", *options, "--json")
    assert outcome.exit_code == 3
    assert [trial["state"] for trial in outcome.json["trials"]] == ["pruned"] * 2
    assert "s, more than budget.max_seconds_per_epoch = 1e-06" in outcome.json["trials"][0]["reason"]
