"""A search whose process is killed: the same command goes on, and the stores end as if nothing had happened."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.soak.stores import read_runs
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.processes import process_identity
from fmnist_search.search.lease import DRIVERS, Lease
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.study_runs import open_study_run
from tests.integration.conftest import TINY_STUDY, FinishedStudy, copy_study, fork_command, run_command
from tests.integration.reliability.stores import (
    MLFLOW,
    OPTUNA,
    assert_whole,
    query,
    records,
    reported_epochs,
    runs_of_trial,
    wait_until,
)

SEARCH = ["search", "tiny.toml", "--threads", "1", "--set", "data.train_images=3000", "--set", "finalists.recipes=0"]
SEARCH += ["--set", "data.validation=500", "--set", "execution.checkpoint_seconds=0"]
EPOCHS = 5
START = '[start]\nrecipes = [{ batch_size = 100, "optimizer.learning_rate" = 0.01 }]\n'
ONE_RATE = TINY_STUDY.replace("{ low = 3e-3, high = 3e-2, log = true }", "0.01")
STUDIES = {
    "start recipe": f"{TINY_STUDY}\n{START}".replace('"tpe"\nstartup_trials = 2', '"tpe"\nstartup_trials = 1'),
    "grid point": ONE_RATE.replace('"tpe"\nstartup_trials = 2', '"grid"'),
    "survivor": TINY_STUDY.replace("startup_trials = 8", 'name = "one-epoch"\nsurvivors = 1'),
}


def run_alike(first: Path, second: Path, changes: dict[str, int]) -> None:
    """Let the study of the second folder run its trials as that of the first: the fastest way varies by the moment."""
    fixed = {"execution.threads": 1, "execution.checkpoint_seconds": 0}
    changes = {"data.train_images": 3000, "data.validation": 500, "finalists.recipes": 0, **fixed, **changes}
    (second / OPTUNA).parent.mkdir()
    study = StudyStore.open(f"sqlite:///{second / OPTUNA}", StudyConfig.load(second / "tiny.toml", changes))
    runtime = StudyStore.load(f"sqlite:///{first / OPTUNA}").runtime
    assert runtime
    study.runtime = runtime


def test_the_run_of_a_study_is_used_whose_search_was_killed_before_it_stored_the_run(tiny: Path) -> None:
    storage = open_storage(f"sqlite:///{tiny.parent / OPTUNA}")
    store = MlflowStore(f"sqlite:///{tiny.parent / MLFLOW}", "fmnist-search")
    with Lease.acquire(storage, "tiny", 5, 60) as lease, subprocess.Popen(["sleep", "60"]) as process:
        created = open_study_run(store, "tiny", None, lease.session)
        with storage.engine.begin() as connection:
            connection.execute(sa.update(DRIVERS).values(process=process_identity(process.pid)))
        process.kill()
        process.wait()
        search = run_command(tiny.parent, "search", "tiny.toml", "--set", "finalists.recipes=0", "--trials", "1")
    assert search.exit_code == 0, search.stderr
    (run,) = (run for run in read_runs(tiny.parent / MLFLOW) if run.tags["kind"] == "study")
    assert (run.run_id, run.status) == (created.run_id, "FINISHED")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "killed", "trials", "number"),
    [
        ("start recipe", 0, 2, signal.SIGKILL),
        ("grid point", 0, 2, signal.SIGQUIT),
        ("survivor", 2, 3, signal.SIGKILL),
    ],
)
def test_the_trial_of_a_killed_search_goes_on_with_the_next_command(
    tmp_path: Path, study: str, killed: int, trials: int, number: signal.Signals
) -> None:
    (tmp_path / "tiny.toml").write_text(STUDIES[study])
    arguments = [*SEARCH, "--set", f"budget.epochs={EPOCHS}", "--trials", str(trials)]
    process = fork_command(tmp_path, *arguments)
    wait_until(lambda: reported_epochs(tmp_path, killed) >= 2 and runs_of_trial(tmp_path, killed), process)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == -number
    assert f"{killed:03d} " not in stderr  # it has not ended
    (run,) = runs_of_trial(tmp_path, killed)

    finished = run_command(tmp_path, *arguments)
    assert finished.exit_code == 0, finished.stderr
    assert "RUNNING" not in finished.stderr  # its run goes on, which is no finding
    assert_whole(tmp_path, trials)
    (continued,) = runs_of_trial(tmp_path, killed)
    assert continued.run_id == run.run_id
    uninterrupted = tmp_path / "uninterrupted"
    uninterrupted.mkdir()
    (uninterrupted / "tiny.toml").write_text(STUDIES[study])
    run_alike(tmp_path, uninterrupted, {"budget.epochs": EPOCHS, "budget.trials": trials})
    assert run_command(uninterrupted, *arguments, "--no-tracking").exit_code == 0
    expected = [(trial.recipe, trial.curve) for trial in records(uninterrupted)]
    assert [(trial.recipe, trial.curve) for trial in records(tmp_path)] == expected


@pytest.mark.slow
def test_a_search_that_is_killed_as_soon_as_optuna_was_told_has_written_all_the_rest_before(tiny: Path) -> None:
    def is_told() -> bool:
        return query(tiny.parent / OPTUNA, "SELECT state FROM trials WHERE number = 0") == [("COMPLETE",)]

    process = fork_command(tiny.parent, *SEARCH, "--trials", "2")
    wait_until(is_told, process, interval=0.002)
    process.kill()
    process.communicate()
    assert (tiny.parent / "fmnist-search" / "weights" / "tiny" / "000.pt").exists()
    assert run_command(tiny.parent, "sync").exit_code == 0
    (run,) = runs_of_trial(tiny.parent, 0)
    assert (run.status, run.tags["state"]) == ("FINISHED", "completed")
    assert run_command(tiny.parent, *SEARCH, "--trials", "2").exit_code == 0
    assert_whole(tiny.parent, 2)


def test_a_trial_whose_outcome_is_stored_counts_although_optuna_was_not_told(
    finished: FinishedStudy, tmp_path: Path
) -> None:
    folder = copy_study(finished, tmp_path).folder
    before = records(folder)
    (last,) = (trial.number for trial in before[-1:])
    with closing(sqlite3.connect(folder / OPTUNA)) as connection:
        (trial_id,) = connection.execute("SELECT trial_id FROM trials WHERE number = ?", (last,)).fetchone()
        connection.execute(
            "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE trial_id = ?", (trial_id,)
        )
        connection.execute("DELETE FROM trial_values WHERE trial_id = ?", (trial_id,))
        connection.commit()
    assert len(records(folder)) == 3
    again = run_command(folder, "search", "tiny.toml")
    assert again.exit_code == 0, again.stderr
    assert "nothing left to do" in again.stderr
    assert records(folder) == before
    assert_whole(folder, 4)
