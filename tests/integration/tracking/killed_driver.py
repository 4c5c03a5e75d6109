"""A driver of one trial that ends itself at a given statement, as a SIGKILL would; run as a script by a test.

It does what a search does with a trial: stores the key of the run, logs epochs, keeps a checkpoint, and stores the
outcome with the last events before the trial is told. A file stands for the trial in Optuna's storage.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import fmnist_search
from fmnist_search.files import atomic_write
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.sender import Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.training_run_logger import TrainingRunLogger, new_run_key
from fmnist_search.tracking.writer import MlflowWriter

EPOCHS = 4
RECIPE = Recipe()
PARAMETERS = list(RECIPE.to_flat_dict())
TRACED = (str(Path(fmnist_search.__file__).parent / "tracking"), __file__)


class StoredTrial:
    """The trial as Optuna's storage and the folder of checkpoints hold it."""

    def __init__(self, path: Path):
        self._path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def store(self, **values: Any) -> None:
        """Store values, all or none."""
        self.values.update(values)
        with atomic_write(self._path) as file:
            file.write(json.dumps(self.values).encode())


def report(epoch: int) -> EpochReport:
    """Return the report of an epoch."""
    return EpochReport(epoch, 1.0 / epoch, 0.5, 1.0, 0.1 * epoch, 0.01, 2.0)


def drive(trial: StoredTrial, sender: Sender, study_run_id: str, name: str) -> None:
    """Train the trial from its checkpoint to its end, unless that was reached before."""
    run_key = trial.values.get("run_key")
    progress = sender.progress(run_key) if run_key else None
    if not (trial.values.get("told") or (progress and progress.outcome)):
        _train(trial, sender, RunLogger.existing(sender, study_run_id), name)
    trial.store(told=True)
    sender.forget_progress(trial.values["run_key"])


def _train(trial: StoredTrial, sender: Sender, parent: RunLogger, name: str) -> None:
    tags = {"kind": "trial"}
    if "run_key" in trial.values:
        run = TrainingRunLogger.resume(sender, trial.values["run_key"], name, RECIPE, PARAMETERS, tags, parent)
    else:
        run_key = new_run_key(parent, name)
        trial.store(run_key=run_key)
        run = TrainingRunLogger.start(sender, name, RECIPE, PARAMETERS, tags, parent, run_key)
    for epoch in range(trial.values.get("checkpoint", 0) + 1, EPOCHS + 1):
        run.log_epoch(report(epoch), is_last=epoch == EPOCHS)
        trial.store(checkpoint=epoch - 1)  # a checkpoint is not taken after each epoch
    result = TrialResult(TrialState.COMPLETED, tuple(map(report, range(1, EPOCHS + 1))), 8.0, best_epoch=EPOCHS)
    with run.transaction():
        run.log_text("confusion_matrix.json", "{}")
        run.finish(result, Overhead(), {"worker": "0"}, {"state": "completed"})


def exit_at(statement: int) -> None:
    """End this process before the statement of that number, counted over all its threads."""
    count = itertools.count(1)

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(TRACED):
            return None
        if event == "line" and next(count) == statement:
            os._exit(9)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


def run_trial(uri: str, study_run_id: str, folder: Path, last_statement: int) -> None:
    """Drive the trial in a folder, up to a statement; to its end if that is 0."""
    folder.mkdir(exist_ok=True)
    store = MlflowStore(uri, "fmnist-search")
    if last_statement:
        exit_at(last_statement)
    outbox = Outbox(folder / "outbox.db", uri)
    with Sender(outbox, MlflowWriter(store.client, outbox), print) as sender:
        drive(StoredTrial(folder / "trial.json"), sender, study_run_id, folder.name)
        sys.settrace(None)
        assert sender.flush(60)


if __name__ == "__main__":
    MlflowStore(f"sqlite:///{sys.argv[3]}/other.db", "other")  # MLflow is imported and configured once for all
    for attempt in sys.argv[4:]:
        child = os.fork()
        if not child:
            name, _, statement = attempt.partition(":")
            run_trial(sys.argv[1], sys.argv[2], Path(sys.argv[3], name), int(statement))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
