"""What was deleted or left open in MLflow is noticed by the next search, which says what to do."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fmnist_search.tracking.events import Batch, CreateRun, Event
from fmnist_search.tracking.outbox import Outbox
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


@pytest.mark.in_process  # its runs are those of the process of the test
def test_runs_that_a_killed_process_left_open_are_ended_and_that_of_a_running_process_is_not(
    study: FinishedStudy,
) -> None:
    client = MlflowClient(study.tracking_uri)
    parent = study_run_id(study)
    experiment = client.get_run(parent).info.experiment_id
    identities = {"dead": client.search_runs([experiment], "tags.kind = 'trial'")[0].data.tags["process"]}
    host, number, _ = identities["dead"].rsplit(" ", 2)
    identities |= {"dead": f"{host} {number} 5", "alive": identities["dead"], "elsewhere": "another-host 1 5"}
    runs = {
        name: client.create_run(
            experiment,
            start_time=round((time.time() - 7_200) * 1000),  # a trial may take hours
            run_name=f"champion 000 {name}",
            tags={"mlflow.parentRunId": parent, "process": identity},
        ).info.run_id
        for name, identity in identities.items()
    }
    assert study.run("search", "tiny.toml").exit_code == 0
    found = {name: client.get_run(run_id) for name, run_id in runs.items()}
    assert {name: run.info.status for name, run in found.items()} == {
        "dead": "KILLED",
        "alive": "RUNNING",
        "elsewhere": "KILLED",  # this search has the lease of the study, so no other machine writes to its runs
    }
    assert found["dead"].data.tags["state"] == "interrupted"


def test_a_study_that_an_older_copy_of_the_store_lacks_is_written_again(study: FinishedStudy) -> None:
    trials = {trial["number"]: trial for trial in study.run("leaderboard", "--json").json}
    lost = study_run_id(study)
    with contextlib.closing(sqlite3.connect(study.folder / "mlflow.db")) as database:  # MLflow would keep it open
        logged = database.execute("SELECT run_uuid, key, value FROM params").fetchall()
    for name in ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm"):
        (study.folder / name).unlink(missing_ok=True)
    outbox = Outbox(study.folder / "fmnist-search" / "outbox.db", study.tracking_uri)
    outbox.put(Event(lost, "batch", {"tags": {"late": "a tag that was not sent"}}))
    outbox.put(Event("0" * 32, "batch", {"tags": {"late": "of a finalist"}}))
    outbox.remember_run("0" * 32, "0" * 32)
    outbox.close()
    refused = study.run("sync")
    assert refused.exit_code == 2
    assert "--rebuild STUDY" in refused.stderr

    outbox = Outbox(study.folder / "fmnist-search" / "outbox.db", study.tracking_uri)
    key = outbox.run_key(trials[0]["run_id"])
    tags = {"trial": "0", "mlflow.parentRunId": lost}
    points = [("val/accuracy", value, step, step) for step, value in enumerate(trials[0]["curve"], start=1)]
    outbox.put(CreateRun(lost, "as it was", tags, 1).event(key))
    outbox.put(Batch(points).event(key))
    outbox.close()
    rebuilt = study.run("sync", "--rebuild", "tiny", "--json").json
    assert (rebuilt["kept"], rebuilt["from_outbox"], rebuilt["from_optuna"]) == (0, 1, len(trials) - 1)
    assert rebuilt["rejected"] == 1
    assert study_run_id(study) == rebuilt["run_id"]
    client = MlflowClient(study.tracking_uri)
    run = client.get_run(rebuilt["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["late"] == "a tag that was not sent"
    below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert {int(each.data.tags["trial"]) for each in below} == trials.keys()
    assert "as it was" in [each.info.run_name for each in below]
    for each in below:
        trial = trials[int(each.data.tags["trial"])]
        if each.info.run_name != "as it was":
            assert each.data.params == {key: value for run_id, key, value in logged if run_id == trial["run_id"]}
        history = client.get_metric_history(each.info.run_id, "val/accuracy")
        assert {point.step for point in history} == set(range(1, trial["epochs"] + 1))
    again = {trial["number"]: trial for trial in study.run("leaderboard", "--json").json}
    assert {trial["run_id"] for trial in again.values()} == {each.info.run_id for each in below}
    assert study.run("compare", "1", "2").exit_code == 0
    twice = study.run("sync", "--rebuild", "tiny", "--json").json
    assert (twice["run_id"], twice["kept"], twice["from_optuna"]) == (rebuilt["run_id"], len(trials), 0)
    assert "not in MLflow any more" not in study.run("search", "tiny.toml").stderr
