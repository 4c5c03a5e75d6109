"""A training that is paused, interrupted or killed goes on in the same run, which has every epoch once."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from fmnist_search.results.training import Overhead, TrialResult, TrialState
from fmnist_search.tracking.events import RunProgress, RunTakenOver
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.sender import Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_run_logger import TrainingRunLogger, new_run_key
from fmnist_search.tracking.writer import MlflowWriter
from tests.integration.tracking import killed_driver
from tests.integration.tracking.killed_driver import EPOCHS, PARAMETERS, RECIPE, report

NAME, TAGS = "007 cnn", {"kind": "trial", "trial": "7"}
KILLED_DRIVERS, MAX_STATEMENT = 8, 2500


@dataclass(frozen=True)
class Project:
    """A store with the run of a study, whose trials are logged through outboxes."""

    folder: Path
    store: MlflowStore
    study_run_id: str

    @contextmanager
    def sender(self, outbox: str = "outbox.db") -> Iterator[Sender]:
        box = Outbox(self.folder / outbox, self.store.uri)
        messages: list[str] = []
        with Sender(box, MlflowWriter(self.store.client, box), messages.append) as sender:
            yield sender
            assert sender.flush(60)
        assert messages == []

    def start(self, sender: Sender) -> TrainingRunLogger:
        parent = RunLogger.existing(sender, self.study_run_id)
        return TrainingRunLogger.start(sender, NAME, RECIPE, PARAMETERS, TAGS, parent, new_run_key(parent, NAME))

    def resume(self, sender: Sender, run_key: str) -> TrainingRunLogger:
        parent = RunLogger.existing(sender, self.study_run_id)
        return TrainingRunLogger.resume(sender, run_key, NAME, RECIPE, PARAMETERS, TAGS, parent)

    def trial_run(self) -> MlflowRun:
        (run,) = self.store.client.search_runs([self.store.experiment_id], "tags.kind = 'trial'")
        return run


@pytest.fixture
def project(tmp_path: Path) -> Project:
    store = MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", "fmnist-search")
    return Project(tmp_path, store, store.create_run("tiny", {"kind": "study"}))


def log_epochs(run: TrainingRunLogger, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        run.log_epoch(report(epoch), is_last=epoch == EPOCHS)


def finish(run: TrainingRunLogger) -> None:
    result = TrialResult(TrialState.COMPLETED, tuple(map(report, range(1, EPOCHS + 1))), 8.0, best_epoch=EPOCHS)
    run.finish(result, Overhead(), {"worker": "0"}, {"state": "completed"})


def assert_complete(client: MlflowClient, run: MlflowRun) -> None:
    """Check that the run has ended and has everything once."""
    assert (run.info.status, run.data.tags["state"], run.data.tags.get("reason")) == ("FINISHED", "completed", None)
    history = sorted(client.get_metric_history(run.info.run_id, "val/accuracy"), key=lambda point: point.step)
    assert [(point.step, point.value) for point in history] == [(epoch, 0.1 * epoch) for epoch in range(1, EPOCHS + 1)]
    for key in ("train/loss", "time/epoch_seconds"):
        steps = sorted(point.step for point in client.get_metric_history(run.info.run_id, key))
        assert steps == list(range(1, EPOCHS + 1)), key
    assert [point.value for point in client.get_metric_history(run.info.run_id, "best/val_accuracy")] == [0.4]
    assert set(PARAMETERS) <= set(run.data.params)
    assert "recipe.toml" in {item.path for item in client.list_artifacts(run.info.run_id)}


@pytest.mark.parametrize(("state", "status"), [(TrialState.INTERRUPTED, "KILLED"), (TrialState.PAUSED, "SCHEDULED")])
def test_a_suspended_run_goes_on_and_has_every_epoch_once(project: Project, state: TrialState, status: str) -> None:
    with project.sender() as sender:
        run = project.start(sender)
        log_epochs(run, 1, 1)
        run.log_epoch(report(2), is_last=True)  # the epoch after which it was stopped
        run.suspend(state, "stopped by a test")
        assert sender.progress(run.run_key) == RunProgress(2)
    suspended = project.trial_run()
    assert (suspended.info.status, suspended.data.tags["state"]) == (status, state.value)
    assert suspended.data.tags["reason"] == "stopped by a test"
    with project.sender() as sender:
        resumed = project.resume(sender, run.run_key)
        assert sender.flush(60)
        assert (project.trial_run().info.status, project.trial_run().data.tags["state"]) == ("RUNNING", "running")
        log_epochs(resumed, 2, EPOCHS)  # its checkpoint was that of the first epoch
        finish(resumed)
        assert sender.progress(run.run_key) == RunProgress(EPOCHS, {"state": "completed"})
    assert_complete(project.store.client, project.trial_run())


@pytest.mark.parametrize("successor_has_ended", [False, True])
def test_a_logger_that_was_frozen_while_another_went_on_with_its_run_writes_nothing(
    project: Project, successor_has_ended: bool
) -> None:
    with project.sender() as sender:
        frozen = project.start(sender)
        log_epochs(frozen, 1, 2)
        successor = project.resume(sender, frozen.run_key)
        if successor_has_ended:
            log_epochs(successor, 3, EPOCHS)
            finish(successor)
            sender.forget_progress(frozen.run_key)
        for write in (
            lambda: frozen.log_epoch(report(3), is_last=False),
            lambda: frozen.suspend(TrialState.INTERRUPTED, "frozen"),
            lambda: finish(frozen),
        ):
            with pytest.raises(RunTakenOver, match="another process goes on with it"):
                write()
        if not successor_has_ended:
            log_epochs(successor, 3, EPOCHS)
            finish(successor)
    assert_complete(project.store.client, project.trial_run())


def test_a_run_that_another_outbox_logged_goes_on_and_has_every_epoch_once(project: Project) -> None:
    with project.sender() as sender:
        run = project.start(sender)
        log_epochs(run, 1, 3)
    with project.sender("outbox of another machine.db") as sender:
        resumed = project.resume(sender, run.run_key)
        log_epochs(resumed, 2, EPOCHS)
        finish(resumed)
    assert_complete(project.store.client, project.trial_run())


def test_a_run_of_which_only_the_key_was_stored_is_created_when_it_is_resumed(project: Project) -> None:
    with project.sender() as sender:
        run_key = new_run_key(RunLogger.existing(sender, project.study_run_id), NAME)
    with project.sender() as sender:
        resumed = project.resume(sender, run_key)
        log_epochs(resumed, 1, EPOCHS)
        finish(resumed)
    assert_complete(project.store.client, project.trial_run())
    assert project.trial_run().data.tags["address"] == run_key


def finish_without_a_picture(run: TrainingRunLogger) -> None:
    with run.transaction():
        finish(run)
        raise ValueError("no picture")


def test_a_transaction_that_fails_sends_nothing(project: Project) -> None:
    with project.sender() as sender:
        run = project.start(sender)
        log_epochs(run, 1, 3)
        with pytest.raises(ValueError, match="no picture"):
            finish_without_a_picture(run)
        assert sender.progress(run.run_key) == RunProgress(3)
    assert project.trial_run().info.status == "RUNNING"


@pytest.mark.slow
def test_a_driver_that_dies_at_any_statement_leaves_a_run_that_the_next_one_completes(project: Project) -> None:
    generator, attempts = random.Random(0), []
    for case in range(KILLED_DRIVERS):
        deaths = [generator.randrange(1, MAX_STATEMENT) for _ in range(2)]  # the second while the trial is resumed
        attempts += [f"{case}:{statement}" for statement in (*deaths, 0)]
    driver = subprocess.run(
        [
            sys.executable,
            killed_driver.__file__,
            project.store.uri,
            project.study_run_id,
            str(project.folder),
            *attempts,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    codes = [int(line) for line in driver.stdout.splitlines()]
    assert codes[2::3] == [0] * KILLED_DRIVERS, driver.stderr
    assert codes.count(9) > KILLED_DRIVERS
    runs = project.store.client.search_runs([project.store.experiment_id], "tags.kind = 'trial'")
    assert sorted(run.info.run_name for run in runs) == sorted(str(case) for case in range(KILLED_DRIVERS))
    for run in runs:
        assert_complete(project.store.client, run)
        with closing(Outbox(project.folder / run.info.run_name / "outbox.db", project.store.uri)) as outbox:
            assert (outbox.pending_count(), outbox.rejected_counts()) == (0, {})
            assert outbox.progress(run.data.tags["address"]) is None
