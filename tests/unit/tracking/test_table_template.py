"""A store that was copied from a template is like one that MLflow has created."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from fmnist_search.tracking.connection import connect
from fmnist_search.tracking.table_template import copy_template, has_all_tables, save_template

STATEMENTS = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store that MLflow has created, and the template that was saved of it."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "first").mkdir()
    connect(f"sqlite:///{folder}/first/mlflow.db", folder / "template.db")
    return folder


def test_a_copied_store_equals_a_created_one(folder: Path, tmp_path: Path) -> None:
    first, second = folder / "first" / "mlflow.db", tmp_path / "mlflow.db"
    client = connect(f"sqlite:///{second}", folder / "template.db")
    for query in (STATEMENTS, "SELECT * FROM alembic_version", "SELECT * FROM workspaces"):
        assert rows(first, query) == rows(second, query)
    (experiment,) = client.search_experiments()
    assert (experiment.experiment_id, experiment.name) == ("0", "Default")
    assert str(folder) not in str(experiment.artifact_location)
    run = client.create_run("0")
    client.log_metric(run.info.run_id, "val/accuracy", 0.5)
    assert client.get_run(run.info.run_id).data.metrics == {"val/accuracy": 0.5}


def test_an_existing_store_and_a_damaged_template_are_left_alone(folder: Path, tmp_path: Path) -> None:
    existing = tmp_path / "existing.db"
    existing.write_bytes(b"mine")
    copy_template(existing, folder / "template.db")
    assert existing.read_bytes() == b"mine"
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes((folder / "template.db").read_bytes()[:5000])
    for template in (damaged, tmp_path / "missing.db"):
        copy_template(tmp_path / "new.db", template)
        assert not (tmp_path / "new.db").exists()


def test_a_store_in_use_becomes_no_template(folder: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    client = connect(f"sqlite:///{database}", folder / "template.db")
    client.create_experiment("another")
    save_template(database, tmp_path / "template.db")
    assert not (tmp_path / "template.db").exists()


CREATE_TABLES = """
import sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
print(len(client.search_experiments()))
"""


@pytest.mark.slow
def test_a_store_whose_tables_another_program_creates_is_waited_for(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    uri = f"sqlite:///{database}"
    with subprocess.Popen([sys.executable, "-c", CREATE_TABLES, uri], stdout=subprocess.PIPE, text=True) as process:
        while not (database.exists() and database.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        assert not has_all_tables(database)
        client = connect(uri, tmp_path / "template.db")
        assert has_all_tables(database)
        output, _ = process.communicate()
    assert (process.returncode, output) == (0, "1\n")
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
