"""Tracking on an MLflow server instead of a file."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.conftest import run_command
from tests.integration.servers import MlflowServer, running_server, running_ui

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the server that the tests of a module share."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server_url(server_folder: Path) -> Iterator[str]:
    """The address of a server for the tests of a module, each of which uses a study or a model of its own."""
    with running_server(MlflowServer(server_folder)) as server:
        yield server.url


def test_a_search_on_a_server_stores_everything_there(tiny: Path, tmp_path: Path, server_url: str) -> None:
    workdir = tmp_path / "workdir"
    few = ["--name", "served", "--trials", "2", "--set", "finalists.seeds=1", "--set", "finalists.epochs=1"]
    outcome = run_command(tmp_path, "search", "tiny.toml", *few, "--tracking-uri", server_url, "--workdir", workdir)
    assert outcome.exit_code == 0, outcome.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert (workdir / "optuna.db").exists()
    client = MlflowClient(server_url)
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.study = 'served'")
    assert len([r for r in runs if r.data.tags["kind"] == "trial"]) == 2
    trial = next(r for r in runs if r.data.tags["kind"] == "trial")
    assert "recipe.toml" in {item.path for item in client.list_artifacts(trial.info.run_id)}
    again = run_command(tmp_path, "train", "--from-run", trial.info.run_id, "--tracking-uri", server_url, "--json")
    assert again.json["epochs"][-1]["val_accuracy"] == trial.data.metrics["val/accuracy"]
    client.update_run(trial.info.run_id, status="RUNNING")
    doctor = ["doctor", "--study", "served", "--tracking-uri", server_url, "--workdir", workdir, "--json"]
    repaired = run_command(tmp_path, *doctor, "--repair").json
    assert [finding["kind"] for finding in repaired["repaired"]] == ["run-open"]
    assert repaired["remaining"] == []
    shown = run_command(tmp_path, "predict", "--test-image", "0", "--json", MLFLOW_TRACKING_URI=server_url)
    assert shown.json[0]["true"] == "Ankle boot"


def test_a_password_in_the_address_of_a_server_is_stored_and_printed_nowhere(
    tiny: Path, tmp_path: Path, server_url: str, server_folder: Path
) -> None:
    address = server_url.replace("http://", "http://me:k3yphrase%40x@")
    workdir = tmp_path / "workdir"
    few = ["--trials", "1", "--set", "budget.epochs=1", "--set", "finalists.seeds=1", "--set", "finalists.epochs=1"]
    for arguments in (
        ["search", "tiny.toml", *few],
        ["show"],
        ["doctor"],
        ["doctor", "--study", "tiny"],
        ["status"],
        ["ui"],
        ["predict", "--test-images", "0:1"],
    ):
        store = ["--tracking-uri", address] + (["--workdir", workdir] if arguments[0] != "predict" else [])
        outcome = run_command(tmp_path, *arguments, *store)
        assert outcome.exit_code == 0, outcome.stderr
        assert "k3yphrase" not in outcome.stdout + outcome.stderr
    for arguments in (["--from-run", "nothing"], ["--debug", "--from-run", "nothing"]):
        outcome = run_command(tmp_path, "train", *arguments, "--tracking-uri", address)
        assert outcome.exit_code == 2
        assert "***@127.0.0.1" in outcome.stderr
        assert "k3yphrase" not in outcome.stderr
    stored = [path for folder in (tmp_path, server_folder) for path in folder.rglob("*") if path.is_file()]
    assert [path.name for path in stored if b"k3yphrase" in path.read_bytes()] == []
    assert [path for path in stored if path.name == "command.txt" and b"http://***@127.0.0.1" in path.read_bytes()]


def test_the_ui_answers_on_the_store_of_this_folder(tiny: Path, tmp_path: Path) -> None:
    assert run_command(tmp_path, "search", "tiny.toml", "--trials", "1", "--set", "finalists.recipes=0").exit_code == 0
    with running_ui(tmp_path) as address:
        origin, _, page = address.partition("/#/")
        assert origin.startswith("http://127.0.0.1:")
        assert page.endswith("/runs?workflowType=machine_learning&viewStateShareKey=trials")
        hostile = urllib.request.Request(f"{origin}/", headers={"Host": "10.evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(hostile, timeout=60)
