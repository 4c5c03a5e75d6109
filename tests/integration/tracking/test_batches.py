"""A sender that is behind writes many events of a run in one call: each is in MLflow once, and in order."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.tracking.events import Batch, EndRun
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.sender import Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_run_logger import TrainingRunLogger
from fmnist_search.tracking.writer import MlflowWriter

RUNS, EPOCHS = 64, 16


@pytest.fixture
def store(tmp_path: Path) -> MlflowStore:
    return MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", "fmnist-search")


def report(epoch: int) -> EpochReport:
    return EpochReport(epoch, 1.0 / epoch, 0.5, 1.0, epoch / EPOCHS, 0.01, 2.0)


@pytest.mark.slow
def test_a_thousand_epochs_of_interleaved_runs_are_in_mlflow_once_and_in_order(
    tmp_path: Path, store: MlflowStore
) -> None:
    outbox, messages, names = Outbox(tmp_path / "outbox.db", store.uri), list[str](), list(Recipe().to_flat_dict())
    with Sender(outbox, MlflowWriter(store.client, outbox), messages.append) as sender:
        parent = RunLogger.existing(sender, store.create_run("tiny", {"kind": "study"}))
        runs = [
            TrainingRunLogger.start(sender, str(number), Recipe(), names, {"kind": "trial"}, parent)
            for number in range(RUNS)
        ]
        for epoch in range(1, EPOCHS + 1):
            for run in runs:
                run.log_epoch(report(epoch), is_last=epoch == EPOCHS)
                run.set_tags({"last epoch": str(epoch)})
        for run in runs:
            result = TrialResult(TrialState.COMPLETED, tuple(map(report, range(1, EPOCHS + 1))), 8.0, best_epoch=EPOCHS)
            run.finish(result, Overhead(), {})
        assert sender.flush(60)
        run_ids = [str(run.run_id) for run in runs]
    assert messages == []
    for run_id in run_ids:
        stored = store.client.get_run(run_id)
        assert (stored.info.status, stored.data.tags["last epoch"]) == ("FINISHED", str(EPOCHS))
        assert stored.data.metrics["val/accuracy"] == 1.0
        for key in ("val/accuracy", "train/loss"):
            history = store.client.get_metric_history(run_id, key)
            assert sorted(point.step for point in history) == list(range(1, EPOCHS + 1))
    found = store.client.search_runs([store.experiment_id], "tags.kind = 'trial'")
    assert sorted(run.info.run_id for run in found) == sorted(run_ids)


def test_an_event_that_mlflow_refuses_does_not_keep_back_those_that_are_sent_with_it(
    tmp_path: Path, store: MlflowStore
) -> None:
    run_id, other = store.create_run("a run", {}), store.create_run("another run", {})
    store.client.log_param(run_id, "model.width", "64")
    messages: list[str] = []
    with closing(Outbox(tmp_path / "outbox.db", store.uri)) as outbox:
        for known in (run_id, other):
            outbox.remember_run(known, known)
        outbox.put(
            Batch([("val/accuracy", 0.1, 1, 1)], tags={"state": "running"}).event(run_id),
            Batch([("val/accuracy", 0.2, 2, 2)], params={"model.width": "128"}).event(run_id),
            Batch([("val/accuracy", 0.3, 3, 3)], tags={"state": "completed"}).event(run_id),
            EndRun("FINISHED", 4, 3).event(run_id),
            Batch([("val/accuracy", 0.4, 1, 1)]).event(other),
        )
        with Sender(outbox, MlflowWriter(store.client, outbox), messages.append) as sender:
            assert sender.flush(60)
            assert list(outbox.rejected_counts().values()) == [1]
    stored = store.client.get_run(run_id)
    assert (stored.info.status, stored.data.tags["state"]) == ("FINISHED", "completed")
    assert steps(store.client, run_id) == [1, 3]
    assert steps(store.client, other) == [1]
    (line,) = messages
    assert "model.width" in line
    assert "fmnist-search sync" in line


def steps(client: MlflowClient, run_id: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run_id, "val/accuracy"))
