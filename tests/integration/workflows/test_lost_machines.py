"""Workers that are lost with their machine: the trial is not to blame, and goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from fmnist_search.errors import UserError
from fmnist_search.execution.job import Job, LossCause
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import StopReason, StudySummary
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.search.study_store import StudyStore
from fmnist_search.training.trial import run_trial
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workspace import Workspace
from tests.support.studies import make_study

TRIALS = 2


class _MachineLost(Exception):
    """Ends a training in place of the machine on which it runs."""


class OneWorker:
    """A backend that runs jobs in this thread, and loses its worker after epochs that `is_lost` chooses."""

    size = 1
    images_device = "cpu"

    def __init__(self, execution: Execution, is_lost: Callable[[Recipe, int], bool], cause: LossCause):
        self.execution = execution
        self._is_lost = is_lost
        self._cause = cause

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def configure(self, execution: Execution) -> None:
        self.execution = execution

    def wait_until_ready(self) -> None:
        return

    def run_on_worker(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def stop(self) -> None:
        return

    def run(self, next_job: Callable[[], Job | None]) -> None:
        while job := next_job():
            job.worker, job.worker_name = 0, "0 on elsewhere"
            try:
                result = run_trial(job.recipe, job.images, self.execution, lambda report: self._decide(job, report))
            except _MachineLost:
                job.on_worker_lost("its machine is gone", self._cause)
            else:
                job.on_result(result, 0.1)

    def _decide(self, job: Job, report: EpochReport) -> Decision:
        decision = job.on_epoch(report)
        if self._is_lost(job.recipe, report.epoch):
            raise _MachineLost
        return decision


class Losses:
    """Loses the worker after the first epoch of a training, so often; with `finalists`, only of these."""

    def __init__(self, count: int, *, finalists: bool = False):
        self.left = count
        self._finalists = finalists

    def __call__(self, recipe: Recipe, epoch: int) -> bool:
        is_finalist = recipe.schedule.name != "constant"
        if epoch != 1 or not self.left or (self._finalists and not is_finalist):
            return False
        self.left -= 1
        return True


def workspace_of(folder: Path) -> Workspace:
    return Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}")


def search(
    folder: Path, is_lost: Losses, cause: LossCause = LossCause.INFRASTRUCTURE, finalists: int = 0, **budget: Any
) -> StudySummary:
    """Run a study of two trials that loses workers."""
    config = make_study(
        {"common": {"batch_size": 50, "label_smoothing": {"low": 0, "high": 0.1}}, "mlp": {"depth": 1, "width": 8}},
        name="lost",
        execution={"device": "cpu", "precision": "float32"},
        data={"train_images": 200, "validation": 100},
        budget={"trials": TRIALS, "epochs": 2, **budget},
        pruner={"name": "none"},
        finalists={"recipes": finalists, "seeds": 1, "epochs": 2, "images": "slice", "refit": "none"},
    )
    return run_study(
        config,
        workspace=workspace_of(folder),
        tracking=TrackingOptions(enabled=bool(finalists), plot_interval=None),
        backend_factory=lambda execution, _: OneWorker(execution, is_lost, cause),
    )


def test_a_lost_machine_never_makes_a_trial_fail(tmp_path: Path) -> None:
    summary = search(tmp_path, Losses(7))
    assert summary.stop_reason is StopReason.TRIALS
    assert [trial.state for trial in summary.trials] == [TrialState.COMPLETED] * TRIALS
    assert StudyStore.load(workspace_of(tmp_path).storage_url).worker_losses == 7


def test_a_worker_that_is_lost_twice_at_one_epoch_makes_a_trial_fail(tmp_path: Path) -> None:
    summary = search(tmp_path, Losses(2), LossCause.WORKER)
    assert sorted(trial.state.value for trial in summary.trials) == ["completed", "failed"]
    assert StudyStore.load(workspace_of(tmp_path).storage_url).worker_losses == 0


def test_a_search_that_loses_too_many_machines_stops_and_goes_on_when_more_are_allowed(tmp_path: Path) -> None:
    losses = Losses(5)
    stopped = search(tmp_path, losses, losses=3)
    assert stopped.stop_reason is StopReason.LOSSES
    assert not stopped.stop_reason.is_final
    assert search(tmp_path, losses, losses=3).new_trials == 0
    gone_on = search(tmp_path, losses, losses=0)
    assert gone_on.stop_reason is StopReason.TRIALS
    assert [trial.state for trial in gone_on.trials] == [TrialState.COMPLETED] * TRIALS


def test_finalists_that_lose_machines_are_trained_to_their_ends(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 workers were lost with their machines while finalists trained"):
        search(tmp_path, Losses(2, finalists=True), finalists=1, losses=2)
    summary = search(tmp_path, Losses(5, finalists=True), finalists=1)
    assert summary.champion is not None
