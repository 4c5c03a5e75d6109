"""Promotions that were killed: the next one goes on with what is there, and registers one version."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from fmnist_search.workspace import Workspace
from tests.integration.conftest import FinishedStudy, copy_study, fork_command
from tests.support.command_server import RunningCommand

MODEL = "fmnist-search"
EPOCHS = 24
"""Epochs of finalists that are so many that a promotion can be stopped before the first one has completed."""


def versions(study: FinishedStudy) -> list[ModelVersion]:
    found = MlflowClient(study.tracking_uri).search_model_versions(f"name = '{MODEL}'")
    return sorted(found, key=lambda version: int(version.version))


def forget_champion(study: FinishedStudy) -> None:
    """Leave the study as a promotion leaves it that is killed before it stores the champion."""
    url = Workspace.resolve(study.tracking_uri).storage_url
    optuna.load_study(study_name="tiny", storage=url).set_user_attr("champion", {})


@pytest.mark.parametrize("is_decided", [True, False])
def test_a_version_whose_promotion_was_killed_is_used(finished: FinishedStudy, is_decided: bool) -> None:
    client, before = MlflowClient(finished.tracking_uri), versions(finished)[0]
    forget_champion(finished)
    if not is_decided:
        client.delete_registered_model_alias(MODEL, "champion")
        for tag in ("decision", "comparison"):
            client.delete_model_version_tag(MODEL, "1", tag)
    outcome = finished.run("promote", "tiny", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert "version 1 is that of a promotion which was cut short" in outcome.stderr
    assert "finalist" not in outcome.stderr
    (after,) = versions(finished)
    assert {**after.tags, "comparison": ""} == {**before.tags, "comparison": ""}
    assert client.get_model_version_by_alias(MODEL, "champion").version == after.version
    champion = finished.run("status", "tiny", "--json").json["champion"]
    assert champion == outcome.json
    assert (champion["version"], champion["test"]["hits"]) == ("1", int(after.tags["test_hits"]))


@pytest.mark.slow
def test_a_promotion_that_has_ended_is_repeated_on_request_from_fresh_seeds(finished: FinishedStudy) -> None:
    assert finished.run("promote", "tiny").exit_code == 0
    first, second = versions(finished)
    assert not set(first.tags["seeds"].split(", ")) & set(second.tags["seeds"].split(", "))
    assert first.tags["promotion"] != second.tags["promotion"]
    assert first.tags["promotion"].partition("@")[0] == second.tags["promotion"].partition("@")[0]


@pytest.mark.slow
def test_a_search_keeps_the_model_of_a_trial_that_the_user_promoted(finished: FinishedStudy) -> None:
    number = finished.run("leaderboard", "tiny", "--json").json[-1]["number"]
    promoted = finished.run("promote", "tiny", "--trial", number, "--seeds", 1, "--epochs", 1)
    assert promoted.exit_code == 0, promoted.stderr
    count = len(versions(finished))
    assert finished.run("search", "tiny.toml").exit_code == 0
    assert len(versions(finished)) == count
    found = finished.run("status", "tiny", "--json").json
    assert (found["selected"]["confirmed"]["trial"], found["selected"]["version"]) == (number, str(count))
    # One epoch is worse than the two of the champion.
    assert (found["selected"]["alias"], found["champion"]) == ("challenger", None)
    lines = finished.run("status", "tiny").stdout.splitlines()
    assert any(line.startswith(f"confirmed: trial {number} (") for line in lines)
    assert any(line.startswith(f"registered: models:/{MODEL}/{count}, challenger when") for line in lines)
    assert not any(line.startswith("champion:") for line in lines)


def finalist_runs(study: FinishedStudy, epochs: int) -> list[Run]:
    """Return the runs of the finalists of so many epochs, by name."""
    client = MlflowClient(study.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.kind = 'finalist' AND params.epochs = '{epochs}'")
    return sorted(runs, key=lambda run: str(run.info.run_name))


def wait_until(study: FinishedStudy, process: RunningCommand, query: str) -> None:
    """Wait until a query of MLflow's database is not 0."""
    with closing(sqlite3.connect(study.folder / "mlflow.db", timeout=120)) as database:
        while not database.execute(query).fetchone()[0]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)


def steps(study: FinishedStudy, run: Run) -> list[int]:
    """Return the epochs of the points of a run, in the order of their times."""
    points = MlflowClient(study.tracking_uri).get_metric_history(run.info.run_id, "train/loss")
    return [point.step for point in points]


FINALISTS = "run_uuid IN (SELECT run_uuid FROM params WHERE key = 'epochs' AND value = '1')"
MOMENTS = (
    f"SELECT COUNT(*) FROM runs WHERE status = 'FINISHED' AND {FINALISTS}",
    "SELECT COUNT(*) > {versions} FROM logged_models",
    "SELECT COUNT(*) > {versions} FROM model_versions",
)
"""Moments of a promotion, in order, each as a query of MLflow's database that is not 0 from then on: a finalist has
completed, the model is logged, and its version exists."""


@pytest.mark.parametrize(
    "moments",
    [pytest.param(MOMENTS[:2], marks=pytest.mark.slow), pytest.param(MOMENTS, marks=pytest.mark.exhaustive)],
    ids=["before the version exists", "also after that"],
)
def test_a_promotion_that_is_killed_again_and_again_registers_one_version(
    tiny_study: FinishedStudy, tmp_path: Path, moments: tuple[str, ...]
) -> None:
    finished = copy_study(tiny_study, tmp_path)
    settings = ("finalists.epochs=1", "finalists.refit=everything")  # an epoch of all images takes seconds
    search = ("search", "tiny.toml", *(word for setting in settings for word in ("--set", setting)))
    before = len(versions(finished))
    for moment in (query.format(versions=before) for query in moments):
        process = fork_command(finished.folder, *search)
        wait_until(finished, process, moment)
        process.kill()
        process.communicate()
    outcome = finished.run(*search)
    assert outcome.exit_code == 0, outcome.stderr
    assert [version.tags["test_evaluations"] for version in versions(finished)[before:]] == ["1"]
    runs = finalist_runs(finished, epochs=1)
    assert [str(run.info.run_name).split(" cnn")[0][-6:] for run in runs] == ["seed 1", "seed 2", "seed 1"]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert [steps(finished, run) for run in runs] == [[1]] * 3
    client = MlflowClient(finished.tracking_uri)
    assert len(client.get_metric_history(runs[-1].info.run_id, "test/accuracy")) == 1
    assert finished.run("doctor", "--study", "tiny").exit_code == 0
    assert not list((finished.folder / "fmnist-search" / "checkpoints").rglob("*.*"))


@pytest.mark.slow
def test_a_promotion_that_is_stopped_ends_in_order_and_goes_on(tiny_study: FinishedStudy, tmp_path: Path) -> None:
    finished = copy_study(tiny_study, tmp_path)  # other tests change how the study confirms its recipes
    before = len(versions(finished))
    promote = ("promote", "tiny", "--epochs", EPOCHS)
    process = fork_command(finished.folder, *promote)
    epochs = f"run_uuid IN (SELECT run_uuid FROM params WHERE key = 'epochs' AND value = '{EPOCHS}')"
    wait_until(finished, process, f"SELECT COUNT(*) FROM metrics WHERE key = 'train/loss' AND {epochs}")
    assert finished.run("stop", "tiny").exit_code == 0
    output = process.communicate()
    assert process.returncode == 130, output
    assert "nothing is lost" in output[1]
    (run,) = finalist_runs(finished, epochs=EPOCHS)
    assert (run.info.status, run.data.tags["state"]) == ("KILLED", "interrupted")
    assert len(versions(finished)) == before
    assert finished.run("doctor", "--study", "tiny").exit_code == 0
    assert finished.run(*promote).exit_code == 0
    runs = finalist_runs(finished, epochs=EPOCHS)
    assert {(each.info.status, *steps(finished, each)) for each in runs} == {("FINISHED", *range(1, EPOCHS + 1))}
    assert len({each.info.run_name for each in runs}) == len(runs)
    assert run.info.run_id in {each.info.run_id for each in runs}
    assert len(versions(finished)) == before + 1
