"""A study that goes on with another backend than it began with."""

from __future__ import annotations

from pathlib import Path

from fmnist_search.execution.thread_backend import ThreadBackend
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workspace import Workspace
from tests.support.studies import make_study


def search(folder: Path, trials: int, backend: str) -> list[str]:
    """Run a study in threads whose settings name a backend; return the messages."""
    messages: list[str] = []

    class Recorder(StudyCallback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    config = make_study(
        {"common": {"batch_size": 50, "label_smoothing": {"low": 0, "high": 0.1}}, "mlp": {"depth": 1, "width": 8}},
        data={"train_images": 200, "validation": 100},
        budget={"trials": trials, "epochs": 1},
        pruner={"name": "none"},
        finalists={"recipes": 0},
        execution={"device": "cpu", "precision": "float32", "backend": backend},
    )
    summary = run_study(
        config,
        workspace=Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}"),
        tracking=TrackingOptions(enabled=False),
        callback=Recorder(),
        backend_factory=lambda execution, _: ThreadBackend(execution, 1),
    )
    assert len(summary.trials) == trials
    return messages


def test_a_study_goes_on_on_a_cluster_and_back_and_says_so(tmp_path: Path) -> None:
    assert search(tmp_path, 1, "auto") == []
    assert search(tmp_path, 2, "threads") == []
    stays = "it stays on cpu in float32"
    assert search(tmp_path, 3, "ray") == [f"small: its backend is ray now and was threads; {stays}"]
    assert search(tmp_path, 4, "auto") == [f"small: its backend is auto now and was ray; {stays}"]
