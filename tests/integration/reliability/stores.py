"""What tests read from the stores while a search runs, and what must hold in them afterwards."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.soak.invariants import check_study
from benchmarks.soak.stores import StoredRun, read_runs, read_trials
from fmnist_search.results.study import TrialRecord
from fmnist_search.search.study_store import StudyStore
from tests.support.command_server import RunningCommand

OPTUNA, MLFLOW = "fmnist-search/optuna.db", "mlflow.db"
EPOCHS = """
SELECT COUNT(*) FROM trial_intermediate_values JOIN trials USING (trial_id) WHERE number = ?
"""


def query(database: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Return the rows that a database has at this moment; none while it or its tables do not exist."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute(statement, values).fetchall()
    except sqlite3.Error:
        return []


def reported_epochs(folder: Path, trial: int) -> int:
    """Return how many epochs of a trial Optuna knows at this moment."""
    rows = query(folder / OPTUNA, EPOCHS, trial)
    return int(rows[0][0]) if rows else 0


def wait_until(
    condition: Callable[[], object], process: RunningCommand, seconds: float = 120, interval: float = 0.02
) -> None:
    """Wait until the condition is true, in seconds. Fail with the output of the process if it ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(interval)


def databases(folder: Path) -> list[Path]:
    """Return the databases that a search in a folder writes."""
    return [folder / OPTUNA, folder / OPTUNA.replace("optuna", "outbox"), folder / MLFLOW]


def records(folder: Path, study: str = "tiny") -> list[TrialRecord]:
    """Return the trials of a study that have ended."""
    return StudyStore.load(f"sqlite:///{folder / OPTUNA}", study).trial_records()


def runs_of_trial(folder: Path, trial: int) -> list[StoredRun]:
    """Return the runs of a trial in MLflow."""
    return [run for run in read_runs(folder / MLFLOW) if run.tags.get("trial") == str(trial)]


def assert_whole(folder: Path, budget: int, study: str = "tiny") -> None:
    """Assert that both stores hold each trial of a budget once, with all its epochs, and nothing that has not ended."""
    trials = read_trials(f"sqlite:///{folder / OPTUNA}", study)
    runs = [run for run in read_runs(folder / MLFLOW) if run.tags.get("study") == study]
    found = check_study(trials, records(folder, study), runs, budget)
    broken = [invariant for invariant in found if not invariant.holds]
    assert not broken, broken
    checkpoints = folder / "fmnist-search" / "checkpoints" / study
    left = [path for path in checkpoints.rglob("*") if path.is_file()]
    assert not left, left
