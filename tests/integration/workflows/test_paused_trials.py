"""A trial that is paused keeps its checkpoint and its run, and goes on in another session as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.results.study import StopReason, TrialRecord
from fmnist_search.results.training import Decision, EpochReport, TrialState, never_stop
from fmnist_search.search.study_store import StudyStore
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workflows.study.opening import SessionOptions, open_session
from fmnist_search.workflows.study.trial_job import TrialJob
from fmnist_search.workflows.study.workers import start_workers
from fmnist_search.workspace import Workspace

TRACKING = TrackingOptions(plot_interval=None)


def test_a_paused_trial_goes_on_in_another_session_and_gives_what_it_would_have_given(
    tiny: Path, tmp_path: Path
) -> None:
    config = StudyConfig.load(
        tiny,
        {
            **{"sampler": "random", "budget.trials": 2, "budget.epochs": 3, "finalists.recipes": 0},
            **{"execution.workers": 1, "execution.threads": 1},
        },
    )
    workspaces = [Workspace.resolve(f"sqlite:///{tmp_path / name / 'mlflow.db'}") for name in ("paused", "whole")]
    for workspace in workspaces:
        workspace.folder.parent.mkdir()
    workspace, undisturbed = workspaces

    seen: list[EpochReport] = []

    def pause_first(report: EpochReport) -> Decision:
        seen.append(report)
        return Decision.PAUSE if len(seen) == 2 else Decision.CONTINUE

    summary = run_study(config, workspace=workspace, stopper=pause_first, tracking=TRACKING)
    assert [(trial.state, trial.epochs) for trial in summary.trials] == [
        (TrialState.PAUSED, 2),
        (TrialState.COMPLETED, 3),
    ]
    assert summary.stop_reason is StopReason.TRIALS
    assert trial_run(workspace, 0) == ("SCHEDULED", "paused", [1, 2])
    assert [path.name for path in workspace.checkpoints_folder("tiny").iterdir()] == ["000.ckpt"]

    assert resume(workspace, config, 0).state is TrialState.COMPLETED
    trials = StudyStore.load(workspace.storage_url, "tiny").trial_records()
    expected = run_study(config, workspace=undisturbed, tracking=TrackingOptions(enabled=False)).trials
    assert [trial.curve for trial in trials] == [trial.curve for trial in expected]
    assert weights(workspace, 0) == weights(undisturbed, 0)
    assert trial_run(workspace, 0) == ("FINISHED", "completed", [1, 2, 3])
    assert not workspace.checkpoints_folder("tiny").exists()
    with pytest.raises(ValueError, match="trial 0 is not paused"):
        resume(workspace, config, 0)


def resume(workspace: Workspace, config: StudyConfig, number: int) -> TrialRecord:
    """Continue a paused trial to its last epoch, in a session of its own."""
    ended: list[TrialRecord] = []
    callback = StudyCallback()
    with (
        start_workers(config, callback) as backend,
        open_session(workspace, config, backend, callback, SessionOptions(tracking=TRACKING)) as session,
    ):
        asked = session.study_store.resume(number)
        context = session.search_context(never_stop)
        jobs = iter([TrialJob(context, asked, 0.0, lambda _, record: ended.append(record), lambda: False)])
        backend.run(lambda: next(jobs, None))
    return ended[0]


def trial_run(workspace: Workspace, number: int) -> tuple[str, str, list[int]]:
    """Return MLflow's status of the only run of a trial, its state, and the epochs of which it has a value."""
    client = MlflowClient(workspace.tracking_uri)
    (run,) = client.search_runs(["1"], f"tags.kind = 'trial' AND tags.trial = '{number}'")
    history = client.get_metric_history(run.info.run_id, "val/accuracy")
    return run.info.status, run.data.tags["state"], sorted(point.step for point in history)


def weights(workspace: Workspace, number: int) -> bytes:
    return workspace.weights_path("tiny", number).read_bytes()
