"""Commands in a folder that cannot be written, such as a read-only mount or the folder of another user."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.conftest import FinishedStudy, copy_study
from tests.support.permissions import nothing_writable

pytestmark = pytest.mark.in_process  # `nothing_writable` holds in the thread that enters it

READING = [
    ["status"],
    ["status", "--all"],
    ["leaderboard"],
    ["show", "0"],
    ["studies", "list"],
    ["compare", "0", "1"],
    ["watch", "tiny"],
    ["search", "tiny.toml", "--dry-run"],
]
WRITING = [["search", "tiny.toml"], ["promote", "tiny"], ["sync"], ["studies", "copy", "quick"]]


def read_everything(study: FinishedStudy) -> list[tuple[int, str]]:
    outcomes = [study.run(*words) for words in READING]
    return [(outcome.exit_code, outcome.stdout) for outcome in outcomes]


def leave_logs(study: FinishedStudy, folder: Path, *, index: bool) -> FinishedStudy:
    """Return a copy of a study whose process was killed, so that the last writes are in write-ahead logs."""
    databases = [study.folder / "fmnist-search" / name for name in ("optuna.db", "outbox.db")]
    with closing(sqlite3.connect(databases[0])) as one, closing(sqlite3.connect(databases[1])) as other:
        for connection in (one, other):
            connection.execute("CREATE TABLE of_ours (x)")
            connection.commit()
        copied = copy_study(study, folder)
    for path in (folder / "fmnist-search").glob("*-shm"):
        assert path.with_name(path.name.replace("-shm", "-wal")).stat().st_size > 0
        if not index:
            path.unlink()
    return copied


@pytest.mark.parametrize("kind", ["closed", pytest.param("log", marks=pytest.mark.slow), "log without its index"])
def test_what_is_stored_can_be_read_where_nothing_can_be_written(
    finished: FinishedStudy, tmp_path: Path, kind: str
) -> None:
    study = copy_study(finished, tmp_path / "closed")
    if kind != "closed":
        study = leave_logs(study, tmp_path / "killed", index=kind == "log")
    paths = {path.relative_to(study.folder) for path in study.folder.rglob("*")}
    with nothing_writable(study.folder):
        found = read_everything(study)
    assert {path.relative_to(study.folder) for path in study.folder.rglob("*")} == paths
    assert [code for code, _ in found] == [0] * len(READING)
    assert found == read_everything(study)


@pytest.mark.parametrize("words", WRITING)
def test_a_command_that_must_write_says_what_it_cannot_write(finished: FinishedStudy, words: list[str]) -> None:
    with nothing_writable(finished.folder):
        outcome = finished.run(*words)
    assert outcome.exit_code == 2
    (line,) = outcome.errors
    assert "Permission denied" in line
    assert "Traceback" not in outcome.stderr
