"""The run that `mlflow run` creates and names in MLFLOW_RUN_ID is used; no new environment is built for this."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient

from fmnist_search.tracking.connection import connect
from tests.integration.conftest import run_command


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
    assert pointer.data.tags["mlflow.parentRunId"] == first
    assert first in pointer.data.tags["mlflow.note.content"]
    assert pointer.info.status == "FINISHED"
    trials = [r for r in client.search_runs(["0"]) if r.data.tags.get("kind") == "trial"]
    assert [trial.data.tags["mlflow.parentRunId"] for trial in trials] == [first, first]


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
