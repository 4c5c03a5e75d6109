"""Where files land, who can read them, and stores and folders that cannot be used."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.execution.thread_backend import ThreadBackend
from fmnist_search.results.training import Decision, EpochReport
from fmnist_search.tracking.local_store import open_run_reader
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.study_runs import open_study_run
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workspace import Workspace, sqlite_uri
from tests.integration.conftest import (
    TINY_STUDY,
    CommandResult,
    FinishedStudy,
    RunCommand,
    clean_environment,
    copy_study,
    python_arguments,
    run_command,
)

STRANGE_NAMES = ["is it good?", "100%25", "x%20y", "a#b?c"]
FEW = ["--trials", "1", "--set", "budget.epochs=1", "--set", "finalists.seeds=1", "--set", "finalists.epochs=1"]


def assert_refused(outcome: CommandResult, *expected: str) -> None:
    assert outcome.exit_code == 2, outcome
    (line,) = outcome.errors
    for text in expected:
        assert text in line
    assert "Traceback" not in outcome.stderr


def paths_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---------------------------------------------------------------------------------- folders of any name


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_store_and_its_artifacts_are_in_the_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    store = MlflowStore(sqlite_uri(folder / "mlflow.db"), "fmnist-search")
    run_id = open_study_run(store, "small", None).run_id
    store.client.log_text(run_id, "what we found", "note.txt")
    assert store.read_text(run_id, "note.txt") == "what we found"
    with open_run_reader(store.uri) as reader:
        assert type(reader).__name__ == "LocalStore"
        assert reader.read_text(run_id, "note.txt") == "what we found"
    assert {f"mlruns/fmnist-search/{run_id}/artifacts/note.txt", "mlflow.db"} <= paths_below(folder)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.slow
def test_a_search_keeps_all_its_files_in_a_folder_of_any_name(tmp_path: Path) -> None:
    name = " ".join(STRANGE_NAMES)
    folder = tmp_path / name
    folder.mkdir()
    (folder / "tiny.toml").write_text(TINY_STUDY)
    outcome = run_command(folder, "search", "tiny.toml", *FEW, plots=True)
    assert outcome.exit_code == 0, outcome.stderr
    assert os.listdir(tmp_path) == [name]
    found = paths_below(folder)
    weights = "fmnist-search/weights/tiny/000.pt"
    assert {"mlflow.db", "fmnist-search/optuna.db", "fmnist-search/outbox.db", weights} <= found
    assert [path for path in found if path.endswith("/artifacts/MLmodel")]
    assert [path for path in found if path.endswith("/artifacts/study.toml")]
    assert run_command(folder, "predict", "--test-images", "0:1").exit_code == 0
    assert run_command(folder, "show").exit_code == 0
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ('experiment="../../../x"', "experiment: '../../../x' is not a valid name"),
        ('experiment="/var/tmp/x"', "experiment: '/var/tmp/x' is not a valid name"),
        ('name="train"', "name: 'train' is reserved"),
        (f'name="{"火" * 150}"', "has 450 bytes"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_before_anything_starts(
    command: RunCommand, tiny: Path, setting: str, expected: str
) -> None:
    assert_refused(command("search", "tiny.toml", "--set", setting), "tiny.toml: ", expected)
    assert os.listdir(tiny.parent) == ["tiny.toml"]


# ---------------------------------------------------------------------------------- file modes


def open_to_others(folder: Path) -> list[str]:
    """Return the files and folders, except study files, that somebody else may read or enter."""
    paths = [path for path in folder.rglob("*") if path.suffix != ".toml" or "artifacts" in path.parts]
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # SQLite's journal goes at any moment
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                found.append(str(path.relative_to(folder)))
    return found


def test_files_of_a_search_are_readable_by_their_owner_alone(tiny_study: FinishedStudy) -> None:
    assert open_to_others(tiny_study.folder) == []


def test_files_that_a_python_program_creates_are_readable_by_their_owner_alone(tiny: Path) -> None:
    databases: set[str] = set()
    violations: set[str] = set()

    def look(_: EpochReport) -> Decision:
        databases.update(path.name for path in tiny.parent.rglob("*.db*"))
        violations.update(open_to_others(tiny.parent))
        return Decision.CONTINUE

    config = StudyConfig.load(tiny, {"finalists.recipes": 0, "budget.trials": 1, "budget.epochs": 2})
    workspace = Workspace(sqlite_uri(tiny.parent / "store" / "mlflow.db"), tiny.parent / "apart" / "work")
    (tiny.parent / "store").mkdir(0o700)
    before = os.umask(0o022)
    try:
        run_study(
            config,
            workspace=workspace,
            tracking=TrackingOptions(plot_interval=None),
            stopper=look,
            backend_factory=ThreadBackend,
        )
        assert os.umask(0o022) == 0o022  # the program's own files have the modes that they had
    finally:
        os.umask(before)
    assert {"mlflow.db", "optuna.db", "optuna.db-wal", "optuna.db-shm", "outbox.db", "outbox.db-wal"} <= databases
    assert violations == set()
    assert open_to_others(tiny.parent) == []
    assert (tiny.parent / "apart" / "work" / "weights" / "tiny" / "000.pt").exists()


# ---------------------------------------------------------------------------------- folders that cannot be written


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "tiny.toml", "--workdir", "/proc/x"], "/proc/x: cannot be written"),
        (["search", "tiny.toml", "--tracking-uri", "sqlite:////proc/x.db", "--workdir", "."], "/proc: cannot be writ"),
        (["train", "lenet", "--tracking-uri", "sqlite:////proc/x.db"], "/proc/fmnist-search: cannot be written"),
        (["gc", "--tracking-uri", "sqlite:////proc/x.db"], "/proc: cannot be written"),
    ],
)
def test_a_folder_that_cannot_be_written_is_noticed_first(
    command: RunCommand, tiny: Path, arguments: list[str], expected: str
) -> None:
    started = time.monotonic()
    assert_refused(command(*arguments), expected)
    assert time.monotonic() - started < 30
    assert os.listdir(tiny.parent) == ["tiny.toml"]


# ---------------------------------------------------------------------------------- stores that do not answer


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
@pytest.mark.parametrize("arguments", [["search", "tiny.toml"], ["status"], ["predict", "--test-images", "0:1"]])
def test_a_store_in_memory_is_refused(command: RunCommand, tiny: Path, uri: str, arguments: list[str]) -> None:
    assert_refused(command(*arguments, "--tracking-uri", uri), f"tracking {uri}: names no file", "sqlite:///mlflow.db")
    assert_refused(command(*arguments, MLFLOW_TRACKING_URI=uri), f"tracking {uri}: names no file")
    assert os.listdir(tiny.parent) == ["tiny.toml"]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_database_that_is_not_there_is_reported_soon_and_without_its_password(
    command: RunCommand, tiny: Path
) -> None:
    started = time.monotonic()
    for uri in ("postgresql+psycopg://me:hidden@127.0.0.1:1/db", "http://me:hidden@127.0.0.1:1"):
        outcome = command("search", "tiny.toml", "--tracking-uri", uri, "--workdir", ".")
        assert_refused(outcome, "***@127.0.0.1:1", "cannot be reached")
        assert "hidden" not in outcome.stdout + outcome.stderr
        outcome = command("doctor", "--json", "--tracking-uri", uri, "--workdir", ".")
        assert "cannot be reached" in outcome.stdout
        assert "hidden" not in outcome.stdout + outcome.stderr
    assert time.monotonic() - started < 60


def test_a_database_without_its_driver_is_an_error_that_names_the_package(command: RunCommand) -> None:
    outcome = command("gc", "--tracking-uri", "mysql+pymysql://me:hidden@127.0.0.1:1/db", "--workdir", ".")
    assert_refused(outcome, "needs the package pymysql", "mysql+pymysql://me:***@127.0.0.1:1/db")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["postgresql+psycopg", "http"])
def test_a_store_that_never_answers_is_reported_soon(command: RunCommand, silent_port: int, scheme: str) -> None:
    started = time.monotonic()
    uri = f"{scheme}://me:hidden@127.0.0.1:{silent_port}/db"
    outcome = command("gc", "--tracking-uri", uri, "--workdir", ".")
    assert_refused(outcome, f"127.0.0.1:{silent_port}/db: the store cannot be reached")
    assert "hidden" not in outcome.stderr
    assert time.monotonic() - started < 20


# ---------------------------------------------------------------------------------- files that cannot be read


@pytest.fixture(scope="module")
def damaged(tiny_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    return copy_study(tiny_study, tmp_path_factory.mktemp("damaged"))


def damage(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "text":
        path.write_text("Dear diary, " * 1_000)
    elif kind == "empty":
        path.touch()
    elif kind == "of another program":
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE recipes (name)")
    else:
        path.symlink_to("/nowhere/optuna.db")


@pytest.mark.parametrize("kind", ["text", "empty", "of another program", "link that leads nowhere"])
def test_studies_that_cannot_be_read_are_an_error_and_not_none(damaged: FinishedStudy, kind: str) -> None:
    path = damaged.folder / "fmnist-search" / "optuna.db"
    damage(path, kind)
    before = path.read_bytes() if path.exists() else None
    for arguments in (["studies", "list"], ["gc"], ["gc", "--delete", "--yes"], ["status"], ["leaderboard"]):
        assert_refused(
            damaged.run(*arguments), f"storage {path}: ", "is damaged" if kind == "text" else "cannot be opened"
        )
    assert (path.read_bytes() if path.exists() else None) == before  # nothing that only reads writes
    assert list((path.parent / "weights" / "tiny").glob("*.pt"))


@pytest.mark.in_process  # reads its log
def test_a_damaged_outbox_is_named_and_commands_that_only_read_go_on_without_it(
    tiny_study: FinishedStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = copy_study(tiny_study, tmp_path)
    path = tmp_path / "fmnist-search" / "outbox.db"
    damage(path, "text")
    named = f"outbox {path}: is damaged (file is not a database)"
    assert study.run("status").exit_code == 0
    (warning,) = (record.getMessage() for record in caplog.records if record.name.startswith("fmnist_search"))
    assert warning.startswith(f"warning: {named}")
    for arguments in (["leaderboard"], ["show", "0"], ["studies", "list"]):
        assert study.run(*arguments).exit_code == 0
    for arguments in (["sync"], ["search", "tiny.toml", "--trials", "5"]):
        assert_refused(study.run(*arguments), named, f"`mv {path} {path.with_name('damaged-outbox.db')}`")
    assert named in study.run("doctor").stdout
    assert path.read_text().startswith("Dear diary")


# ---------------------------------------------------------------------------------- users without a name


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "-U", "--map-user=12345", "true"], capture_output=True).returncode != 0,
    reason="needs user namespaces",
)
def test_a_user_without_name_and_home_can_search_train_and_check(tiny: Path, tmp_path: Path) -> None:
    environment = clean_environment(TMPDIR=str(tmp_path))
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        environment.pop(name, None)
    become = ["unshare", "-U", "--map-user=12345", "--map-group=12345"]
    train = ["train", "lenet", "--epochs", "1", "--set", "data.train_images=500"]
    arguments = python_arguments(["search", "tiny.toml", *FEW], train, ["doctor"], plots=True)
    command = [*become, sys.executable, *arguments]
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert "error" not in outcome.stderr.lower()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        users = database.execute("SELECT DISTINCT value FROM tags WHERE key = 'mlflow.user'").fetchall()
    assert users == [("12345",)]
