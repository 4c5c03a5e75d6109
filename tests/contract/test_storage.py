"""The contract of a storage: writers wait for each other, it is created once, and every failure is one line."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from fmnist_search.errors import UserError
from fmnist_search.search.storage import NoStorageError, open_storage
from fmnist_search.search.study_store import StudyStore
from fmnist_search.workspace import resolve_storage_url, sqlite_uri
from tests.support.postgresql import PostgresqlServer

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


def test_file_that_was_deleted_is_not_created_again(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'optuna.db'}")
    storage.remove_session()
    storage.engine.dispose()
    (tmp_path / "optuna.db").unlink()
    with pytest.raises(UserError, match=r"optuna\.db: was deleted or replaced"):
        storage.get_all_studies()
    assert not (tmp_path / "optuna.db").exists()


@pytest.mark.parametrize("name", ["with space", "größer", "a%20b", "a#b", "a?b=c", "it's", "{a}"])
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


def set_versions(url: str, schema: str, library: str) -> None:
    """Store other versions than those of the Optuna that made the tables."""
    with open_storage(url).engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{schema}'")
        connection.exec_driver_sql(f"UPDATE version_info SET library_version = '{library}'")


def test_database_of_a_later_optuna_is_an_error(database_url: str) -> None:
    set_versions(database_url, "v99.0.0", "99.0.0")
    line = storage_error(database_url)
    assert "was made by Optuna 99.0.0, which is newer than" in line
    assert "`pip install -U optuna`" in line


def test_database_of_an_earlier_optuna_is_an_error_with_the_command_that_upgrades_it(database_url: str) -> None:
    set_versions(database_url, "v2.6.0.a", "2.6.0")
    line = storage_error(database_url)
    assert "was made by Optuna 2.6.0, which is older" in line
    assert "`optuna storage upgrade --storage " in line


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "optuna.db", "sqlite+aiosqlite:///optuna.db", "http://h"])
def test_other_kinds_of_storages_are_refused_with_those_that_are_supported(url: str) -> None:
    with pytest.raises(UserError, match="is not supported; give sqlite:///FILE or postgresql://") as caught:
        resolve_storage_url(url)
    assert "secret" not in str(caught.value)


def test_missing_driver_is_an_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    line = storage_error("postgresql://me:secret@127.0.0.1:1/optuna")
    assert line.startswith("storage postgresql://me:***@127.0.0.1:1/optuna: needs the package psycopg; ")
    assert "`pip install 'fmnist-search[postgres]'`" in line


def test_unreachable_server_is_an_error_within_seconds() -> None:
    line = storage_error("postgresql://me:secret@127.0.0.1:1/optuna")
    assert line.startswith("storage postgresql://me:***@127.0.0.1:1/optuna: cannot be opened (")
    assert line.endswith("; start the server, or check the address (--storage or FMNIST_SEARCH_STORAGE)")


@pytest.mark.slow
def test_what_a_server_refuses_is_an_error_with_the_remedy(postgresql: PostgresqlServer) -> None:
    url = sqlalchemy.make_url(postgresql.create_database())
    postgresql.require_password("reader", "right")
    postgresql.psql(f"ALTER DATABASE {url.database} SET default_transaction_read_only = on;")

    def error_of(**changes: str) -> str:
        line = storage_error(url.set(**changes).render_as_string(hide_password=False))
        assert "wrong" not in line.replace("reader:***", "")
        return line

    assert "check the password (PGPASSWORD, ~/.pgpass or the address)" in error_of(username="reader", password="wrong")
    assert "`createdb nothere`" in error_of(database="nothere")
    assert "check the name of the user" in error_of(username="nobody")
    assert "is read-only" in error_of()
    writable = sqlalchemy.make_url(postgresql.create_database()).database
    assert "give the user the right to create tables" in error_of(
        database=str(writable), username="reader", password="right"
    )


@pytest.mark.slow
def test_reading_creates_no_tables_in_a_database(postgresql: PostgresqlServer) -> None:
    url = postgresql.create_database()
    with pytest.raises(NoStorageError, match="holds no study yet"):
        open_storage(url, create=False)
    assert StudyStore.study_names(url) == []
    assert open_storage(url).get_all_studies() == []


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


@pytest.mark.slow
def test_two_processes_create_the_same_tables_in_postgresql_at_once(postgresql: PostgresqlServer) -> None:
    create_at_once([postgresql.create_database() for _ in range(3)])


@pytest.mark.slow
def test_two_processes_create_the_same_storage_at_once(tmp_path: Path) -> None:
    create_at_once([f"sqlite:///{tmp_path / str(attempt) / 'optuna.db'}" for attempt in range(8)])


def create_at_once(urls: list[str]) -> None:
    """Let two processes create each storage, within a millisecond of each other, while this one reads it."""
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
    for url in urls:
        for orders, _ in streams:
            assert orders
            orders.write(f"{url}\n")
        while not is_complete(url):
            assert all(worker.poll() is None for worker in workers), [worker.communicate()[1] for worker in workers]
        answers_given = [answers.readline() if answers else "" for _, answers in streams]
        if answers_given != ["shared\n", "shared\n"]:
            break
    errors = [worker.communicate()[1] for worker in workers]
    assert [(worker.returncode, error) for worker, error in zip(workers, errors, strict=True)] == [(0, ""), (0, "")]
    for url in urls:
        assert optuna.get_all_study_names(open_storage(url)) == ["shared"]


def is_complete(url: str) -> bool:
    """Return whether a storage can be read; until then it is missing, whatever tables it has."""
    try:
        open_storage(url, create=False)
    except NoStorageError:
        return False
    return True
