"""`doctor --study`: what a killed process leaves different in the two stores is found and set right."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from fmnist_search.search.lease import Lease
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.events import Batch
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.training.trial_checkpoints import TrialCheckpoints
from fmnist_search.workflows.lookup import load_study
from fmnist_search.workflows.repairing import make_stores_agree
from fmnist_search.workspace import Workspace
from tests.golden.project import unpack
from tests.integration.conftest import FinishedStudy, run_command

ENDED_PROCESS = f"{socket.gethostname()} 1 2"
"""The identity of a process that has ended."""


def doctor(study: FinishedStudy, *options: str, **changes: str) -> dict[str, Any]:
    """Return what `doctor --study tiny` prints; its exit code says whether something remains."""
    outcome = study.run("doctor", "--study", "tiny", "--json", *options, **changes)
    assert outcome.exit_code == bool(outcome.json["remaining"]), outcome.stderr
    result: dict[str, Any] = outcome.json
    return result


def remaining_kinds(study: FinishedStudy, *options: str) -> list[tuple[str, int | None]]:
    return [(finding["kind"], finding["trial"]) for finding in doctor(study, *options)["remaining"]]


@contextmanager
def mlflow_database(study: FinishedStudy) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(study.folder / "mlflow.db")) as database, database:
        yield database


def runs_of_kind(study: FinishedStudy, kind: str) -> list[Run]:
    client = MlflowClient(study.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(client.search_runs(experiments, f"tags.kind = '{kind}'"), key=lambda run: str(run.info.run_name))


def lose_last_epoch(study: FinishedStudy, run_id: str) -> None:
    """Leave a run as an earlier version left it if it was killed after it had told Optuna of the trial's end."""
    with mlflow_database(study) as database:
        for table in ("metrics", "latest_metrics"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ? AND step = 2", (run_id,))
        columns = "key, value, timestamp, step, is_nan, run_uuid"
        database.execute(
            f"INSERT OR IGNORE INTO latest_metrics ({columns}) SELECT {columns} FROM metrics WHERE run_uuid = ?",
            (run_id,),
        )
        database.execute("UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid = ?", (run_id,))
        database.execute("DELETE FROM tags WHERE run_uuid = ? AND key IN ('state', 'epochs')", (run_id,))
        database.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = 'process'", (ENDED_PROCESS, run_id))


def test_a_finished_study_agrees(finished: FinishedStudy) -> None:
    assert doctor(finished) == {"study": "tiny", "remaining": [], "repaired": []}
    assert "tiny: Optuna's storage and MLflow agree" in finished.run("doctor", "--study", "tiny").stdout


def test_studies_of_an_earlier_version_agree(tmp_path: Path) -> None:
    folder = unpack(tmp_path) / "project"
    for study in ("golden", "rates"):
        outcome = run_command(folder, "doctor", "--study", study)
        assert outcome.exit_code == 0, outcome.stdout


def test_a_run_that_an_earlier_version_left_open_gets_its_last_epoch_from_optuna(finished: FinishedStudy) -> None:
    run = runs_of_kind(finished, "trial")[0]
    trial = StudyStore.load(Workspace.resolve(finished.tracking_uri).storage_url, "tiny").trial_records()[0]
    lose_last_epoch(finished, run.info.run_id)
    assert remaining_kinds(finished) == [("run-open", 0), ("points-missing", 0)]
    repaired = doctor(finished, "--repair")
    assert (len(repaired["repaired"]), repaired["remaining"]) == (2, [])
    client = MlflowClient(finished.tracking_uri)
    after = client.get_run(run.info.run_id)
    assert after.info.status == "FINISHED"
    assert trial.ended_at is not None
    assert after.info.end_time == int(1000 * trial.ended_at)
    assert (after.data.tags["state"], after.data.tags["epochs"]) == ("completed", "2")
    points = client.get_metric_history(run.info.run_id, "val/accuracy")
    assert [(point.step, point.value) for point in points] == list(enumerate(trial.curve, start=1))
    assert after.data.metrics["best/val_accuracy"] == max(trial.curve)


def test_a_search_completes_the_open_run_of_a_trial_that_has_ended(finished: FinishedStudy) -> None:
    run, workspace = runs_of_kind(finished, "trial")[0], Workspace.resolve(finished.tracking_uri)
    lose_last_epoch(finished, run.info.run_id)
    store, study = MlflowStore(finished.tracking_uri, "fmnist-search"), load_study(workspace, "tiny")
    messages: list[str] = []
    with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
        make_stores_agree(workspace, study, store, outbox, messages.append)
        assert len(messages) == 2
        make_stores_agree(workspace, study, store, outbox, messages.append)
    assert len(messages) == 2
    assert doctor(finished)["remaining"] == []


def test_runs_that_nothing_writes_any_more_are_ended(finished: FinishedStudy) -> None:
    stray, finalist = runs_of_kind(finished, "trial")[1], runs_of_kind(finished, "finalist")[0]
    client = MlflowClient(finished.tracking_uri)
    copied = {key: stray.data.tags[key] for key in ("mlflow.parentRunId", "kind", "trial", "study")}
    second = client.create_run(stray.info.experiment_id, tags={**copied, "address": "second"}).info.run_id
    client.update_run(finalist.info.run_id, status="RUNNING")
    client.set_tag(finalist.info.run_id, "process", "elsewhere 1 2")
    assert sorted(kind for kind, _ in remaining_kinds(finished)) == ["run-open", "run-without-trial"]
    assert doctor(finished, "--repair")["remaining"] == []
    for run_id, reason in ((second, "no trial in Optuna's storage"), (finalist.info.run_id, "its process has ended")):
        ended = client.get_run(run_id)
        assert (ended.info.status, ended.data.tags["state"]) == ("KILLED", "interrupted")
        assert reason in ended.data.tags["reason"]


def test_a_run_that_mlflow_has_lost_is_written_again_but_a_deleted_one_stays_deleted(finished: FinishedStudy) -> None:
    lost, deleted = runs_of_kind(finished, "trial")[2:4]
    MlflowClient(finished.tracking_uri).delete_run(deleted.info.run_id)
    with mlflow_database(finished) as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (lost.info.run_id,))
    assert remaining_kinds(finished) == [("run-missing", 2)]
    assert doctor(finished, "--repair")["remaining"] == []
    written = [run for run in runs_of_kind(finished, "trial") if run.info.status == "FINISHED"]
    assert [run.data.tags["trial"] for run in written] == ["0", "1", "2"]


def test_events_that_mlflow_has_not_received_are_sent(finished: FinishedStudy) -> None:
    run = runs_of_kind(finished, "trial")[0]
    workspace = Workspace.resolve(finished.tracking_uri)
    with closing(Outbox(workspace.outbox_path, finished.tracking_uri)) as outbox:
        outbox.remember_run("late", run.info.run_id)
        outbox.put(Batch(tags={"note": "came late"}).event("late"))
    (pending,) = doctor(finished)["remaining"]
    assert pending["kind"] == "events-pending"
    repaired = doctor(finished, "--repair")
    assert [repair["action"] for repair in repaired["repaired"]] == ["sent"]
    assert repaired["remaining"] == []
    assert MlflowClient(finished.tracking_uri).get_run(run.info.run_id).data.tags["note"] == "came late"


def test_a_study_run_that_was_deleted_is_named_with_what_to_do(finished: FinishedStudy) -> None:
    client, run_id = MlflowClient(finished.tracking_uri), finished.run("status", "--json").json["run_id"]
    client.delete_run(run_id)
    outcome = finished.run("doctor", "--study", "tiny")
    client.restore_run(run_id)
    assert outcome.exit_code == 1
    assert f"MLflow has no run {run_id}, below which are the runs of its trials" in outcome.stdout
    assert "`fmnist-search sync --rebuild tiny` writes its runs again" in outcome.stdout
    assert doctor(finished)["remaining"] == []


def test_a_trial_that_a_killed_search_has_left_waits_to_go_on(finished: FinishedStudy) -> None:
    storage = open_storage(Workspace.resolve(finished.tracking_uri).storage_url)
    study = optuna.load_study(study_name="tiny", storage=storage)
    (run,) = (run for run in runs_of_kind(finished, "trial") if run.data.tags["trial"] == "0")
    key = "study/004 cnn 4@1"
    trial = study.ask()
    trial.set_user_attr("recipe", study.get_trials()[0].user_attrs["recipe"])
    trial.set_user_attr("run_key", key)
    trial.report(0.5, 1)
    client = MlflowClient(finished.tracking_uri)
    tags = {**run.data.tags, "trial": "4", "address": key, "state": "running", "process": ENDED_PROCESS}
    left = client.create_run(run.info.experiment_id, tags=tags).info.run_id
    client.log_metric(left, "val/accuracy", 0.5, step=1)
    assert remaining_kinds(finished) == [("trial-open", 4)]
    repaired = doctor(finished, "--repair")
    assert repaired["remaining"] == []
    assert [repair["action"] for repair in repaired["repaired"]] == ["it goes on with the next search", "set to KILLED"]
    assert client.get_run(left).data.tags["state"] == "interrupted"
    assert study.get_trials()[4].state is optuna.trial.TrialState.WAITING


@pytest.mark.in_process  # its promoter is the process of the test
def test_a_version_that_its_promotion_left_undecided_is_decided(finished: FinishedStudy) -> None:
    client, model = MlflowClient(finished.tracking_uri), "fmnist-search"
    client.delete_registered_model_alias(model, "champion")
    client.delete_model_version_tag(model, "1", "decision")
    assert remaining_kinds(finished) == []  # its promotion may go on
    client.set_model_version_tag(model, "1", "promoter", ENDED_PROCESS)
    assert remaining_kinds(finished) == [("version-undecided", None)]
    assert [repair["action"] for repair in doctor(finished, "--repair")["repaired"]] == ["it is champion"]
    assert client.get_model_version_by_alias(model, "champion").tags["decision"] == "champion"


def test_missing_weights_are_named_with_what_to_do(finished: FinishedStudy) -> None:
    best = finished.run("leaderboard", "tiny", "--json").json[0]["number"]
    path = finished.folder / "fmnist-search" / "weights" / "tiny" / f"{best:03d}.pt"
    content = path.read_bytes()
    path.unlink()
    outcome = finished.run("doctor", "--study", "tiny", "--repair")
    path.write_bytes(content)
    assert outcome.exit_code == 1
    assert "the file with its weights is missing" in outcome.stdout
    assert "train --from-run" in outcome.stdout


def test_the_checkpoint_of_a_trial_that_has_ended_is_removed(finished: FinishedStudy) -> None:
    folder = Workspace.resolve(finished.tracking_uri).checkpoints_folder("tiny")
    TrialCheckpoints(folder).save(1, b"state")
    assert remaining_kinds(finished) == [("checkpoint-left", 1)]
    assert [repair["action"] for repair in doctor(finished, "--repair")["repaired"]] == ["removed"]
    assert not folder.exists()


def test_without_mlflow_the_rest_is_checked(finished: FinishedStudy) -> None:
    result = doctor(finished, "--tracking-uri", "http://127.0.0.1:9", "--workdir", "fmnist-search")
    assert [finding["kind"] for finding in result["remaining"]] == ["mlflow-unreachable"]


def test_a_study_that_is_searched_is_not_repaired(finished: FinishedStudy) -> None:
    storage = open_storage(Workspace.resolve(finished.tracking_uri).storage_url)
    with Lease.acquire(storage, "tiny", heartbeat_seconds=5, lease_seconds=60):
        refused = finished.run("doctor", "--study", "tiny", "--repair")
        assert finished.run("doctor", "--study", "tiny").exit_code == 0
    assert refused.exit_code == 2
    assert len(refused.errors) == 1
    assert "`fmnist-search stop tiny`" in refused.stderr


def test_repair_needs_a_study_that_exists(finished: FinishedStudy, tmp_path: Path) -> None:
    assert "add --study NAME" in finished.run("doctor", "--repair").stderr
    assert "'nothing': does not exist here" in finished.run("doctor", "--study", "nothing").stderr
