"""Processes that share a folder all get their events to MLflow, whatever one of them does, and each cause is named."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from fmnist_search.tracking import tag_names
from fmnist_search.tracking.events import Batch, CreateRun
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.writer import MlflowWriter
from tests.integration.conftest import TINY_STUDY, fork_command, run_command
from tests.integration.servers import MlflowServer, Proxy, running_server

STUCK_SENDER = """
import sys, time
from pathlib import Path
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.sender import Sender

def write(event):
    print("delivering", flush=True)
    time.sleep(600)

with Sender(Outbox(Path(sys.argv[1]), sys.argv[2]), write, print) as sender:
    time.sleep(600)
"""

STUCK_WRITER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1])
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def stopped_process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that was stopped by SIGSTOP after it had printed a line; it is killed in the end."""
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def run_id(tmp_path: Path) -> str:
    """A run with an event that waits in the outbox."""
    store = MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", "fmnist-search")
    run_id = store.create_run("a run", {})
    with closing(Outbox(tmp_path / "fmnist-search" / "outbox.db", store.uri)) as outbox:
        outbox.remember_run(run_id, run_id)
        outbox.put(Batch(tags={"late": "yes"}).event(run_id))
    return run_id


def test_a_run_that_another_sender_finds_before_its_creator_goes_on_is_kept(tmp_path: Path) -> None:
    store = MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", "fmnist-search")
    create = CreateRun(store.create_run("study", {}), "trial", {tag_names.RUN_KEY: "key"}, 1).event("key")
    with closing(Outbox(tmp_path / "outbox.db", store.uri)) as own, closing(Outbox(own.path, store.uri)) as other:

        class StoppedClient(MlflowClient):
            """The client of a process that is stopped once its run is created, so that another one takes over."""

            def create_run(self, *arguments: Any, **options: Any) -> Run:
                run = super().create_run(*arguments, **options)
                MlflowWriter(store.client, other)(dataclasses.replace(create, attempted=True))
                return run

        MlflowWriter(StoppedClient(store.uri), own)(create)
        run_id = own.run_id("key")
        assert run_id
        assert store.client.get_run(run_id).info.lifecycle_stage == "active"


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_a_sender_that_is_stopped_or_killed_while_it_delivers_is_replaced(
    tmp_path: Path, run_id: str, end: signal.Signals
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with stopped_process(STUCK_SENDER, tmp_path / "fmnist-search" / "outbox.db", uri) as sender:
        sender.send_signal(end)
        started = time.monotonic()
        synced = run_command(tmp_path, "sync")
        seconds = time.monotonic() - started
    assert synced.exit_code == 0, synced.stderr
    assert seconds < (25 if end is signal.SIGSTOP else 10)
    assert MlflowClient(uri).get_run(run_id).data.tags["late"] == "yes"


@pytest.mark.slow
def test_a_stopped_process_that_has_locked_the_database_of_mlflow_is_named(tmp_path: Path, run_id: str) -> None:
    with stopped_process(STUCK_WRITER, tmp_path / "mlflow.db") as writer:
        refused = run_command(tmp_path, "sync")
    assert refused.exit_code == 2
    (line,) = refused.errors
    assert "another process has locked MLflow's database" in line
    assert f"process {writer.pid} is stopped" in line
    assert f"`kill -CONT {writer.pid}`" in line
    assert "cannot be reached" not in refused.stderr
    assert run_command(tmp_path, "sync").exit_code == 0
    assert MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run_id).data.tags["late"] == "yes"


@pytest.mark.exhaustive
def test_two_studies_on_a_slow_server_are_both_recorded_and_promoted(tmp_path: Path) -> None:
    names = ("one", "two")
    for name in names:
        (tmp_path / f"{name}.toml").write_text(TINY_STUDY.replace('name = "tiny"', f'name = "{name}"'))
    with running_server(MlflowServer(tmp_path / "server")) as server, Proxy(server.url, delay_seconds=0.05) as proxy:
        few = ["--trials", "2", "--set", "budget.epochs=1", "--set", "finalists.seeds=1", "--set", "finalists.epochs=1"]
        location = ["--tracking-uri", proxy.url, "--workdir", tmp_path / "workdir"]
        searches = [fork_command(tmp_path, "search", f"{name}.toml", *few, *location) for name in names]
        outputs = [search.communicate(timeout=400) for search in searches]
        assert [search.returncode for search in searches] == [0, 0], outputs
        assert all("registered as models:/fmnist-search/" in stdout for stdout, _ in outputs)
        assert "MLflow has not received" not in "".join(stderr for _, stderr in outputs)
        client = MlflowClient(server.url)
        experiment = client.get_experiment_by_name("fmnist-search")
        assert experiment
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        assert {run.info.status for run in runs} == {"FINISHED"}
        trials = sorted((run.data.tags["study"], run.data.tags["trial"]) for run in runs if "trial" in run.data.tags)
        assert trials == [("one", "0"), ("one", "1"), ("two", "0"), ("two", "1")]
