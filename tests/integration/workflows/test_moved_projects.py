"""A project whose folder was moved or copied: noticed, relocated, and never a danger to the original."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fmnist_search.errors import UserError
from fmnist_search.tracking.artifact_locations import check_artifacts_exist
from fmnist_search.tracking.events import Event, EventKind
from fmnist_search.tracking.outbox import Outbox
from tests.integration.conftest import FinishedStudy, copy_study

HOUR = 3600


@pytest.fixture(scope="module")
def original(tiny_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A project in a folder of its own, with a deleted trial and an old file of a study that is gone."""
    study = copy_study(tiny_study, tmp_path_factory.mktemp("projects") / "original")
    client = MlflowClient(study.tracking_uri)
    (trial,) = client.search_runs(["1"], "attributes.run_name LIKE '003 %'")
    client.delete_run(trial.info.run_id)
    weights = study.folder / "fmnist-search" / "weights"
    shutil.copytree(weights / "tiny", weights / "vanished")
    for path in weights.rglob("*"):
        os.utime(path, (time.time() - 2 * HOUR,) * 2)
    return study


def duplicate(study: FinishedStudy, folder: Path) -> FinishedStudy:
    """Copy a project as `cp -a` does."""
    shutil.copytree(study.folder, folder, symlinks=True)
    return FinishedStudy(folder, study.result)


@pytest.fixture
def copied(original: FinishedStudy, tmp_path: Path) -> FinishedStudy:
    return duplicate(original, tmp_path / "copy of it")


@pytest.fixture(scope="module")
def moved(original: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A project that was moved, with an event that had not been sent before; tests do not change it."""
    before = copy_study(original, tmp_path_factory.mktemp("before") / "project")
    outbox = Outbox(before.folder / "fmnist-search" / "outbox.db", before.tracking_uri)
    with closing(outbox):
        run_id = run_ids(before)[0]
        outbox.remember_run(run_id, run_id)
        outbox.put(Event(run_id, EventKind.BATCH, {"tags": {"late": "yes"}}))
    after = tmp_path_factory.mktemp("after") / "project"
    before.folder.rename(after)
    return FinishedStudy(after, before.result)


def run_ids(study: FinishedStudy) -> list[str]:
    return [str(run.info.run_id) for run in MlflowClient(study.tracking_uri).search_runs(["1"], "tags.kind = 'trial'")]


def old_folder(study: FinishedStudy) -> Path:
    """Return the folder that the store names."""
    with closing(sqlite3.connect(study.folder / "mlflow.db")) as database:
        (location,) = database.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 1").fetchone()
    return Path(location).parents[1]


def files(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder with their content, without SQLite's own files beside a database in use."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in found if not path.name.endswith(("-shm", "-wal"))}


def rows(database: Path) -> list[str]:
    """Return the content of a database as SQL."""
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.iterdump())


NEEDS_ARTIFACTS = [
    ["search", "tiny.toml"],
    ["search", "tiny.toml", "--fresh"],
    ["promote", "tiny"],
    ["train", "lenet", "--epochs", "1"],
    ["train", "--from-run", "RUN", "--dry-run"],
    ["reproduce", "0", "--no-record"],
    ["compare", "0", "1"],
    ["ensemble", "0", "1"],
    ["draw", "filters", "0", "--output", "filters.png"],
    ["predict", "--test-image", "0"],
    ["evaluate", "--again"],
    ["export", "--onnx", "champion.onnx"],
    ["sync"],
]


@pytest.mark.parametrize("arguments", NEEDS_ARTIFACTS, ids=lambda arguments: " ".join(arguments))
def test_a_command_that_needs_artifacts_says_that_the_project_was_moved(
    moved: FinishedStudy, arguments: list[str]
) -> None:
    before, old = files(moved.folder), old_folder(moved)
    outcome = moved.run(*(run_ids(moved)[0] if argument == "RUN" else argument for argument in arguments))
    (line,) = outcome.errors
    assert outcome.exit_code == 2
    assert f"{old / 'mlruns'}" in line
    assert "run `fmnist-search relocate`" in line
    assert not old.exists()
    assert files(moved.folder).keys() == before.keys()
    assert [row["study"] for row in moved.run("studies", "list", "--json").json] == ["tiny"]


def test_doctor_names_the_old_folder(moved: FinishedStudy) -> None:
    outcome = moved.run("doctor", "--json")
    (failed,) = [check for check in outcome.json if not check["ok"]]
    assert outcome.exit_code == 1
    assert failed["subject"] == "MLflow store"
    assert str(old_folder(moved) / "mlruns") in failed["finding"]


def test_a_moved_project_is_whole_again_after_relocate(moved: FinishedStudy, tmp_path: Path) -> None:
    project = duplicate(moved, tmp_path / "project")
    before, old = rows(project.folder / "mlflow.db"), old_folder(project)
    relocated = project.run("relocate", "--json").json
    assert relocated["before"] == [str(old)]
    assert relocated["changed"] == {"experiments": 2, "logged_models": 1, "model_versions": 1, "runs": 7}
    assert (relocated["events"], relocated["kept"]) == (1, [])
    assert rows(Path(relocated["backup"])) == before
    assert str(old).encode() not in (project.folder / "mlflow.db").read_bytes()

    again = project.run("relocate", "--json").json
    assert (again["changed"], again["before"], again["backup"]) == ({}, [], None)
    assert project.run("sync", "--json").json == {"events": 1}
    assert MlflowClient(project.tracking_uri).get_run(run_ids(project)[0]).data.tags["late"] == "yes"
    assert check_artifacts_exist(project.tracking_uri) == []
    for command in (["predict", "--test-image", 0], ["compare", 0, 1], ["reproduce", 0, "--no-record"]):
        outcome = project.run(*command)
        assert outcome.exit_code == 0, outcome.stderr
    assert not old.exists()


def test_gc_in_a_copy_leaves_the_original_as_it_is(original: FinishedStudy, copied: FinishedStudy) -> None:
    before = files(original.folder)
    listed = {group["group"]: group["items"] for group in copied.run("gc", "--json").json["groups"]}
    (run,) = listed["runs"]
    outcome = copied.run("gc", "--delete", "--yes")
    assert outcome.exit_code == 0, outcome.stderr
    assert f"1 of these lie outside this project and stay, such as {original.folder}" in outcome.stderr
    assert "relocate" in outcome.stderr
    assert files(original.folder) == before
    assert not (copied.folder / "fmnist-search" / "weights" / "vanished").exists()

    own = copied.folder / "mlruns" / "fmnist-search" / run["name"] / "artifacts"
    assert own.is_dir()
    assert copied.run("relocate").exit_code == 0
    outcome = copied.run("gc", "--delete", "--yes")
    assert "1 removed" in outcome.stdout, outcome.stderr
    assert not own.exists()
    assert files(original.folder) == before


def test_a_search_in_a_copy_does_not_write_to_the_original(original: FinishedStudy, copied: FinishedStudy) -> None:
    before = files(original.folder)
    more = ["search", "tiny.toml", "--trials", 5, "--set", "finalists.recipes=0"]
    refused = copied.run(*more)
    assert refused.exit_code == 2
    assert str(original.folder) in refused.errors[0]
    assert copied.run("relocate").exit_code == 0
    continued = copied.run(*more)
    assert "1 new trial" in continued.stderr, continued.stderr
    assert copied.run("predict", "--test-image", 0).exit_code == 0
    assert files(original.folder) == before


def test_gc_does_not_follow_symbolic_links(original: FinishedStudy, copied: FinishedStudy, tmp_path: Path) -> None:
    assert copied.run("relocate").exit_code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for linked in (
        copied.folder / "mlruns" / "fmnist-search",
        copied.folder / "fmnist-search" / "weights" / "vanished",
    ):
        target = shutil.move(linked, elsewhere / f"real {linked.name}")
        linked.symlink_to(target)
    before = files(elsewhere)
    outcome = copied.run("gc", "--delete", "--yes", "--json")
    assert outcome.json["removed"] == 0
    assert outcome.json["bytes"] > 0
    assert "lie outside this project and stay" in outcome.stderr
    assert files(elsewhere) == before


def test_artifacts_without_a_copy_keep_their_addresses(original: FinishedStudy, copied: FinishedStudy) -> None:
    before = original.folder / "mlruns" / "second"
    copy_uri = copied.tracking_uri
    try:
        experiment = MlflowClient(copy_uri).create_experiment("second", str(before))
        run_id = MlflowClient(copy_uri).create_run(experiment).info.run_id
        MlflowClient(copy_uri).log_text(run_id, "text", "file.txt")
        outcome = copied.run("relocate")
        assert f"left: {before}, which exists" in outcome.stderr
        client = MlflowClient(copy_uri)
        assert client.get_run(run_id).info.artifact_uri.startswith(str(before))
        assert client.get_experiment_by_name("fmnist-search").artifact_location.startswith(str(copied.folder))
    finally:
        shutil.rmtree(before)


def test_runs_that_were_not_copied_are_named_and_found_once_they_are_copied(
    original: FinishedStudy, copied: FinishedStudy
) -> None:
    run_id = run_ids(copied)[0]
    shutil.rmtree(copied.folder / "mlruns" / "fmnist-search" / run_id)
    outcome = copied.run("relocate", "--json")
    missing = original.folder / "mlruns" / "fmnist-search" / run_id / "artifacts"
    assert outcome.json["uncopied"] == [str(missing)]
    assert f"such as {missing}" in outcome.stderr
    (line,) = copied.run("compare", run_id).errors
    own = copied.folder / "mlruns" / "fmnist-search" / run_id
    assert f"there is no {own}" in line
    assert copied.run("relocate").stdout == "nothing to rewrite\n"
    shutil.copytree(missing.parent, own)
    assert copied.run("compare", run_id).exit_code == 0


def test_folders_may_have_any_name(copied: FinishedStudy, tmp_path: Path) -> None:
    folder = copied.folder
    for name in ("is it 100%25 #1?", "plain"):
        folder = folder.rename(tmp_path / name)
        project = FinishedStudy(folder, copied.result)
        relocated = project.run("relocate", "--json").json
        assert (relocated["project"], relocated["changed"]["runs"]) == (str(folder), 7)
        for command in (["compare", 0, 1], ["predict", "--test-image", 0]):
            outcome = project.run(*command)
            assert outcome.exit_code == 0, outcome.stderr
        (run,) = {g["group"]: g["items"] for g in project.run("gc", "--json").json["groups"]}["runs"]
        assert run["bytes"] > 0
    assert project.run("gc", "--delete", "--yes").exit_code == 0
    assert not (folder / "mlruns" / "fmnist-search" / run["name"] / "artifacts").exists()


def test_a_missing_model_is_named(copied: FinishedStudy) -> None:
    assert copied.run("relocate").exit_code == 0
    models = copied.folder / "mlruns" / "fmnist-search" / "models"
    shutil.rmtree(models)
    for command in (["predict", "--test-image", 0], ["evaluate", "--again"]):
        (line,) = copied.run(*command).errors
        assert f"there is no {models}" in line
        assert "restore it" in line
    with pytest.raises(UserError, match=f"there is no {models}"):
        check_artifacts_exist(copied.tracking_uri)


def test_missing_artifacts_without_a_copy_are_named(moved: FinishedStudy, tmp_path: Path) -> None:
    project = duplicate(moved, tmp_path / "project")
    shutil.rmtree(project.folder / "mlruns")
    old = old_folder(project) / "mlruns"
    (line,) = project.run("predict", "--test-image", 0).errors
    assert f"there is no {old}" in line
    assert f"copy it to {project.folder / 'mlruns'}" in line
    outcome = project.run("relocate")
    assert "nothing to rewrite" in outcome.stdout
    assert f"left: {old / 'fmnist-search'}, which is missing" in outcome.stderr


def test_relocate_needs_a_local_store(tmp_path: Path, copied: FinishedStudy) -> None:
    for uri, message in (("http://127.0.0.1:1", "is not a SQLite file"), (f"sqlite:///{tmp_path}/x.db", "no store")):
        outcome = copied.run("relocate", "--tracking-uri", uri)
        assert outcome.exit_code == 2
        assert message in outcome.errors[0]
    assert not (tmp_path / "x.db").exists()
