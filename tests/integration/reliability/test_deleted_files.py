"""Files that are deleted while a search runs: it ends in one line, or makes what it can make again."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.results.study import StudySummary
from fmnist_search.results.training import Decision, EpochReport
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workspace import Workspace, sqlite_uri
from tests.integration.conftest import TINY_STUDY

pytestmark = pytest.mark.slow


def search(folder: Path, delete: Callable[[], object], after: int) -> StudySummary:
    """Search in a folder, and delete something after a number of epochs; a trial has two."""
    (folder / "tiny.toml").write_text(TINY_STUDY)
    config = StudyConfig.load(folder / "tiny.toml", {"finalists.recipes": 0, "budget.trials": 3})
    workspace = Workspace(sqlite_uri(folder / "mlflow.db"), folder / "fmnist-search")
    epochs: list[int] = []

    def stopper(report: EpochReport) -> Decision:
        epochs.append(report.epoch)
        if len(epochs) == after:
            delete()
        return Decision.CONTINUE

    return run_study(config, workspace=workspace, tracking=TrackingOptions(plot_interval=None), stopper=stopper)


@pytest.mark.parametrize("name", ["fmnist-search", "fmnist-search/optuna.db", "fmnist-search/outbox.db", "."])
def test_a_search_ends_when_its_studies_are_deleted(tmp_path: Path, name: str) -> None:
    path, gone = tmp_path / name, tmp_path.with_name(f"{tmp_path.name}-gone")
    gone.mkdir()

    def delete() -> None:
        for each in list(tmp_path.iterdir()) if name == "." else [path]:
            # The search goes on meanwhile: SQLite's journals come and go, and a folder may get a new file.
            with contextlib.suppress(FileNotFoundError):
                each.rename(gone / each.name)
        shutil.rmtree(gone, ignore_errors=True)

    with pytest.raises(UserError, match="was deleted or replaced") as caught:
        search(tmp_path, delete, after=3)
    assert len(caught.value.lines) == 1
    assert str(tmp_path) in caught.value.lines[0]


def test_a_search_ends_when_its_studies_are_replaced(tmp_path: Path) -> None:
    database = tmp_path / "fmnist-search" / "optuna.db"

    def replace() -> None:
        shutil.copy(database, tmp_path / "copy.db")
        os.replace(tmp_path / "copy.db", database)

    with pytest.raises(UserError, match=r"optuna\.db: was deleted or replaced"):
        search(tmp_path, replace, after=3)


def test_a_folder_of_weights_is_made_again(tmp_path: Path) -> None:
    weights = tmp_path / "fmnist-search" / "weights"
    summary = search(tmp_path, lambda: shutil.rmtree(weights), after=4)
    assert [trial.state.value for trial in summary.trials] == ["completed"] * 3
    assert sorted(path.name for path in weights.rglob("*.pt")) == ["001.pt", "002.pt"]
