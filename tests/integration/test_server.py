"""Tracking on a real MLflow server instead of a file."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.conftest import environment, run
from tests.integration.servers import MlflowServer, free_port, running, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with running(MlflowServer(tmp_path / "server")) as server:
        yield server.url


def test_a_search_on_a_server_leaves_everything_there(tiny: Path, tmp_path: Path, server: str) -> None:
    home = tmp_path / "home"
    outcome = run(tmp_path, "search", "tiny.toml", "--tracking-uri", server, "--workdir", home)
    assert outcome.code == 0, outcome.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert (home / "optuna.db").exists()
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len([r for r in runs if r.data.tags["kind"] == "trial"]) == 4
    trial = next(r for r in runs if r.data.tags["kind"] == "trial")
    assert "recipe.toml" in {item.path for item in client.list_artifacts(trial.info.run_id)}
    again = run(tmp_path, "train", "--from-run", trial.info.run_id, "--tracking-uri", server, "--json")
    assert again.json["epochs"][-1]["val_accuracy"] == trial.data.metrics["val/accuracy"]
    shown = run(tmp_path, "predict", "--test-image", "0", "--json", MLFLOW_TRACKING_URI=server)
    assert shown.json[0]["true"] == "Ankle boot"


def test_the_ui_answers_on_the_store_of_this_folder(tiny: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "search", "tiny.toml", "--trials", "1", "--set", "finalists.recipes=0").code == 0
    port = free_port()
    ui = subprocess.Popen(
        [sys.executable, "-m", "fmnist_search", "ui", "--port", str(port)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert ui.stdout is not None
        address = ui.stdout.readline().strip()
        assert address.startswith(f"http://127.0.0.1:{port}/#/experiments/")
        assert address.endswith("/runs?workflowType=machine_learning")
        wait_for(f"http://127.0.0.1:{port}/health")
        hostile = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "10.evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(hostile, timeout=5)
    finally:
        ui.send_signal(signal.SIGTERM)
        ui.wait(timeout=30)
