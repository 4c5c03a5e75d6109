"""`mlflow run` from a fresh clone, in an environment that it builds itself from conda.yaml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.conftest import clean_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def run_mlflow_project(clone: Path, *parameters: str) -> None:
    settings = [part for parameter in parameters for part in ("-P", parameter)]
    # uv stands beside this Python, and `mlflow run` looks for it on the PATH.
    path = f"{Path(sys.executable).parent}:{clean_environment()['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "mlflow", "run", ".", *settings, "--env-manager", "uv"],
        cwd=clone,
        env=clean_environment(PATH=path),
        check=True,
        timeout=1200,
    )


def test_mlflow_run_makes_the_study_and_its_trials_nest_below_it(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    run_mlflow_project(clone, "study=studies/quick.toml", "trials=6")
    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    (made,) = [r for r in all_runs(client) if r.data.tags.get("kind") == "study"]
    assert made.info.status == "FINISHED"
    assert made.data.tags["state"] == "finished"
    assert made.data.tags["mlflow.project.entryPoint"] == "main"
    trials = [r for r in all_runs(client) if r.data.tags.get("kind") == "trial"]
    assert trials
    assert {trial.data.tags["mlflow.parentRunId"] for trial in trials} == {made.info.run_id}
    values = [t.data.metrics["val/accuracy"] for t in trials if t.data.tags["state"] == "completed"]
    assert max(values) > 0.85
    assert client.get_model_version_by_alias("fmnist-search", "champion")

    # Once more: the study is done, and the new run says where it stands.
    run_mlflow_project(clone, "study=studies/quick.toml", "trials=6")
    (pointer,) = [r for r in all_runs(client) if "Continues the study" in r.data.tags.get("mlflow.note.content", "")]
    assert pointer.data.tags["mlflow.parentRunId"] == made.info.run_id
    assert pointer.info.status == "FINISHED"
    assert client.get_run(made.info.run_id).info.status == "FINISHED"
    assert len([r for r in all_runs(client) if r.data.tags.get("kind") == "trial"]) == len(trials)


def all_runs(client: MlflowClient) -> list:  # type: ignore[type-arg]
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))
