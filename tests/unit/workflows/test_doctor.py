"""The checks of `fmnist-search doctor`."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fmnist_search.execution.capacity import worker_count
from fmnist_search.search.study_store import StudyStore
from fmnist_search.training.devices import resolve_execution
from fmnist_search.workflows.doctor import CheckResult, run_checks
from fmnist_search.workspace import Workspace
from tests.support.studies import make_study


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckResult]:
    """The results for a store whose folder is missing, and a folder that cannot be created."""
    file = tmp_path_factory.mktemp("doctor") / "file"
    file.touch()
    workspace = Workspace(f"sqlite:///{file.parent}/missing/mlflow.db", file / "work")
    return {check.subject: check for check in run_checks(workspace)}


def test_device_check_names_the_number_of_concurrent_trials(checks: dict[str, CheckResult]) -> None:
    assert checks["device"].ok
    count, _ = worker_count("auto", resolve_execution(threads=1))
    assert f"{count} trials at a time" in checks["device"].finding


def test_the_cluster_of_a_study_is_looked_at(tmp_path: Path) -> None:
    workspace = Workspace.resolve(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert "Ray" not in [check.subject for check in run_checks(workspace)]
    StudyStore.open(workspace.storage_url, make_study(execution={"backend": "ray", "ray": {"address": address}}))
    (check,) = [check for check in run_checks(workspace) if check.subject == "Ray"]
    assert not check.ok
    assert f"nothing answers at {address}" in check.finding


def test_what_a_search_would_refuse_is_reported(checks: dict[str, CheckResult]) -> None:
    assert [subject for subject, check in checks.items() if not check.ok] == ["MLflow store", "our own files"]
    assert "there is no folder" in checks["MLflow store"].finding
    assert f"{Path('file', 'work')}: cannot be written" in checks["our own files"].finding
