"""Processes that use a new folder at the same time: none fails while MLflow's and Optuna's tables are made."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.study_runs import open_study_run
from tests.integration.conftest import TINY_STUDY, python_arguments, start_python
from tests.support.postgresql import PostgresqlServer

PROCESS_COUNT = 3
PRELOADED = [
    "fmnist_search.tracking.store",
    "fmnist_search.tracking.study_runs",
    "mlflow.store.tracking.sqlalchemy_store",
]


def open_new_store(uri: str, study: str, cache: str, barrier: Any) -> None:
    os.environ["XDG_CACHE_HOME"] = cache  # the server of the processes has started with that of an earlier test
    barrier.wait()
    store = MlflowStore(uri, "new")
    run = open_study_run(store, study, None)
    store.save_trials_view(run.run_id, ["optimizer.learning_rate"])


@pytest.fixture(params=["SQLite", "SQLite with a template", "PostgreSQL"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a store without tables."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "PostgreSQL":
        server = PostgresqlServer(tmp_path / "postgres")
        yield server.create_database().replace("postgresql://", "postgresql+psycopg://")
        server.close()
        return
    if request.param == "SQLite with a template":
        MlflowStore(f"sqlite:///{tmp_path / 'earlier.db'}", "earlier")
    yield f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.slow
def test_a_new_store_is_opened_by_several_processes_at_once(new_store: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # MLflow is imported once for all
    barrier = context.Barrier(PROCESS_COUNT)
    processes = [
        context.Process(
            target=open_new_store, args=(new_store, f"study {number}", os.environ["XDG_CACHE_HOME"], barrier)
        )
        for number in range(PROCESS_COUNT)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * PROCESS_COUNT
    client = MlflowClient(new_store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert len(experiments) == 2
    assert len(client.search_runs(experiments)) == PROCESS_COUNT


@pytest.mark.slow
def test_two_first_searches_in_a_folder_each_register_their_champion(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(TINY_STUDY.replace('name = "tiny"', f'name = "{name}"'))
    cache = str(tmp_path / "cache")
    small = ["--trials", 1, "--set", "budget.epochs=1", "--set", "finalists.seeds=1", "--set", "finalists.epochs=1"]
    searches = [
        start_python(tmp_path, *python_arguments(["search", f"{name}.toml", *small]), XDG_CACHE_HOME=cache)
        for name in ("one", "two")
    ]
    outputs = [search.communicate(timeout=300) for search in searches]
    assert [search.returncode for search in searches] == [0, 0], outputs
    assert all("registered as models:/fmnist-search/" in stdout for stdout, _ in outputs)
    versions = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_model_versions("name='fmnist-search'")
    assert {version.tags["study"] for version in versions} == {"one", "two"}
