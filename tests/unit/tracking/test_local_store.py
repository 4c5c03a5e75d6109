"""A store that is a SQLite file is read without MLflow, with the same results as through MLflow."""

from __future__ import annotations

import dataclasses
import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.tracking.local_store import LocalStore, open_run_reader
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.stored_runs import find_experiment_id, load_environment, load_recipe, read_run
from fmnist_search.tracking.study_runs import open_study_run

RECIPE = Recipe().replace({"seed": 7})


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> MlflowStore:
    """A store with the runs of a study, a trial and a deleted trial."""
    return MlflowStore(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}", "tests")


@pytest.fixture(scope="module")
def study_run_id(mlflow_store: MlflowStore) -> str:
    run_id = open_study_run(mlflow_store, "small", None).run_id
    mlflow_store.client.log_text(run_id, '{"device": "cpu"}', "environment.json")
    return run_id


@pytest.fixture(scope="module")
def trial_run_id(mlflow_store: MlflowStore, study_run_id: str) -> str:
    tags = {"mlflow.parentRunId": study_run_id, "kind": "trial", "study": "small", "state": "completed"}
    client = mlflow_store.client
    run_id = str(client.create_run(mlflow_store.experiment_id, run_name="000 cnn", tags=tags).info.run_id)
    for epoch, accuracy in enumerate((0.5, 0.8, 0.7), start=1):
        client.log_metric(run_id, "train/loss", math.nan if epoch == 1 else 1 / epoch, step=epoch)
        client.log_metric(run_id, "val/accuracy", accuracy, step=epoch)
    client.log_metric(run_id, "best/val_accuracy", 0.8, step=3)
    client.log_metric(run_id, "model/parameters", 1234, step=3)
    client.log_text(run_id, recipe_to_toml(RECIPE), "recipe.toml")
    return run_id


@pytest.fixture(scope="module")
def local_store(mlflow_store: MlflowStore, trial_run_id: str) -> LocalStore:
    with open_run_reader(mlflow_store.uri) as reader:
        assert isinstance(reader, LocalStore)
        return reader


def test_a_run_is_the_same_read_with_and_without_mlflow(
    local_store: LocalStore, mlflow_store: MlflowStore, trial_run_id: str, study_run_id: str
) -> None:
    trained = read_run(local_store, trial_run_id)
    assert trained == read_run(mlflow_store, trial_run_id)
    assert (trained.recipe, trained.accuracy, trained.best, trained.epochs) == (RECIPE, 0.7, 0.8, 3)
    assert (trained.parameters, trained.parent, trained.study, trained.seconds) == (1234, study_run_id, "small", None)
    for run_id in (trial_run_id, study_run_id):
        assert local_store.find_run(run_id) == mlflow_store.find_run(run_id)


def test_metric_histories_are_the_same(local_store: LocalStore, mlflow_store: MlflowStore, trial_run_id: str) -> None:
    for key in ("train/loss", "val/accuracy", "none"):
        histories = [sorted(store.metric_history(trial_run_id, key)) for store in (local_store, mlflow_store)]
        assert str(histories[0]) == str(histories[1])  # as texts, in which NaN equals NaN
    assert math.isnan(dict(local_store.metric_history(trial_run_id, "train/loss"))[1])


def test_the_environment_of_a_trial_is_that_of_its_study(local_store: LocalStore, trial_run_id: str) -> None:
    assert load_environment(local_store, read_run(local_store, trial_run_id)) == {"device": "cpu"}


def test_a_run_without_a_record_of_its_environment_cannot_be_trained_again_alike(
    local_store: LocalStore, mlflow_store: MlflowStore, trial_run_id: str
) -> None:
    alone = dataclasses.replace(read_run(local_store, trial_run_id), parent=None)
    for store in (local_store, mlflow_store):
        with pytest.raises(UserError, match=r"neither it nor its study has environment\.json"):
            load_environment(store, alone)
        assert store.read_text("0" * 32, "environment.json") is None


def test_runs_that_trained_nothing_are_refused_in_the_same_words(
    local_store: LocalStore, mlflow_store: MlflowStore, study_run_id: str
) -> None:
    for run_id, message in ((study_run_id, "is the run of the study 'small'"), ("0" * 32, "does not exist in")):
        for store in (local_store, mlflow_store):
            with pytest.raises(UserError, match=message):
                read_run(store, run_id)
    with pytest.raises(UserError, match=r"has no recipe.toml"):
        load_recipe(local_store, study_run_id)


def test_a_deleted_run_does_not_exist(local_store: LocalStore, mlflow_store: MlflowStore) -> None:
    client = mlflow_store.client
    run_id = str(client.create_run(mlflow_store.experiment_id).info.run_id)
    assert find_experiment_id(local_store, run_id) == mlflow_store.experiment_id
    client.delete_run(run_id)
    for store in (local_store, mlflow_store):
        assert find_experiment_id(store, run_id) is None


def test_artifacts_that_are_no_files_are_read_by_mlflow(
    local_store: LocalStore, mlflow_store: MlflowStore, trial_run_id: str
) -> None:
    with closing(sqlite3.connect(local_store.uri.removeprefix("sqlite:///"))) as database:
        (folder,) = database.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (trial_run_id,)).fetchone()
        for address in (Path(folder).as_uri(), f"no-such-scheme://{folder}", folder):
            database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (address, trial_run_id))
            database.commit()
            text = local_store.read_text(trial_run_id, "recipe.toml")
            assert text == mlflow_store.read_text(trial_run_id, "recipe.toml")
            assert (text is None) == address.startswith("no-such")


def test_a_file_with_other_tables_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE runs (run_uuid TEXT)")
    assert not LocalStore(f"sqlite:///{path}", path).is_readable()
