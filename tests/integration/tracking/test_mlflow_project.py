"""`mlflow run` from a new clone, in an environment that MLflow builds from conda.yaml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fmnist_search.results.training import TrialState
from fmnist_search.search.study_store import StudyStore
from tests.integration.conftest import clean_environment
from tests.support.pages import reduce_study_files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def run_mlflow_project(clone: Path, *parameters: str) -> None:
    settings = [part for parameter in parameters for part in ("-P", parameter)]
    # uv is in the folder of this Python, and `mlflow run` searches the PATH for it.
    path = f"{Path(sys.executable).parent}:{clean_environment()['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "mlflow", "run", ".", *settings, "--env-manager", "uv"],
        cwd=clone,
        env=clean_environment(PATH=path),
        check=True,
        timeout=1200,
    )


def test_mlflow_run_creates_the_study_with_its_trials_below_it(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    reduce_study_files(clone)
    run_mlflow_project(clone, "study=studies/quick.toml", "trials=3")
    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    (study,) = [r for r in all_runs(client) if r.data.tags.get("kind") == "study"]
    assert study.info.status == "FINISHED"
    assert study.data.tags["state"] == "finished"
    assert study.data.tags["mlflow.project.entryPoint"] == "main"
    trials = [r for r in all_runs(client) if r.data.tags.get("kind") == "trial"]
    assert len(trials) == 3
    assert {trial.data.tags["mlflow.parentRunId"] for trial in trials} == {study.info.run_id}
    values = [t.data.metrics["val/accuracy"] for t in trials if t.data.tags["state"] == "completed"]
    records = StudyStore.load(f"sqlite:///{clone / 'fmnist-search' / 'optuna.db'}", "quick").trial_records()
    assert sorted(values) == sorted(record.value or 0 for record in records if record.state is TrialState.COMPLETED)
    assert client.get_model_version_by_alias("fmnist-search", "champion")

    # The study is finished, so the run of a second call refers to it.
    run_mlflow_project(clone, "study=studies/quick.toml", "trials=3")
    (pointer,) = [r for r in all_runs(client) if "Continues the study" in r.data.tags.get("mlflow.note.content", "")]
    assert pointer.data.tags["mlflow.parentRunId"] == study.info.run_id
    assert pointer.info.status == "FINISHED"
    assert client.get_run(study.info.run_id).info.status == "FINISHED"
    assert len([r for r in all_runs(client) if r.data.tags.get("kind") == "trial"]) == len(trials)


def all_runs(client: MlflowClient) -> list:  # type: ignore[type-arg]
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))
