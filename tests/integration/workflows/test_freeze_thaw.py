"""A search that pauses and resumes its trials: what a user sees of it, and that an interruption changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.results.study import StopReason, StudySummary
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workspace import Workspace
from tests.integration.conftest import run_command

EPOCHS, TOTAL_EPOCHS, INTERRUPTED_AT = 4, 24, 6


@pytest.fixture
def config(tiny: Path) -> StudyConfig:
    return StudyConfig.load(
        tiny,
        {
            **{
                "sampler": "freeze-thaw",
                "pruner": "none",
                "budget.trials": 20,
                "budget.epochs": EPOCHS,
                "finalists.recipes": 0,
            },
            **{"budget.total_epochs": TOTAL_EPOCHS, "execution.workers": 1, "execution.threads": 1},
        },
    )


def new_workspace(folder: Path) -> Workspace:
    folder.mkdir()
    return Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}")


@pytest.mark.slow
def test_paused_trials_are_shown_and_an_interrupted_search_ends_as_one_that_was_not(
    config: StudyConfig, tmp_path: Path
) -> None:
    workspace = new_workspace(tmp_path / "interrupted")
    seen: list[EpochReport] = []

    def interrupt_once(report: EpochReport) -> Decision:
        seen.append(report)
        return Decision.INTERRUPT if len(seen) == INTERRUPTED_AT else Decision.CONTINUE

    options = TrackingOptions(plot_interval=None)
    interrupted = run_study(config, workspace=workspace, stopper=interrupt_once, tracking=options)
    paused = [trial for trial in interrupted.trials if trial.state is TrialState.PAUSED]
    assert interrupted.stop_reason is StopReason.INTERRUPTED
    assert paused
    assert_paused_are_shown(workspace, tmp_path, [trial.number for trial in paused])

    ended = run_study(config, workspace=workspace, tracking=options)
    assert ended.stop_reason is StopReason.EPOCHS
    assert {trial.state for trial in ended.trials} == {TrialState.COMPLETED, TrialState.PRUNED}
    assert not workspace.checkpoints_folder(config.name).exists()
    spent = sum(trial.epochs for trial in ended.trials)
    assert TOTAL_EPOCHS <= spent < TOTAL_EPOCHS + EPOCHS  # the trial that runs then is trained to its end
    assert runs_by_state(workspace, ended) == {"completed": "FINISHED", "pruned": "KILLED"}

    whole = new_workspace(tmp_path / "whole")
    expected = run_study(config, workspace=whole, tracking=TrackingOptions(enabled=False))
    assert [(t.state, t.curve) for t in ended.trials] == [(t.state, t.curve) for t in expected.trials]


def assert_paused_are_shown(workspace: Workspace, folder: Path, numbers: list[int]) -> None:
    where = ("--tracking-uri", workspace.tracking_uri)
    status = json.loads(run_command(folder, "status", *where, "--json").stdout)
    assert status["paused"] == len(numbers)
    leaders = json.loads(run_command(folder, "leaderboard", *where, "--top", "30", "--json").stdout)
    shown = {leader["number"]: leader for leader in leaders if leader["state"] == "paused"}
    assert sorted(shown) == numbers
    predicted = [leader["prediction"] for leader in shown.values() if "prediction" in leader]
    assert predicted
    assert all(one["low"] < one["median"] < one["high"] for one in predicted)
    assert "predicted" in run_command(folder, "leaderboard", *where).stdout
    client = MlflowClient(workspace.tracking_uri)
    runs = client.search_runs(["1"], "tags.kind = 'trial' AND tags.state = 'paused'")
    assert sorted(int(run.data.tags["trial"]) for run in runs) == numbers
    assert {run.info.status for run in runs} == {"SCHEDULED"}


def runs_by_state(workspace: Workspace, summary: StudySummary) -> dict[str, str]:
    """Return MLflow's status of the runs of trials in each state; each trial has one run, with its points once."""
    client = MlflowClient(workspace.tracking_uri)
    found = {}
    for trial in summary.trials:
        (run,) = client.search_runs(["1"], f"tags.kind = 'trial' AND tags.trial = '{trial.number}'")
        points = client.get_metric_history(run.info.run_id, "val/accuracy")
        assert sorted(point.step for point in points) == list(range(1, trial.epochs + 1))
        found[run.data.tags["state"]] = run.info.status
    return found
