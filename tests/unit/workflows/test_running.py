"""Sessions that run are found by other processes, and only their own processes get signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fmnist_search.errors import UserError
from fmnist_search.processes import process_identity
from fmnist_search.workflows.study.running import RunningSession, announced, find_running, interrupt, running_sessions
from fmnist_search.workspace import Workspace

ANNOUNCE = """
import sys, time
from pathlib import Path
from fmnist_search.workflows.study.running import announced
with announced(Path(sys.argv[1]), "other"):
    print("announced", flush=True)
    time.sleep(60)
"""


def studies(folder: Path) -> list[str]:
    return [session.study for session in running_sessions(folder)]


def test_a_session_is_found_while_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    assert studies(folder) == []
    with announced(folder, "first"):
        (session,) = running_sessions(folder)
        assert (session.process_id, session.machine) == (os.getpid(), socket.gethostname())
        with announced(folder, "second"):
            assert studies(folder) == ["first", "second"]
        assert studies(folder) == ["first"]
        (file,) = folder.iterdir()
        assert file.stat().st_mode & 0o077 == 0
    assert list(folder.iterdir()) == []


def test_the_session_of_a_killed_process_does_not_run_and_its_file_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ANNOUNCE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        assert process.stdout.readline() == "announced\n"
        assert [session.process_id for session in running_sessions(tmp_path)] == [process.pid]
        process.kill()
        process.wait()
    assert len(list(tmp_path.iterdir())) == 1
    assert studies(tmp_path) == []
    with announced(tmp_path, "next"):
        assert len(list(tmp_path.iterdir())) == 1


def test_a_file_without_a_lock_is_no_session_even_if_its_process_runs(tmp_path: Path) -> None:
    content = {"study": "left", "process": process_identity(), "started_at": time.time(), "handles_signals": True}
    (tmp_path / "left.json").write_text(json.dumps(content))
    assert studies(tmp_path) == []


def test_the_study_to_stop_is_the_only_one_that_runs_or_the_named_one(tmp_path: Path) -> None:
    workspace = Workspace("sqlite:///mlflow.db", tmp_path)
    with pytest.raises(UserError, match="no study is running here"):
        find_running(workspace)
    with pytest.raises(UserError, match="study 'first' is not running here"):
        find_running(workspace, "first")
    with announced(workspace.sessions_folder, "first"):
        assert [session.study for session in find_running(workspace)[1]] == ["first"]
        with pytest.raises(UserError, match=r"study 'frist': is not running; did you mean 'first'\?"):
            find_running(workspace, "frist")
        with announced(workspace.sessions_folder, "second"):
            with pytest.raises(UserError, match="several studies are running; give the name of one: first, second"):
                find_running(workspace)
            assert [session.study for session in find_running(workspace, "second")[1]] == ["second"]


@pytest.mark.parametrize(
    ("process", "handles_signals", "message"),
    [
        ("{machine} {number} 1000", True, "cannot be seen from here"),
        ("{machine} 999999999 1000", True, "cannot be seen from here"),
        ("elsewhere {number} 1000", True, "runs on the machine 'elsewhere'"),
        (process_identity(), False, "runs in a thread"),
    ],
    ids=["reused process id", "no process", "other machine", "thread"],
)
def test_no_other_process_gets_a_signal(process: str, handles_signals: bool, message: str) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        identity = process.format(machine=socket.gethostname(), number=os.getpid())
        with pytest.raises(UserError, match=message):
            interrupt(RunningSession("small", identity, time.time(), handles_signals))
        assert received == []
        interrupt(RunningSession("small", process_identity(), time.time(), True))
        assert received == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"study": "x"}', '{"study": "x", "process": "", "started_at": 1}'])
def test_a_damaged_file_is_no_session(tmp_path: Path, content: str) -> None:
    with announced(tmp_path, "tiny"):
        (tmp_path / "damaged.json").write_text(content)
        (tmp_path / "bytes.json").write_bytes(b"\xff\x00")
        assert studies(tmp_path) == ["tiny"]
