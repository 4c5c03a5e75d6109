"""Stored studies as a whole: exported, renamed and deleted by commands, in Optuna's storage, MLflow and the folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from fmnist_search.search.lease import Lease
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_changes import StudyToChange
from fmnist_search.workspace import Workspace
from tests.integration.conftest import FinishedStudy, copy_study


@pytest.fixture
def project(tiny_study: FinishedStudy, tmp_path: Path) -> FinishedStudy:
    """A copy of the finished tiny study for one test."""
    return copy_study(tiny_study, tmp_path)


def workspace_of(project: FinishedStudy) -> Workspace:
    return Workspace.resolve(project.tracking_uri)


def runs_of(project: FinishedStudy, study: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    client = MlflowClient(project.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.study = '{study}'", view))


def test_export_writes_what_a_study_holds(project: FinishedStudy) -> None:
    exported = project.run("studies", "export", "tiny", "--output", "out", "--json", plots=True)
    assert exported.exit_code == 0, exported.stderr
    names = {Path(name).name for name in exported.json["files"]}
    assert names >= {"study.toml", "trials.csv", "trials.json", "best.toml", "champion.toml", "note.md", "history.png"}
    assert names == {path.name for path in (project.folder / "out").iterdir()}
    trials = json.loads((project.folder / "out/trials.json").read_text())
    assert trials == project.run("search", "tiny.toml", "--json").json["trials"]
    rows = list(csv.DictReader((project.folder / "out/trials.csv").open()))
    assert {row["trial"] for row in rows} == {str(trial["number"]) for trial in trials}
    assert project.run("studies", "check", "out/study.toml").exit_code == 0
    assert project.run("train", "out/champion.toml", "--dry-run").exit_code == 0

    again = ["studies", "export", "tiny", "--output", "out"]
    (error,) = project.run(*again).errors
    assert "--output out: is not empty; name another folder, or replace its files with --force" in error
    assert project.run(*again, "--force").exit_code == 0


def test_a_renamed_study_is_continued_under_its_new_name(project: FinishedStudy) -> None:
    before = project.run("search", "tiny.toml", "--json").json
    (error,) = project.run("studies", "rename", "tiny", "other").errors
    assert "studies rename: asks first, which needs a terminal; add --yes" in error
    StudyToChange(open_storage(workspace_of(project).storage_url), "tiny").begin(["rename", "tiny", "other"])
    (project.folder / "fmnist-search/weights/tiny").rename(project.folder / "fmnist-search/weights/other")
    (error,) = project.run("search", "tiny.toml").errors  # the renaming was interrupted here
    assert "its renaming was interrupted; run `fmnist-search studies rename tiny other` again first" in error

    renamed = project.run("studies", "rename", "tiny", "other", "--yes", "--json")
    assert renamed.exit_code == 0, renamed.stderr
    assert renamed.json == {"study": "other", "trials": 4, "runs": 7, "versions": ["models:/fmnist-search/1"]}
    (error,) = project.run("status", "tiny").errors
    assert "study 'tiny': does not exist here" in error
    continued = project.run("search", "tiny.toml", "--name", "other", "--trials", 5, "--json")
    assert continued.exit_code == 0, continued.stderr
    assert continued.json["trials"][:4] == before["trials"]
    assert (continued.json["new_trials"], continued.json["run_id"]) == (1, before["run_id"])
    assert runs_of(project, "tiny") == []
    (study_run,) = [run for run in runs_of(project, "other") if run.info.run_id == before["run_id"]]
    assert (study_run.info.run_name, study_run.data.tags["optuna_study"]) == ("other", "other")
    assert not [path for path in (project.folder / "fmnist-search").rglob("tiny*") if path.suffix != ".toml"]

    assert project.run("search", "tiny.toml", "--dry-run").exit_code == 0  # the name is free
    (error,) = project.run("studies", "rename", "other", "a/b", "--yes").errors
    assert "NEW: 'a/b' is not a valid name" in error


def test_a_deleted_study_leaves_its_registered_models(project: FinishedStudy) -> None:
    tested = project.run("evaluate", "models:/fmnist-search/1", "--json").json
    all_runs = {run.info.run_id for run in runs_of(project, "tiny")}
    storage = open_storage(workspace_of(project).storage_url)
    with Lease.acquire(storage, "tiny", 5, 60):
        (error,) = project.run("studies", "delete", "tiny", "--yes").errors
        assert "study 'tiny': is searched by" in error
    StudyToChange(storage, "tiny").begin(["delete", "tiny"])
    (error,) = project.run("search", "tiny.toml", "--trials", 5).errors
    assert "its deletion was interrupted; run `fmnist-search studies delete tiny` again first" in error

    deleted = project.run("studies", "delete", "tiny", "--yes")
    assert deleted.exit_code == 0, deleted.stderr
    assert (
        deleted.stdout == "tiny: deleted with 4 trials and 6 runs in MLflow; registered models stay: "
        "models:/fmnist-search/1\n"
    )
    (kept,) = runs_of(project, "tiny")
    version = MlflowClient(project.tracking_uri).get_model_version("fmnist-search", "1")
    assert kept.info.run_id == version.run_id
    assert {run.info.run_id for run in runs_of(project, "tiny", ViewType.ALL)} == all_runs
    assert project.run("evaluate", "models:/fmnist-search/1", "--json").json == tested
    assert project.run("predict", "--test-image", 0, "--model", "models:/fmnist-search/1").exit_code == 0
    assert not list((project.folder / "fmnist-search").rglob("tiny*"))
    (error,) = project.run("studies", "delete", "tiny", "--yes").errors
    assert "does not exist here" in error or "holds no study yet" in error
    assert project.run("search", "tiny.toml", "--trials", 1).exit_code == 0  # a new study of that name
