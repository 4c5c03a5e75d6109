"""A search that is refused changes no study: nothing is archived, and no empty study is left."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fmnist_search import run_study
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.execution.thread_backend import ThreadBackend
from fmnist_search.workspace import Workspace
from tests.integration.conftest import CommandResult, FinishedStudy, run_command

UNKNOWN_RUN = "0123456789abcdef0123456789abcdef"

Search = Callable[..., CommandResult]


@pytest.fixture
def deleted_experiment(finished: FinishedStudy) -> str:
    """The name of an experiment that has been deleted."""
    client = MlflowClient(finished.tracking_uri)
    found = client.get_experiment_by_name("gone")
    if found is None:
        client.delete_experiment(client.create_experiment("gone"))
    return "gone"


def state(study: FinishedStudy) -> tuple[object, list[str], str]:
    """Return what a search may change: the studies, the files of their weights, and the latest study."""
    weights = sorted(str(path) for path in (study.folder / "fmnist-search" / "weights").rglob("*"))
    return study.run("studies", "list", "--json").json, weights, study.run("status", "--json").json["study"]


@pytest.mark.parametrize("option", [["--fresh"], ["--name", "other"]], ids=["fresh", "name"])
def test_a_deleted_experiment(finished: FinishedStudy, deleted_experiment: str, option: list[str]) -> None:
    before = state(finished)
    refused = finished.run("search", "tiny.toml", *option, "--set", f"experiment={deleted_experiment}")
    assert refused.exit_code == 2
    (line,) = refused.errors
    assert "experiment 'gone': has been deleted" in line
    assert "mlflow experiments restore" in line
    assert state(finished) == before


@pytest.mark.parametrize("option", [["--fresh"], ["--name", "other"]], ids=["fresh", "name"])
def test_a_run_id_that_names_no_run(finished: FinishedStudy, option: list[str]) -> None:
    before = state(finished)
    refused = finished.run("search", "tiny.toml", *option, MLFLOW_RUN_ID=UNKNOWN_RUN)
    assert refused.exit_code == 2
    (line,) = refused.errors
    assert line.startswith(f"error: MLFLOW_RUN_ID: names the run '{UNKNOWN_RUN}', which does not exist in sqlite:///")
    assert "unset the variable" in line
    assert state(finished) == before


def test_a_run_id_of_a_deleted_run_is_refused_by_a_training(finished: FinishedStudy, tmp_path: Path) -> None:
    client = MlflowClient(finished.tracking_uri)
    run_id = str(client.create_run("0").info.run_id)
    client.delete_run(run_id)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[data]\ntrain_images = 500\nvalidation = 500\n[model]\nfamily = 'mlp'\n")
    runs = len(client.search_runs(["0", "1"]))
    refused = finished.run("train", recipe, "--epochs", 1, MLFLOW_RUN_ID=run_id)
    assert refused.exit_code == 2
    assert f"MLFLOW_RUN_ID: names the run '{run_id}', which was deleted in" in refused.stderr
    assert len(client.search_runs(["0", "1"])) == runs


def test_the_name_of_a_prompt_is_refused_before_anything_is_trained(finished: FinishedStudy) -> None:
    MlflowClient(finished.tracking_uri).register_prompt("a_prompt", "Say {{it}}.")
    before = state(finished)
    refused = finished.run("search", "tiny.toml", "--fresh", "--set", "finalists.model_name=a_prompt")
    assert refused.exit_code == 2
    assert "'a_prompt' is the name of a prompt" in refused.stderr
    assert state(finished) == before


@pytest.mark.parametrize(
    "command", [["search", "tiny.toml", "--fresh"], ["promote", "tiny"]], ids=["search", "promote"]
)
def test_a_cluster_that_cannot_be_reached(finished: FinishedStudy, command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    before = state(finished)
    # `promote` knows the cluster from RAY_ADDRESS, because the study names none.
    refused = finished.run(*command, "--backend", "ray", RAY_ADDRESS=address)
    assert refused.exit_code == 2
    (line,) = refused.errors
    assert line.startswith(f"error: RAY_ADDRESS: nothing answers at {address} (Connection refused)")
    assert state(finished) == before


class UnreadyBackend(ThreadBackend):
    """A backend whose workers do not start."""

    def wait_until_ready(self) -> None:
        raise UserError("no worker starts")


def test_workers_that_do_not_start_leave_no_run(tiny: Path) -> None:
    workspace = Workspace.resolve(f"sqlite:///{tiny.parent / 'mlflow.db'}")
    with pytest.raises(UserError, match="no worker starts"):
        run_study(StudyConfig.load(tiny), workspace=workspace, backend_factory=UnreadyBackend)
    client = MlflowClient(workspace.tracking_uri)
    assert client.search_runs([found.experiment_id for found in client.search_experiments()]) == []
    assert run_command(tiny.parent, "studies", "list", "--json").json == []
