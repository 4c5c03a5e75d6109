"""References to runs: stored as the id, or as the key until MLflow has created the run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import NullRunLogger, RunLogger
from fmnist_search.tracking.run_ref import RunRef, resolve_run_ids
from fmnist_search.workspace import Workspace

KEY, RUN_ID = "0af1/003 cnn@1700000000000", "9b" * 16


@pytest.mark.parametrize("ref", [RunRef(KEY), RunRef(RUN_ID, RUN_ID)])
def test_a_stored_reference_is_read_back(ref: RunRef) -> None:
    assert RunRef.from_stored(ref.stored) == ref


def test_a_reference_is_stored_as_the_id_once_it_is_known() -> None:
    assert RunRef(KEY, RUN_ID).stored == RUN_ID


def test_trials_get_the_ids_of_runs_that_were_created_after_they_ended(tmp_path: Path) -> None:
    workspace = Workspace("sqlite:///mlflow.db", tmp_path)
    stored = (KEY, RUN_ID, "0af1/never sent@1", None, "")
    trials = [
        TrialRecord(number, TrialState.COMPLETED, 0.9, 1, Recipe(), 1.0, run_id=text)
        for number, text in enumerate(stored)
    ]
    with closing(Outbox(workspace.outbox_path, workspace.tracking_uri)) as outbox:
        logger = RunLogger(outbox, KEY)  # type: ignore[arg-type]
        assert logger.ref == RunRef(KEY)
        outbox.remember_run(KEY, "made later")
        assert logger.ref == RunRef(KEY, "made later")
    assert [trial.run_id for trial in resolve_run_ids(workspace, trials)] == ["made later", RUN_ID, None, None, ""]


def test_the_logger_of_a_study_without_tracking_writes_nothing() -> None:
    logger = NullRunLogger()
    logger.set_tags({"a": "b"})
    logger.end("FINISHED", "finished")
    assert (logger.is_recorded, logger.run_id) == (False, None)
