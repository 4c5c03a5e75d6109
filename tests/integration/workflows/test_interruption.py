"""Ctrl-C in the middle of a real study: nothing is lost, and the same command finishes it."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from tests.integration.conftest import CommandResult, run_command, start_command

LONG_SEARCH_OPTIONS = ["--set", "data.train_images=6000", "--set", "budget.epochs=3", "--set", "finalists.recipes=0"]


def load_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    url = f"sqlite:///{folder / 'fmnist-search' / 'optuna.db'}"
    return optuna.load_study(study_name="tiny", storage=url).trials


def interrupt_after(prefix: str, process: subprocess.Popen[str], *signals: signal.Signals) -> CommandResult:
    """Send the signals soon after a line that begins so, while the training that follows it runs."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith(prefix):
            break
    time.sleep(0.7)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    stdout, stderr = process.communicate(timeout=120)
    return CommandResult(process.returncode, stdout, "".join(seen) + stderr)


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGINT], id="ctrl-c"),
        pytest.param([signal.SIGINT, signal.SIGTERM], id="mlflow run", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_study_is_finished_by_the_same_command(
    tiny: Path, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    arguments = ["search", "tiny.toml", "--threads", "1", *LONG_SEARCH_OPTIONS]
    interrupted = interrupt_after("000 ", start_command(tmp_path, *arguments), *signals)
    assert interrupted.exit_code == 130, interrupted.stderr
    (hint,) = re.findall("`(fmnist-search .*)` continues the study", interrupted.stderr)
    assert sorted(shlex.split(hint)[1:]) == sorted(arguments)
    assert "Traceback" not in interrupted.stderr
    assert not list((tmp_path / "fmnist-search").glob("*-wal"))  # all is in the database itself
    first, second = load_trials(tmp_path)[:2]
    assert first.state is TrialState.COMPLETE
    assert second.user_attrs["outcome"]["state"] == "interrupted"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(second.user_attrs["outcome"]["run_id"]).info.status == "KILLED"

    assert run_command(tmp_path, *arguments).exit_code == 0
    trials = [trial for trial in load_trials(tmp_path) if trial.state is not TrialState.FAIL]
    assert len(trials) == 4
    retried = trials[1]
    assert retried.user_attrs["retry_of"] == second.number
    assert retried.params == second.params
    assert retried.user_attrs["recipe"]["seed"] == second.user_attrs["recipe"]["seed"]
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    states = [r.info.status for r in client.search_runs([experiment.experiment_id])]
    assert "RUNNING" not in states
    assert states.count("KILLED") == 1


def test_an_interrupted_trial_gives_what_it_would_have_given(tiny: Path, tmp_path: Path) -> None:
    arguments = [
        "search",
        "../tiny.toml",
        "--threads",
        "1",
        "--trials",
        "2",
        "--sampler",
        "random",
        *LONG_SEARCH_OPTIONS,
    ]
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    assert run_command(tmp_path / "whole", *arguments).exit_code == 0
    interrupt_after("000 ", start_command(tmp_path / "broken", *arguments), signal.SIGINT)
    assert run_command(tmp_path / "broken", *arguments).exit_code == 0
    whole = [trial.value for trial in load_trials(tmp_path / "whole")]
    mended = [trial.value for trial in load_trials(tmp_path / "broken") if trial.state is TrialState.COMPLETE]
    assert mended == whole


def test_an_interrupted_promotion_registers_nothing_and_is_done_again(tiny: Path, tmp_path: Path) -> None:
    arguments = ["search", "tiny.toml", "--threads", "1", "--trials", "1", "--set", "data.train_images=6000"]
    patience = ["--set", "finalists.epochs=30"]
    interrupted = interrupt_after("confirming", start_command(tmp_path, *arguments, *patience), signal.SIGINT)
    assert interrupted.exit_code == 130, interrupted.stderr
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.search_registered_models() == []
    finished = run_command(tmp_path, *arguments)
    assert finished.exit_code == 0, finished.stderr
    assert "nothing left to do" in finished.stderr
    assert client.get_model_version_by_alias("fmnist-search", "champion")
