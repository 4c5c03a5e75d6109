"""The study's run answers by itself, and finalists and the champion show what their networks do."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from fmnist_search import run_study
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.results.training import EpochReport
from fmnist_search.training.trial import Decision
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workspace import Workspace
from tests.integration.conftest import TINY_STUDY, run_command

STUDY_PLOTS = {"history", "learning_curves", "timeline", "parallel_coordinates", "slices"}
"""Of a study of two trials; importances need eight."""
EVALUATION_ARTIFACTS = {
    "calibration.png",
    "confusion.html",
    "confusion_matrix.json",
    "confusion_normalised.png",
    "mistakes.png",
    "predictions.png",
}


def artifact_paths(client: MlflowClient, run_id: str, folder: str | None = None) -> Iterator[str]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from artifact_paths(client, run_id, item.path)
        else:
            yield item.path


def search_runs(client: MlflowClient, kind: str) -> list[Run]:
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment
    return list(
        client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'", order_by=["attributes.start_time"])
    )


@dataclass(frozen=True)
class LoggedStudy:
    """A folder with a finished study, and the artifacts of its run at the first epoch of each trial."""

    folder: Path
    artifacts_during_trials: list[set[str]]

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> LoggedStudy:
    """Two trials of the tiny study with system metrics, its figures rendered after each trial, and its champion."""
    study = LoggedStudy(tmp_path_factory.mktemp("finished"), [])
    (study.folder / "tiny.toml").write_text(TINY_STUDY)
    seen = study.artifacts_during_trials

    def wait_for_figures(report: EpochReport) -> Decision:
        deadline = time.monotonic() + 180
        while report.epoch == 1:
            client = MlflowClient(study.tracking_uri)
            (study_run,) = search_runs(client, "study")
            artifacts = set(artifact_paths(client, study_run.info.run_id))
            if not seen or "plots/history.png" in artifacts or time.monotonic() > deadline:
                seen.append(artifacts)
                break
            time.sleep(0.3)
        return Decision.CONTINUE

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "2")
        run_study(
            StudyConfig.load(study.folder / "tiny.toml", {"budget.trials": 2, "finalists.seeds": 1}),
            workspace=Workspace.resolve(study.tracking_uri),
            tracking=TrackingOptions(plot_interval=0.0),
            stopper=wait_for_figures,
        )
    return study


@pytest.fixture
def client(finished: LoggedStudy) -> MlflowClient:
    mlflow.set_tracking_uri(finished.tracking_uri)
    return MlflowClient(finished.tracking_uri)


@pytest.fixture
def study(client: MlflowClient) -> Run:
    (study,) = search_runs(client, "study")
    return study


def load_text(logged_run: Run, path: str) -> str:
    return str(mlflow.artifacts.load_text(f"runs:/{logged_run.info.run_id}/{path}"))


def test_the_note_has_question_best_trial_and_selected_model(study: Run) -> None:
    note = study.data.tags["mlflow.note.content"]
    assert "Does a search run from end to end?" in note
    assert "**Best trial**" in note
    assert "**Confirmed**" in note
    assert "**Registered**: `models:/fmnist-search/1`, champion when it was compared" in note
    assert "| budget&emsp; | used&emsp; | limit |" in note  # MLflow's page gives cells no space
    assert "`space.cnn.depth`" in note
    assert "fmnist-search leaderboard tiny" in note
    assert load_text(study, "report.md") == note.replace("&emsp;", "")


def test_trials_and_finalists_say_what_they_are_and_which_images_they_have(client: MlflowClient, study: Run) -> None:
    for kind in ("trial", "finalist"):
        for run in search_runs(client, kind):
            note = run.data.tags["mlflow.note.content"]
            assert f"{kind.capitalize()} {run.data.tags.get('trial', 'of')}" in note
            assert f"accuracy {run.data.metrics['val/accuracy']:.2%}" in note
            (images,) = run.inputs.dataset_inputs
            assert images.dataset.digest == study.inputs.dataset_inputs[0].dataset.digest
            assert run.data.tags["mlflow.source.name"] == "fmnist-search"
            assert all(run.data.tags.values())
            assert next(iter(run.data.metrics)) == "val/accuracy"  # what the page of compared runs opens with


def test_the_charts_of_the_experiment_begin_with_the_curves(client: MlflowClient, study: Run) -> None:
    tags = client.get_experiment(study.info.experiment_id).tags
    view = json.loads(json.loads(tags["mlflow.sharedViewState.trials"])["state"])
    charts = view["compareRunCharts"]
    assert [chart.get("metricKey") for chart in charts[:2]] == ["val/accuracy", "val/loss"]
    assert {(chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in charts if chart["type"] == "SCATTER"} == {
        ("optimizer.learning_rate", "val/accuracy")
    }


def test_the_leaderboard_is_a_table_of_mlflow_and_a_csv_with_every_trials_run(client: MlflowClient, study: Run) -> None:
    table = client.load_table(study.info.experiment_id, "leaderboard.json", run_ids=[study.info.run_id])
    trials = {logged_run.info.run_id: logged_run for logged_run in search_runs(client, "trial")}
    assert set(table["run_id"]) == set(trials)
    stored = load_text(study, "leaderboard.json")
    assert "null" not in stored
    assert not re.search(r"\d\.\d{9}", stored)
    for row in table.to_dict("records"):
        assert row["val_accuracy"] == pytest.approx(trials[row["run_id"]].data.metrics["val/accuracy"], rel=1e-12)
        assert str(row["trial"]) == trials[row["run_id"]].data.tags["trial"]
    assert list(table["val_accuracy"]) == sorted(table["val_accuracy"], reverse=True)
    rows = list(csv.DictReader(io.StringIO(load_text(study, "leaderboard.csv"))))
    assert [row["run_id"] for row in rows] == list(table["run_id"])


def test_each_value_of_the_study_has_its_origin(study: Run) -> None:
    origins = dict(csv.reader(io.StringIO(load_text(study, "study_origins.csv"))))
    assert origins["space.common.batch_size"].endswith("tiny.toml")
    assert origins["budget.trials"] == "command line"
    assert origins["experiment"] == "default"


def test_a_value_of_the_command_line_has_that_origin(tiny: Path) -> None:
    config = StudyConfig.load(tiny, {"budget.trials": 7, "optimizer.learning_rate": 0.01, "sampler": "random"})
    assert config.origins["budget.trials"] == "command line"
    assert config.origins["space.common.optimizer.learning_rate"] == "command line"
    assert config.origins["sampler.name"] == "command line"
    assert config.origins["budget.epochs"] == str(tiny)
    assert set(config.origins) == set(flat_keys(json.loads(config.model_dump_json(exclude_none=True))))
    alike = StudyConfig.load(tiny, {"budget.trials": 7})
    assert alike == StudyConfig.from_dict(alike.model_dump(exclude_none=True))


def flat_keys(tables: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_study_has_its_plots_and_its_page(client: MlflowClient, study: Run) -> None:
    files = set(artifact_paths(client, study.info.run_id))
    assert {f"plots/{name}.png" for name in STUDY_PLOTS} <= files
    assert "Plotly" in load_text(study, "plots/study.html")
    assert {"study.toml", "command.txt", "environment.json"} <= files


def test_progress_is_logged_after_every_trial(client: MlflowClient, study: Run) -> None:
    completed = client.get_metric_history(study.info.run_id, "progress/completed")
    assert [(point.step, point.value) for point in completed] == [(1, 1), (2, 2)]
    best = [point.value for point in client.get_metric_history(study.info.run_id, "best/val_accuracy")]
    assert best == sorted(best)
    assert best[-1] == max(run.data.metrics["best/val_accuracy"] for run in search_runs(client, "trial"))


def test_every_trial_has_the_scores_of_each_class(client: MlflowClient) -> None:
    for logged_run in search_runs(client, "trial"):
        rows = list(csv.DictReader(io.StringIO(load_text(logged_run, "class_scores.csv"))))
        assert len(rows) == 10
        assert sum(int(row["support"]) for row in rows) == 500
        assert {"study", "family", "state", "worker", "device", "epochs"} <= set(logged_run.data.tags)
        assert "confusion_matrix.png" in artifact_paths(client, logged_run.info.run_id)


def test_finalists_have_plots_of_the_validation_images_and_the_champion_of_the_test_images(
    client: MlflowClient,
) -> None:
    finalists = search_runs(client, "finalist")
    champions = [logged_run for logged_run in finalists if "test/accuracy" in logged_run.data.metrics]
    for logged_run in finalists:
        files = set(artifact_paths(client, logged_run.info.run_id))
        assert "curves.png" in files
        assert {f"val/{name}" for name in EVALUATION_ARTIFACTS} <= files
        assert 0 <= logged_run.data.metrics["val/calibration_error"] <= 1
        assert ("test/predictions.png" in files) == (logged_run in champions)
    assert champions
    matrix = json.loads(load_text(champions[0], "test/confusion_matrix.json"))["rows_true_columns_predicted"]
    hits = sum(row[label] for label, row in enumerate(matrix))
    assert hits / 10_000 == champions[0].data.metrics["test/accuracy"]


def test_an_ensemble_of_runs_has_plots_of_the_validation_images(finished: LoggedStudy, client: MlflowClient) -> None:
    found = run_command(finished.folder, "ensemble", 0, 1, "--json", plots=True).json
    files = set(artifact_paths(client, found["run_id"]))
    assert {"members.json", "report.md", *(f"val/{name}" for name in EVALUATION_ARTIFACTS)} <= files
    assert not [path for path in files if path.startswith("test/")]
    matrix = json.loads(load_text(client.get_run(found["run_id"]), "val/confusion_matrix.json"))
    rows = matrix["rows_true_columns_predicted"]
    assert sum(row[label] for label, row in enumerate(rows)) / 500 == found["accuracy"]


def test_figures_are_rendered_while_the_study_runs(finished: LoggedStudy) -> None:
    during_first_trial, during_second_trial = finished.artifacts_during_trials
    assert "plots/history.png" not in during_first_trial
    assert {"plots/history.png", "leaderboard.csv"} <= during_second_trial


def test_system_metrics_are_logged_where_mlflow_is_asked_for_them(study: Run) -> None:
    assert 0 <= study.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert study.data.metrics["system/system_memory_usage_megabytes"] > 0
