"""A search that pauses and resumes its trials: what a user sees of it, and that an interruption changes nothing."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from fmnist_search.cli.progress import StudyProgressDisplay
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import StopReason, StudySummary
from fmnist_search.results.training import Decision, Stopper, TrialState, never_stop
from fmnist_search.workflows.callbacks import StudyCallback
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
    options = TrackingOptions(plot_interval=None)
    interrupted = run_study(config, workspace=workspace, stopper=interrupt_after(INTERRUPTED_AT), tracking=options)
    paused = [trial for trial in interrupted.trials if trial.state is TrialState.PAUSED]
    assert interrupted.stop_reason is StopReason.INTERRUPTED
    assert paused
    assert_paused_are_shown(workspace, tmp_path, [trial.number for trial in paused])

    ended = run_study(config, workspace=workspace, tracking=options)
    assert ended.stop_reason is StopReason.EPOCHS
    assert {trial.state for trial in ended.trials} == {TrialState.COMPLETED, TrialState.PRUNED}
    assert not workspace.checkpoints_folder(config.name).exists()
    # What was paused at the end was trained before, and counts there where searches are compared.
    last = max(trial.trained_until for trial in ended.trials if trial.state is TrialState.COMPLETED)
    assert all(trial.trained_until < last for trial in ended.trials if trial.number in {t.number for t in paused})
    spent = sum(trial.epochs for trial in ended.trials)
    assert TOTAL_EPOCHS <= spent < TOTAL_EPOCHS + EPOCHS  # the trial that runs then is trained to its end
    assert runs_by_state(workspace, ended) == {"completed": "FINISHED", "pruned": "KILLED"}

    whole = new_workspace(tmp_path / "whole")
    with StudyProgressDisplay(config, Console(file=(printed := io.StringIO()), width=200)) as display:
        expected = run_study(config, workspace=whole, tracking=TrackingOptions(enabled=False), callback=display)
    assert [(t.state, t.curve) for t in ended.trials] == [(t.state, t.curve) for t in expected.trials]
    at_end = [trial for trial in expected.trials if trial.state is TrialState.PRUNED]
    assert f"tiny: trials that were paused and end as pruned: {len(at_end)}\n" in printed.getvalue()
    assert len([line for line in printed.getvalue().splitlines() if line[:3].isdecimal()]) == len(
        expected.trials
    ) - len(at_end)


@pytest.mark.slow
def test_ctrl_c_while_a_trial_is_to_be_paused_changes_nothing(config: StudyConfig, tmp_path: Path) -> None:
    class CtrlC(StudyCallback):
        def on_training_start(self, name: str, recipe: Recipe) -> None:
            os.kill(os.getpid(), signal.SIGINT)  # the first trial is paused after its first epoch, for a second one

    config = StudyConfig.from_dict(
        config.model_dump(exclude_none=True) | {"budget": {"trials": 4, "epochs": EPOCHS, "total_epochs": 8}}
    )
    workspace, options = new_workspace(tmp_path / "interrupted"), TrackingOptions(enabled=False)
    interrupted = run_study(config, workspace=workspace, tracking=options, callback=CtrlC())
    assert [(trial.state, trial.epochs) for trial in interrupted.trials] == [(TrialState.PAUSED, 1)]
    ended = run_study(config, workspace=workspace, tracking=options)
    expected = run_study(config, workspace=new_workspace(tmp_path / "whole"), tracking=options)
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


@pytest.mark.slow
def test_a_study_goes_on_with_another_sampler_and_its_paused_trials_first(config: StudyConfig, tmp_path: Path) -> None:
    workspace, said = new_workspace(tmp_path / "changed"), list[str]()

    class Messages(StudyCallback):
        def on_message(self, text: str) -> None:
            said.append(text)

    def go_on(sampler: str, total_epochs: int, stopper: Stopper = never_stop) -> StudySummary:
        tables = config.model_dump(exclude_none=True)
        tables |= {"sampler": {"name": sampler}, "budget": {**tables["budget"], "total_epochs": total_epochs}}
        options = TrackingOptions(enabled=False)
        changed = StudyConfig.from_dict(tables)
        return run_study(changed, workspace=workspace, stopper=stopper, tracking=options, callback=Messages())

    random = go_on("random", 2 * EPOCHS)
    assert [trial.state for trial in random.trials] == [TrialState.COMPLETED] * 2
    interrupted = go_on("freeze-thaw", TOTAL_EPOCHS, interrupt_after(3))
    assert "tiny: freeze-thaw goes on with this study of 'random', and learns from all its trials" in said
    paused = [trial.number for trial in interrupted.trials if trial.state is TrialState.PAUSED]
    assert paused
    ended = go_on("random", TOTAL_EPOCHS + 2 * EPOCHS)
    assert f"tiny: {len(paused)} trials that freeze-thaw has paused go on before 'random' chooses new ones" in said
    assert {trial.state for trial in ended.trials} == {TrialState.COMPLETED}


def interrupt_after(epochs: int) -> Stopper:
    """Return a stopper that interrupts the search when it is asked for the last time of so many."""
    left = iter(range(epochs - 1))
    return lambda _: Decision.CONTINUE if next(left, None) is not None else Decision.INTERRUPT
