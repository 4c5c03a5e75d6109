"""Ctrl-C in the middle of a real study: nothing is lost, and the same command finishes it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from fmnist_search import run_study
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.results.study import StopReason, StudySummary
from fmnist_search.results.training import EpochReport
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.lookup import status
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workspace import Workspace
from tests.integration.conftest import (
    CommandResult,
    clean_environment,
    run_command,
    run_interrupted_command,
    start_command,
)


def load_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{folder / 'fmnist-search' / 'optuna.db'}"
    return optuna.load_study(study_name="tiny", storage=url).trials


def run_statuses(folder: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    return sorted(run.info.status for run in client.search_runs([experiment.experiment_id]))


def assert_went_on(folder: Path, interrupted: optuna.trial.FrozenTrial) -> None:
    """Assert that the interrupted trial went on from its last epoch in its run, and that no run is open."""
    trial = load_trials(folder)[interrupted.number]
    assert trial.state is TrialState.COMPLETE
    assert (trial.params, trial.user_attrs["recipe"]) == (interrupted.params, interrupted.user_attrs["recipe"])
    assert interrupted.intermediate_values.items() <= trial.intermediate_values.items()
    assert set(run_statuses(folder)) == {"FINISHED"}
    assert logged_epochs(folder, trial) == sorted(trial.intermediate_values)
    assert not (folder / "fmnist-search" / "checkpoints").exists() or not list(
        (folder / "fmnist-search" / "checkpoints").rglob("*.ckpt")
    )


def logged_epochs(folder: Path, trial: optuna.trial.FrozenTrial) -> list[int]:
    """Return the steps of the validation accuracy that MLflow has of a trial, also those that it has twice."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs(["1"], f"tags.kind = 'trial' AND tags.trial = '{trial.number}'")
    return sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "val/accuracy"))


def run(
    config: StudyConfig, folder: Path, callback: StudyCallback | None = None, *, track: bool = True
) -> StudySummary:
    return run_study(
        config,
        workspace=Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}"),
        tracking=TrackingOptions(enabled=track, plot_interval=None),
        callback=callback,
    )


def test_an_interrupted_study_continues_and_gives_what_an_uninterrupted_one_gives(tiny: Path, tmp_path: Path) -> None:
    class Interrupter(StudyCallback):
        def on_epoch_end(self, name: str, report: EpochReport) -> None:
            if name.startswith("001"):
                signal.raise_signal(signal.SIGINT)

    config = StudyConfig.load(
        tiny, {"sampler": "random", "budget.trials": 2, "budget.epochs": 3, "finalists.recipes": 0}
    )
    summary = run(config, tmp_path, Interrupter())
    assert summary.stop_reason is StopReason.INTERRUPTED
    completed, interrupted, *_ = load_trials(tmp_path)
    assert completed.state is TrialState.COMPLETE
    assert interrupted.user_attrs["outcome"]["state"] == "interrupted"
    assert len(interrupted.intermediate_values) == 2  # the epoch after the signal is the last one
    assert run_statuses(tmp_path) == ["FINISHED", "KILLED", "KILLED"]

    continued = run(config, tmp_path)
    assert continued.stop_reason is StopReason.TRIALS
    assert all(record.overhead.seconds > 0 for record in continued.trials)
    assert_went_on(tmp_path, interrupted)
    (tmp_path / "uninterrupted").mkdir()
    run(config, tmp_path / "uninterrupted", track=False)
    expected = [trial.value for trial in load_trials(tmp_path / "uninterrupted")]
    assert [trial.value for trial in load_trials(tmp_path) if trial.state is TrialState.COMPLETE] == expected


@pytest.mark.slow
def test_an_interrupted_promotion_registers_nothing_and_the_same_command_repeats_it(tiny: Path, tmp_path: Path) -> None:
    def is_confirming() -> bool:
        url = f"file:{tmp_path / 'mlflow.db'}?mode=ro"  # which does not create it
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(url, uri=True)) as store:
            return bool(store.execute("SELECT 1 FROM tags WHERE key = 'kind' AND value = 'finalist'").fetchall())
        return False

    arguments = ["search", "tiny.toml", "--threads", "1", "--trials", "1", "--set", "budget.epochs=1"]
    long_arguments = [*arguments, "--set", "finalists.epochs=1000"]
    interrupted = run_interrupted_command(tmp_path, *long_arguments, until=is_confirming)
    assert interrupted.exit_code == 130, interrupted.stderr
    (hint,) = re.findall("`(fmnist-search .*)` continues the study", interrupted.stderr)
    assert sorted(shlex.split(hint)[1:]) == sorted(long_arguments)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.search_registered_models() == []
    finished = run_command(tmp_path, *arguments)
    assert finished.exit_code == 0, finished.stderr
    assert "nothing left to do" in finished.stderr
    assert client.get_model_version_by_alias("fmnist-search", "champion")


def signal_after(prefix: str, process: subprocess.Popen[str], *signals: signal.Signals) -> CommandResult:
    """Send the signals soon after a line with this prefix, while the training that follows it runs."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(prefix):
            break
    time.sleep(0.7)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    stdout, stderr = process.communicate(timeout=120)
    return CommandResult(process.returncode, stdout, "".join(lines) + stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [pytest.param([signal.SIGINT], id="ctrl-c"), pytest.param([signal.SIGINT, signal.SIGTERM], id="mlflow run")],
)
def test_a_process_that_gets_signals_ends_with_everything_stored_and_the_same_command_finishes_the_study(
    tiny: Path, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    long_trials = ["--set", "data.train_images=6000", "--set", "budget.epochs=3", "--set", "finalists.recipes=0"]
    arguments = ["search", "tiny.toml", "--threads", "1", "--trials", "2", *long_trials]
    result = signal_after("000 ", start_command(tmp_path, *arguments), *signals)
    assert result.exit_code == 130, result.stderr
    (hint,) = re.findall("`(fmnist-search .*)` continues the study", result.stderr)
    assert sorted(shlex.split(hint)[1:]) == sorted(arguments)
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "fmnist-search").glob("*-wal"))  # all is in the database itself
    completed, interrupted, *_ = load_trials(tmp_path)
    assert completed.state is TrialState.COMPLETE
    assert interrupted.user_attrs["outcome"]["state"] == "interrupted"
    workspace = Workspace.resolve(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = status(workspace=workspace).trials[interrupted.number].run_id
    assert run_id
    assert MlflowClient(workspace.tracking_uri).get_run(run_id).info.status == "KILLED"

    assert run_command(tmp_path, *arguments).exit_code == 0
    assert sum(trial.state is TrialState.COMPLETE for trial in load_trials(tmp_path)) == 2
    assert_went_on(tmp_path, interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("is_ignored", "exit_code"), [(False, 130), (True, 0)], ids=["sighup", "nohup"])
def test_a_search_whose_terminal_is_closed_ends_with_everything_stored_or_goes_on_if_it_ignores_that(
    is_ignored: bool, exit_code: int, tiny: Path, tmp_path: Path
) -> None:
    options = ["--threads", "1", "--trials", "2", "--set", "data.train_images=6000", "--set", "finalists.recipes=0"]
    command = [sys.executable, "-m", "fmnist_search", "search", "tiny.toml", *options]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
        os.execve(command[0], command, clean_environment(TERM="xterm"))
    written = b""
    while b"000 " not in written:
        written += os.read(terminal, 65_536)
    os.close(terminal)  # the kernel sends SIGHUP, and writing is an error from now on
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == exit_code
    assert "RUNNING" not in run_statuses(tmp_path)
    completed = sum(trial.state is TrialState.COMPLETE for trial in load_trials(tmp_path))
    assert completed == 2 if is_ignored else completed < 2
