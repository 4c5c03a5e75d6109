"""The contract of a storage: writers wait for each other, it is created once, and every failure is one line."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from fmnist_search.errors import UserError
from fmnist_search.search.storage import open_storage
from fmnist_search.workspace import sqlite_uri

optuna.logging.set_verbosity(optuna.logging.WARNING)


def storage_error(url: str) -> str:
    with pytest.raises(UserError) as caught:
        open_storage(url)
    (line,) = caught.value.lines
    assert "\n" not in line
    assert line.startswith("storage ")
    return line


def test_new_storage_waits_a_minute_and_lets_readers_read(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'optuna.db'}")
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000


def test_write_ahead_logging_stays_in_the_file(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path / 'optuna.db'}").remove_session()
    # Connections of other programs, such as optuna-dashboard, use it as well.
    connection = sqlite3.connect(tmp_path / "optuna.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    optuna.create_study(storage=open_storage(url), study_name="s")
    writer = sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE studies SET study_name = 't'")
    reader = sqlite3.connect(tmp_path / "optuna.db", timeout=0)
    assert reader.execute("SELECT study_name FROM studies").fetchall() == [("s",)]
    writer.execute("COMMIT")
    assert reader.execute("SELECT study_name FROM studies").fetchall() == [("t",)]
    writer.close()
    reader.close()


def test_folders_are_created_and_contents_are_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'folders' / 'optuna.db'}"
    optuna.create_study(storage=open_storage(url), study_name="s").add_trial(optuna.create_trial(value=0.5))
    assert optuna.load_study(storage=open_storage(url), study_name="s").best_value == 0.5


@pytest.mark.parametrize("name", ["with space", "größer", "a%20b", "a#b", "a?b=c", "it's"])
def test_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    open_storage(sqlite_uri(folder / "optuna.db"))
    assert (folder / "optuna.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


# ----------------------------------------------------------------------------------------- failures


def test_file_that_is_not_a_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    path.write_text("Dear diary, " * 1_000)
    assert str(path) in storage_error(f"sqlite:///{path}")
    assert path.read_text().startswith("Dear diary")


def test_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    assert str(tmp_path) in storage_error(f"sqlite:///{tmp_path}")


def test_path_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "optuna.db", tmp_path / "file" / "folder" / "optuna.db"):
        assert str(path) in storage_error(f"sqlite:///{path}")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write")
def test_folder_that_cannot_be_written_is_an_error() -> None:
    assert "/proc/optuna.db" in storage_error("sqlite:////proc/optuna.db")
    assert "/proc/folder/optuna.db" in storage_error("sqlite:////proc/folder/optuna.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    open_storage(f"sqlite:///{path}").remove_session()
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        assert str(path) in storage_error(f"sqlite:///{path}")
    finally:
        tmp_path.chmod(0o700)


def test_database_of_a_later_optuna_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    open_storage(f"sqlite:///{path}").remove_session()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0'")
    connection.execute("UPDATE version_info SET library_version = '99.0.0'")
    connection.commit()
    connection.close()
    assert str(path) in storage_error(f"sqlite:///{path}")


def test_password_is_not_shown() -> None:
    line = storage_error("postgresql+nodriver://me:secret@127.0.0.1:1/optuna")
    assert "127.0.0.1" in line
    assert "secret" not in line


# ---------------------------------------------------------------------------------- several processes

OPEN_ON_SIGNAL_SCRIPT = """
import sys
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.search.study_store import StudyStore

space = {"cnn": {"depth": [1, 2]}}
config = StudyConfig.from_dict({"name": "shared", "budget": {"trials": 1}, "space": space})
print("ready", flush=True)
for url in sys.stdin:
    print(StudyStore.open(url.strip(), config).config.name, flush=True)
"""


def test_two_processes_create_the_same_storage_at_once(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_ON_SIGNAL_SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(2)
    ]
    streams = [(worker.stdin, worker.stdout) for worker in workers]
    assert all(answers and answers.readline() == "ready\n" for _, answers in streams)
    # Several rounds, each of which both start within a millisecond.
    urls = [f"sqlite:///{tmp_path / str(attempt) / 'optuna.db'}" for attempt in range(8)]
    for url in urls:
        for orders, _ in streams:
            assert orders
            orders.write(f"{url}\n")
        answers_given = [answers.readline() if answers else "" for _, answers in streams]
        if answers_given != ["shared\n", "shared\n"]:
            break
    errors = [worker.communicate()[1] for worker in workers]
    assert [(worker.returncode, error) for worker, error in zip(workers, errors, strict=True)] == [(0, ""), (0, "")]
    for url in urls:
        assert optuna.get_all_study_names(open_storage(url)) == ["shared"]
