"""`dashboard`: Optuna Dashboard on the stored studies; and a port that `ui` cannot use."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmnist_search.search.study_store import StudyStore
from fmnist_search.workspace import Workspace
from tests.integration.conftest import RunCommand, run_command, start_command
from tests.integration.servers import free_port
from tests.support.studies import make_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a study without trials."""
    folder = tmp_path_factory.mktemp("dashboard")
    StudyStore.open(storage_url(folder), make_study())
    return folder


def storage_url(folder: Path) -> str:
    return Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}").storage_url


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """Return the port of a server that runs."""
    pytest.importorskip("optuna_dashboard")
    from fmnist_search.search.dashboard import dashboard_server

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with dashboard_server(storage_url(folder), port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield port
        server.shutdown()
        thread.join()


def request(port: int, method: str, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_the_dashboard_shows_the_stored_studies(port: int) -> None:
    status, content = request(port, "GET", "/api/studies")
    (study,) = json.loads(content)["study_summaries"]
    assert (status, study["study_name"]) == (200, "small")
    assert request(port, "GET", "/dashboard", f"localhost:{port}")[0] == 200


def test_the_dashboard_changes_nothing(port: int, folder: Path) -> None:
    assert request(port, "DELETE", "/api/studies/1")[0] == 405
    assert request(port, "POST", "/api/studies")[0] == 405
    assert StudyStore.study_names(storage_url(folder)) == ["small"]


def test_the_dashboard_answers_no_other_host(port: int) -> None:
    # A web page in the browser of the same machine could let its own name refer to 127.0.0.1.
    for host in (f"example.org:{port}", "127.0.0.1", f"127.0.0.1:{port}.example.org"):
        assert request(port, "GET", "/api/studies", host)[0] == 403


def test_a_port_in_use_is_one_error_line(port: int, folder: Path) -> None:
    outcome = run_command(folder, "dashboard", "--port", port)
    (line,) = outcome.errors
    assert outcome.exit_code == 2
    assert f"--port {port}: cannot be used" in line


@pytest.mark.in_process  # hides the package
def test_without_the_package_the_command_to_install_it_is_named(
    command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    outcome = command("dashboard")
    (line,) = outcome.errors
    assert outcome.exit_code == 2
    assert "`pip install 'fmnist-search[dashboard]'`" in line


def test_ui_refuses_a_used_port_before_it_makes_a_store(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start_command(tmp_path, "ui", "--port", port) as process:
            stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (2, "")
    assert stderr == f"error: --port {port}: cannot be used (Address already in use); give another\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_the_server_of_ui_ends_if_ui_is_killed(tmp_path: Path) -> None:
    port = free_port()
    with start_command(tmp_path, "ui", "--port", port) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("http://")
        process.kill()
        process.wait(60)
    ended_by = time.monotonic() + 60
    with pytest.raises(OSError, match="refused"):  # noqa: PT012
        while time.monotonic() < ended_by:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            time.sleep(0.1)


def test_ui_says_its_address_once_it_answers_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    with start_command(tmp_path, "ui", "--port", port) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(f"http://127.0.0.1:{port}/#/experiments/")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port))  # the server has ended too
