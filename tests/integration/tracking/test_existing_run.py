"""The run that `mlflow run` creates and names in MLFLOW_RUN_ID is used; no new environment is built for this."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow import MlflowClient

from fmnist_search.tracking.connection import connect
from tests.integration.conftest import run_command, start_python

NOTE = "mlflow.note.content"


def create_mlflow_run(client: MlflowClient, **parameters: str) -> str:
    """Create a run as `mlflow run` does before it starts a command, with the parameters of the entry point."""
    run_id = str(client.create_run("0", run_name="enthused-swan-909").info.run_id)
    for name, value in parameters.items():
        client.log_param(run_id, name, value)
    return run_id


def test_a_study_uses_the_run_and_later_runs_refer_to_it(tiny: Path, tmp_path: Path) -> None:
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    first = create_mlflow_run(client, study="tiny.toml", epochs="given otherwise")
    arguments = ["search", "tiny.toml", "--set", "finalists.recipes=0"]
    assert run_command(tmp_path, *arguments, "--trials", 1, MLFLOW_RUN_ID=first).exit_code == 0
    used = client.get_run(first)
    assert (used.info.run_name, used.info.status) == ("tiny", "FINISHED")
    assert used.data.params["epochs"] == "given otherwise"
    assert client.get_experiment_by_name("fmnist-search") is None

    second = create_mlflow_run(client)
    assert run_command(tmp_path, *arguments, "--trials", 2, MLFLOW_RUN_ID=second).exit_code == 0
    pointer = client.get_run(second)
    assert pointer.info.run_name == "tiny, continued"
    assert (pointer.data.tags["kind"], pointer.data.tags["state"]) == ("continuation", "finished")
    assert pointer.data.tags["mlflow.parentRunId"] == first
    assert first in pointer.data.tags["mlflow.note.content"]
    assert pointer.info.status == "FINISHED"
    trials = [r for r in client.search_runs(["0"]) if r.data.tags.get("kind") == "trial"]
    assert [trial.data.tags["mlflow.parentRunId"] for trial in trials] == [first, first]

    elsewhere = str(client.create_run(client.create_experiment("elsewhere")).info.run_id)
    outcome = run_command(tmp_path, *arguments, "--trials", 2, MLFLOW_RUN_ID=elsewhere)
    assert f"its trials are below the run {first} in the experiment 'Default'" in outcome.stderr
    assert f"](#/experiments/0/runs/{first}) in the experiment 'Default'" in client.get_run(elsewhere).data.tags[NOTE]


def test_a_run_whose_command_fails_says_why(tiny: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = connect(uri)
    for arguments, reason in (
        (["nothing.toml"], "nothing.toml"),
        (["tiny.toml", "--set", "budget.trails=1"], "budget.trails"),
        (["tiny.toml", "--trials", "many"], "--trials"),
    ):
        given = create_mlflow_run(client)
        assert run_command(tmp_path, "search", *arguments, MLFLOW_RUN_ID=given, MLFLOW_TRACKING_URI=uri).exit_code == 2
        tags = client.get_run(given).data.tags
        assert reason in tags["reason"]
        assert (tags["state"], tags[NOTE].startswith("**Failed**")) == ("failed", True)


CALLED_IN_A_PROJECT = """
import subprocess, sys
command = [sys.executable, "-m", "fmnist_search", "search", "tiny.toml", "--dry-run", "--json"]
command += ["--set", "budget.trials=3, optimizer.learning_rate={ low = 0.01, high = 0.02 },name=both"]
sys.exit(subprocess.run(command, cwd=sys.argv[1]).returncode)
"""


def test_a_study_file_of_the_callers_folder_and_several_values_of_set_reach_a_project(
    tiny: Path, tmp_path: Path
) -> None:
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    given, project = create_mlflow_run(client), tmp_path / "project"
    project.mkdir()
    with start_python(tmp_path, "-c", CALLED_IN_A_PROJECT, str(project), MLFLOW_RUN_ID=given) as caller:
        stdout, stderr = caller.communicate(timeout=120)
    assert caller.returncode == 0, stderr
    study = json.loads(stdout)["study"]
    assert (study["budget"]["trials"], study["name"]) == (3, "both")
    assert study["space"]["common"]["optimizer"]["learning_rate"]["high"] == 0.02


def test_a_training_uses_the_run(tmp_path: Path) -> None:
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    given = create_mlflow_run(client, recipe="recipe.toml", epochs="1")
    (tmp_path / "recipe.toml").write_text("[data]\ntrain_images = 500\nvalidation = 500\n[model]\nfamily = 'mlp'\n")
    outcome = run_command(tmp_path, "train", "recipe.toml", "--epochs", 1, "--json", MLFLOW_RUN_ID=given)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.json["run_id"] == given
    used = client.get_run(given)
    assert (used.info.run_name, used.info.status) == ("train mlp 256-256", "FINISHED")
    assert used.data.params["model.width"] == "256"
    assert "weights.pt" in {item.path for item in client.list_artifacts(given)}
