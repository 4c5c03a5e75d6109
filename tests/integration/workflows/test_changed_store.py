"""What was deleted or left open in MLflow is noticed by the next search, which says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.conftest import FinishedStudy, copy_study


@pytest.fixture
def study(tiny_study: FinishedStudy, tmp_path: Path) -> FinishedStudy:
    return copy_study(tiny_study, tmp_path)


def study_run_id(study: FinishedStudy) -> str:
    return str(study.run("status", "--json").json["run_id"])


def test_a_deleted_version_is_not_called_registered_and_promote_registers_another(study: FinishedStudy) -> None:
    MlflowClient(study.tracking_uri).delete_model_version("fmnist-search", "1")
    for _ in range(2):
        again = study.run("search", "tiny.toml")
        assert again.exit_code == 0
        assert "the model that it registered has been deleted in MLflow; `fmnist-search promote tiny`" in again.stderr
        assert "registered as" not in again.stdout
    assert study.run("status", "--json").json["champion"] is None
    predicted = study.run("predict", "--test-image", 0)
    assert predicted.exit_code == 2
    assert "`fmnist-search promote STUDY`" in predicted.stderr
    promoted = study.run("promote", "tiny")
    assert "registered as models:/fmnist-search/2 (champion)" in promoted.stdout
    assert study.run("predict", "--test-image", 0).exit_code == 0
    assert "registered as models:/fmnist-search/2" in study.run("search", "tiny.toml").stdout


def test_the_trials_of_a_deleted_study_run_move_below_the_run_that_replaces_it(study: FinishedStudy) -> None:
    client = MlflowClient(study.tracking_uri)
    deleted = study_run_id(study)
    experiment = client.get_run(deleted).info.experiment_id
    below = f"tags.`mlflow.parentRunId` = '{deleted}'"
    children = {run.info.run_id for run in client.search_runs([experiment], below)}
    assert len(children) >= 4
    client.delete_run(deleted)
    again = study.run("search", "tiny.toml")
    replacement = study_run_id(study)
    assert replacement != deleted
    assert f"its run {deleted} was deleted in MLflow; the run {replacement} replaces it" in again.stderr
    assert f"the {len(children)} runs below it were moved" in again.stderr
    moved = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{replacement}'")
    assert {run.info.run_id for run in moved} == children
    assert "was deleted" not in study.run("search", "tiny.toml").stderr


def test_runs_that_a_killed_process_left_open_are_ended_and_those_of_others_are_not(study: FinishedStudy) -> None:
    client = MlflowClient(study.tracking_uri)
    parent = study_run_id(study)
    experiment = client.get_run(parent).info.experiment_id
    identities = {"dead": client.search_runs([experiment], "tags.kind = 'trial'")[0].data.tags["process"]}
    host, number, _ = identities["dead"].rsplit(" ", 2)
    identities |= {"dead": f"{host} {number} 5", "alive": identities["dead"], "elsewhere": "another-host 1 5"}
    runs = {
        name: client.create_run(
            experiment, run_name=f"champion 000 {name}", tags={"mlflow.parentRunId": parent, "process": identity}
        ).info.run_id
        for name, identity in identities.items()
    }
    assert study.run("search", "tiny.toml").exit_code == 0
    found = {name: client.get_run(run_id) for name, run_id in runs.items()}
    assert {name: run.info.status for name, run in found.items()} == {
        "dead": "KILLED",
        "alive": "RUNNING",
        "elsewhere": "RUNNING",
    }
    assert found["dead"].data.tags["state"] == "interrupted"
