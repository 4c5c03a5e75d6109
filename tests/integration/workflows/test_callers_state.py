"""A notebook has its own run, store and registry of MLflow; our functions leave them as they are."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from fmnist_search import Recipe, StudyConfig, Workspace, load_model, run_study, train
from fmnist_search.results.study import StudySummary
from fmnist_search.tracking.connection import connect
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.workflows.settings import RunOptions, TrackingOptions
from fmnist_search.workflows.study.api import promote

SMALL_STUDY = {
    "data": {"train_images": 1000, "validation": 1000},
    "budget": {"trials": 1, "epochs": 1},
    "space": {"mlp": {"depth": 1, "width": [8, 16]}},
    "finalists": {"recipes": 1, "seeds": 1, "epochs": 1, "images": "slice", "refit": "none"},
    "execution": {"precision": "float32", "workers": 1},
}
WITHOUT_PLOTS = TrackingOptions(plot_interval=None)


@pytest.fixture
def callers_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the caller's store, which is MLflow's global one, with an experiment named by the environment."""
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "notebook")
    uri = f"sqlite:///{tmp_path / 'notebook.db'}"
    connect(uri).create_experiment("notebook", str(tmp_path / "notebook"))
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(before)


def global_state() -> list[object]:
    """Return what of MLflow's state belongs to the caller."""
    run = mlflow.active_run()
    variables = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    return [mlflow.get_tracking_uri(), mlflow.get_registry_uri(), run and run.info.run_id, variables]


def small_config(name: str) -> StudyConfig:
    return StudyConfig.from_dict({"name": name, **SMALL_STUDY})


def assert_champion_is_registered(client: MlflowClient, summary: StudySummary) -> None:
    assert summary.champion
    version = client.get_model_version(summary.champion.model, summary.champion.version)
    assert version.tags["study"] == summary.name


def test_a_study_and_a_training_inside_a_run_of_another_store(callers_uri: str, tmp_path: Path) -> None:
    workspace = Workspace.resolve(f"sqlite:///{tmp_path / 'ours.db'}", tmp_path / "ours")
    with mlflow.start_run() as own:
        before = global_state()
        summary = run_study(small_config("inside"), workspace=workspace, tracking=WITHOUT_PLOTS)
        assert global_state() == before
        assert summary.best
        train(summary.best.recipe, workspace=workspace, run_options=RunOptions(plots=False))
        assert load_model(tracking_uri=workspace.tracking_uri).predict([[[0] * 28] * 28]).shape == (1,)
        assert global_state() == before
        mlflow.log_metric("after", 1.0)
        with mlflow.start_run(nested=True) as child:
            assert child.info.experiment_id == own.info.experiment_id
    client = MlflowClient(callers_uri)
    finished = client.get_run(own.info.run_id)
    assert (finished.info.status, finished.data.metrics) == ("FINISHED", {"after": 1.0})
    assert {experiment.name for experiment in client.search_experiments()} == {"Default", "notebook"}
    assert not client.search_registered_models()
    ours = MlflowClient(workspace.tracking_uri)
    assert_champion_is_registered(ours, summary)
    (model,) = ours.search_logged_models([str(ours.get_experiment_by_name("fmnist-search").experiment_id)])  # type: ignore[union-attr]
    assert {metric.key for metric in model.metrics or ()} >= {"test/accuracy"}
    assert str(model.status) == "READY"


@pytest.mark.slow
def test_a_study_and_its_promotion_inside_a_run_of_the_same_store(callers_uri: str, tmp_path: Path) -> None:
    workspace = Workspace.resolve(callers_uri, tmp_path / "ours")
    with mlflow.start_run() as own:
        before = global_state()
        summary = run_study(small_config("inside"), workspace=workspace, tracking=WITHOUT_PLOTS)
        again = promote("inside", workspace=workspace, tracking=WITHOUT_PLOTS)
        assert global_state() == before
    assert MlflowClient(callers_uri).get_run(own.info.run_id).info.status == "FINISHED"
    for each in (summary, again):
        assert_champion_is_registered(MlflowClient(callers_uri), each)
    assert again.champion
    assert again.champion.version == "2"


@pytest.mark.slow
def test_studies_in_two_threads_each_register_their_champion(callers_uri: str, tmp_path: Path) -> None:
    before = global_state()
    workspace = Workspace.resolve(f"sqlite:///{tmp_path / 'ours.db'}", tmp_path / "ours")
    summaries: dict[str, StudySummary] = {}

    def run(name: str) -> None:
        summaries[name] = run_study(small_config(name), workspace=workspace)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert summaries.keys() == {"one", "two"}
    for summary in summaries.values():
        assert_champion_is_registered(MlflowClient(workspace.tracking_uri), summary)
    assert global_state() == before


def test_the_recipe_of_a_run_is_read_from_its_own_store(callers_uri: str, tmp_path: Path) -> None:

    store = MlflowStore(f"sqlite:///{tmp_path / 'ours.db'}", "elsewhere")
    run_id = store.create_run("a run", {})
    store.client.log_text(run_id, "[model]\nfamily = 'mlp'\n", "recipe.toml")
    assert store.load_recipe(run_id) == Recipe().replace({"model.family": "mlp"})
    assert mlflow.get_tracking_uri() == callers_uri
