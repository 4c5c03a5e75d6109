"""--storage: studies in another SQLite file or in PostgreSQL, for every command."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmnist_search.search.lease import Lease
from fmnist_search.search.storage import NO_STUDY_YET, open_storage
from fmnist_search.search.study_store import StudyStore
from tests.integration.conftest import clean_environment, run_command
from tests.integration.servers import free_port
from tests.support.pages import ROOT
from tests.support.postgresql import postgresql_server
from tests.support.studies import make_study

PASSWORD = "jnt83gvqpw"


def test_studies_are_read_from_the_storage_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = "sqlite:///elsewhere/studies.db"
    StudyStore.open(url, make_study())
    assert "small" in run_command(tmp_path, "studies", "list", "--storage", url).stdout
    assert run_command(tmp_path, "status", "small", "--storage", url).exit_code == 0
    assert run_command(tmp_path, "status", "small", FMNIST_SEARCH_STORAGE=url).exit_code == 0
    assert run_command(tmp_path, "status", "small").errors == [f"error: {tmp_path}/fmnist-search: {NO_STUDY_YET}"]


def test_a_storage_that_is_not_supported_is_one_line(tmp_path: Path) -> None:
    refused = run_command(tmp_path, "status", "--storage", "mysql://me:secret@host/db")
    (line,) = refused.errors
    assert line.startswith(
        "error: storage mysql://me:***@host/db: is not supported; give sqlite:///FILE or postgresql:"
    )


NETWORK_MOUNT_SCRIPT = """
import ctypes, json, os, sys
from fmnist_search.cli.app import main

NEW_MOUNTS, PRIVATE, BIND = 0x20000, 0x44000, 0x1000
libc = ctypes.CDLL(None)
if libc.unshare(NEW_MOUNTS) or libc.mount(None, b"/", None, PRIVATE, None):
    sys.exit("no right to mount")
table = sys.argv[1].encode()
if libc.mount(table, b"/proc/self/mounts", None, BIND, None):
    sys.exit("no right to mount")
for words in map(json.loads, sys.argv[2:]):
    try:
        main(words)
    except SystemExit as ended:
        print(json.dumps([ended.code, os.listdir()]))
"""
"""Runs commands in a process with another table of mounted file systems; prints what each leaves."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file")
def test_sqlite_files_on_a_network_file_system_are_refused_before_anything_is_written(tiny: Path) -> None:
    table = tiny.parent.with_name("mounts")
    table.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/home {tiny.parent.resolve()} nfs4 rw 0 0\n")

    commands = [["search", "tiny.toml"], ["train", "lenet"], ["status"]]
    done = subprocess.run(
        [sys.executable, "-c", NETWORK_MOUNT_SCRIPT, str(table), *map(json.dumps, commands)],
        cwd=tiny.parent,
        env=clean_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "no right to mount" in done.stderr:
        pytest.skip("no right to mount")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[2, ["tiny.toml"]]] * 3, done.stderr
    lines = [line for line in done.stderr.splitlines() if "is on a network file system (nfs4)" in line]
    assert [line.split()[1].rpartition("/")[2] for line in lines] == ["optuna.db:", "outbox.db:", "mlflow.db:"] * 2
    assert "holds no study yet" in done.stderr.splitlines()[-1]  # reading is not refused


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    with postgresql_server() as server:
        url = server.create_database()
        server.require_password("me", PASSWORD)
        server.psql(f"ALTER DATABASE {url.partition('?')[0].rpartition('/')[2]} OWNER TO me;")
        yield url.replace("postgres:@", f"me:{PASSWORD}@")


@pytest.mark.slow
def test_a_study_in_postgresql_is_searched_read_and_promoted(tiny: Path, postgresql_url: str) -> None:
    storage = ("--storage", postgresql_url)
    folder = tiny.parent
    found = run_command(folder, "search", "tiny.toml", *storage)
    assert found.exit_code == 0, found.stderr
    assert "4 new trials" in found.stderr
    assert not list(folder.rglob("optuna.db"))
    assert "4 completed" in run_command(folder, "status", *storage).stdout
    assert len(run_command(folder, "leaderboard", "--json", *storage).json) == 4
    assert "tiny" in run_command(folder, "studies", "list", *storage).stdout
    with Lease.acquire(open_storage(postgresql_url), "tiny", heartbeat_seconds=15, lease_seconds=60):
        for command in (("search", "tiny.toml"), ("promote", "tiny")):
            refused = run_command(folder, *command, *storage)
            assert refused.exit_code == 2
            assert "study 'tiny': is searched by process" in refused.stderr
    promoted = run_command(folder, "promote", "tiny", *storage)
    assert promoted.exit_code == 0, promoted.stderr
    assert "registered as models:/fmnist-search/2" in promoted.stdout
    for file in folder.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_the_dashboard_shows_a_study_in_postgresql(postgresql_url: str) -> None:
    from fmnist_search.search.dashboard import dashboard_server

    StudyStore.open(postgresql_url, make_study())
    port = free_port()
    with dashboard_server(postgresql_url, port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/api/studies")
        names = [study["study_name"] for study in json.loads(connection.getresponse().read())["study_summaries"]]
        server.shutdown()
        thread.join()
    assert "small" in names
