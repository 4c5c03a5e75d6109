"""Stored runs: `compare`, `reproduce` and `gc`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from fmnist_search import run_study
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.workflows import garbage
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workspace import Workspace, image_cache_folder
from tests.integration.conftest import (
    TINY_STUDY,
    CommandResult,
    FinishedStudy,
    copy_study,
    read_artifact,
    run_command,
)

OTHER_STUDY = TINY_STUDY.replace('name = "tiny"', 'name = "other"').replace("workers = 1 ", "workers = 2 ")
"""Its trials run in worker processes."""
UNUSUAL_EXECUTION = Execution(threads=1, memory_format="contiguous", allocator="retaining")
"""No measurement would choose it."""


@pytest.fixture(scope="module")
def finished(tiny_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """Return a folder with a study of one worker and its champion, and one of two workers with other settings."""
    folder = copy_study(tiny_study, tmp_path_factory.mktemp("runs")).folder
    (folder / "other.toml").write_text(OTHER_STUDY)
    changes = {"finalists.recipes": 0}
    workspace = Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}")
    study_store = StudyStore.open(workspace.storage_url, StudyConfig.load(folder / "other.toml", changes))
    study_store.runtime = StudyRuntime(UNUSUAL_EXECUTION, "float32")
    outcome = run_command(folder, "search", "other.toml", "--set", "finalists.recipes=0")
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)


@pytest.fixture(scope="module")
def client(finished: FinishedStudy) -> MlflowClient:
    return MlflowClient(finished.tracking_uri)


def completed_run_ids(finished: FinishedStudy, study: str) -> dict[int, str]:
    """Return the run ids of the completed trials of a study by number."""
    rows = finished.run("leaderboard", study, "--top", 99, "--json").json
    return {row["number"]: row["run_id"] for row in rows}


def assert_single_error(outcome: CommandResult, *expected: str) -> None:
    assert outcome.exit_code == 2, outcome
    assert len(outcome.errors) == 1, outcome.stderr
    assert not outcome.stdout
    for text in expected:
        assert text in outcome.errors[0]


# ------------------------------------------------------------------------------------------ compare


def test_trials_of_the_latest_study_are_compared(finished: FinishedStudy) -> None:
    ids = completed_run_ids(finished, "other")
    found = finished.run("compare", 0, 1, "--json").json
    assert [r["run_id"] for r in found["runs"]] == [ids[0], ids[1]]
    one, other = (finished.run("show", number, "--study", "other", "--json").json for number in (0, 1))
    flat = one["recipe"], other["recipe"]
    names = [name for name in flat[0] | flat[1] if flat[0].get(name) != flat[1].get(name)]
    assert sorted(found["differing"]) == sorted(names)
    for shown, trial in zip(found["runs"], (one, other), strict=True):
        assert (shown["accuracy"], shown["best"]) == (trial["value"], max(trial["curve"]))
        assert (shown["epochs"], shown["kind"], shown["state"]) == (2, "trial", "completed")
        assert shown["recipe"] == trial["recipe"]


def test_the_table_shows_differences_and_with_all_every_hyperparameter(finished: FinishedStudy) -> None:
    found = finished.run("compare", 0, 1, "--study", "tiny", "--json").json
    short, long = (finished.run("compare", 0, 1, "--study", "tiny", *more).stdout for more in ([], ["--all"]))
    figures = ["run", "kind", "state", "val_accuracy", "best val_accuracy", "epochs", "seconds", "parameters"]
    first_cells = [line.split("  ")[0] for line in short.splitlines()[1:]]
    assert first_cells == [*figures, *found["differing"]]
    assert "schedule.name" in long
    assert "schedule.name" not in short


def test_a_run_equals_itself(finished: FinishedStudy) -> None:
    run_id = completed_run_ids(finished, "tiny")[0]
    outcome = finished.run("compare", 0, run_id, "--study", "tiny")
    assert outcome.stdout.splitlines()[-1] == "their recipes are equal"


def test_runs_that_cannot_be_compared_are_one_error_line(finished: FinishedStudy, client: MlflowClient) -> None:
    study = finished.run("status", "tiny", "--json").json["run_id"]
    bare = client.create_run("0").info.run_id
    assert_single_error(finished.run("compare", 0, "f" * 32), "f" * 32, "does not exist")
    assert_single_error(finished.run("compare", study, 0), study, "is the run of the study 'tiny'")
    assert_single_error(finished.run("compare", bare), bare, "recipe.toml")
    assert_single_error(finished.run("compare", 99), "trial 99", "'other'", "from 0 to 3")
    assert_single_error(finished.run("compare", 0, "--study", "otter"), "did you mean 'other'")
    client.delete_run(bare)


# ---------------------------------------------------------------------------------------- reproduce


def test_a_reproduced_trial_is_identical_and_its_run_refers_to_the_original(
    finished: FinishedStudy, client: MlflowClient
) -> None:
    original = completed_run_ids(finished, "tiny")[0]
    outcome = finished.run("reproduce", 0, "--study", "tiny", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    found = outcome.json
    assert (found["run"], found["same"], found["environment"]) == (original, True, {})
    for epoch in found["epochs"]:
        for name in ("train/loss", "val/loss", "val/accuracy"):
            assert epoch[name]["was"] == epoch[name]["is"]
    tags = client.get_run(found["run_id"]).data.tags
    assert (tags["reproduces"], tags["same"]) == (original, "true")
    for name in ("train/loss", "val/loss", "val/accuracy"):
        one, other = (client.get_metric_history(run_id, name) for run_id in (original, found["run_id"]))
        assert [(p.step, p.value) for p in one] == [(p.step, p.value) for p in other]
    # The new run can be compared and reproduced itself.
    both = finished.run("compare", original, found["run_id"], "--json").json
    assert both["differing"] == []
    assert both["runs"][0]["best"] == both["runs"][1]["best"]
    assert finished.run("reproduce", found["run_id"], "--no-record").exit_code == 0


@pytest.mark.parametrize("number", [0, 3])
def test_a_trial_is_reproduced_with_the_settings_of_its_study(finished: FinishedStudy, number: int) -> None:
    outcome = finished.run("reproduce", number, "--no-record", "--json")
    assert outcome.exit_code == 0, outcome.stdout
    assert outcome.json["same"]
    execution = outcome.json["execution"]
    assert (execution["memory_format"], execution["allocator"], execution["threads"]) == ("contiguous", "retaining", 1)


def test_a_run_is_trained_again_with_its_memory_format(finished: FinishedStudy, client: MlflowClient) -> None:
    run = client.get_run(completed_run_ids(finished, "other")[0])
    again = finished.run("train", "--from-run", run.info.run_id, "--threads", 1, "--json")
    assert again.exit_code == 0, again.stderr
    assert again.json["epochs"][-1]["train_loss"] == run.data.metrics["train/loss"]
    environment = json.loads(read_artifact(client, again.json["run_id"], "environment.json"))
    assert environment["memory_format"] == UNUSUAL_EXECUTION.memory_format


def test_no_record_creates_no_run(finished: FinishedStudy, client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    before = len(client.search_runs([experiment.experiment_id]))
    outcome = finished.run("reproduce", 0, "--no-record")
    label = finished.run("show", 0).stdout.splitlines()[0].split(": ")[1].split(",")[0]
    assert outcome.stdout.splitlines() == [
        "epoch 1: identical train/loss, val/loss, val/accuracy",
        "epoch 2: identical train/loss, val/loss, val/accuracy",
        f"000 {label}: identical, bit for bit, over 2 epochs",
    ]
    assert len(client.search_runs([experiment.experiment_id])) == before


def test_a_finalist_and_a_single_training_are_reproduced(finished: FinishedStudy, client: MlflowClient) -> None:
    finalist = client.get_model_version_by_alias("fmnist-search", "champion").run_id
    assert finished.run("reproduce", finalist, "--no-record").exit_code == 0
    training = finished.run("train", "--from-run", finalist, "--json").json["run_id"]
    assert finished.run("reproduce", training, "--no-record").exit_code == 0


@contextlib.contextmanager
def altered_environment(finished: FinishedStudy, study: str, **changes: Any) -> Iterator[None]:
    """Change the stored environment of a study, and restore it at the end."""
    run_id = finished.run("status", study, "--json").json["run_id"]
    path = finished.folder / "mlruns" / "fmnist-search" / run_id / "artifacts" / "environment.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    yield
    path.write_text(before)


def test_other_settings_give_other_results_and_are_shown(finished: FinishedStudy, client: MlflowClient) -> None:
    number, run_id = next(iter(completed_run_ids(finished, "other").items()))
    changes = {"memory_format": "channels_last", "versions": {"torch": "1.0.0"}, "cores": 999}
    with altered_environment(finished, "other", **changes):
        outcome = finished.run("reproduce", number, "--no-record")
        as_json = finished.run("reproduce", run_id, "--json")
    assert outcome.exit_code == as_json.exit_code == 1
    first, *_, environment_line, verdict = outcome.stdout.splitlines()
    assert first.startswith("epoch 1: differs in train/loss by ")
    assert "versions.torch was 1.0.0" in environment_line
    assert "cores was 999" in environment_line
    assert "not identical" in verdict
    found = as_json.json
    assert not found["same"]
    assert found["environment"]["cores"] == {"was": "999", "is": str(os.cpu_count())}
    assert client.get_run(found["run_id"]).data.tags["same"] == "false"


def test_a_reproduced_pruned_trial_ends_after_the_same_epoch(finished: FinishedStudy, tmp_path: Path) -> None:
    options = ["--pruner", "median", "--set", "pruner.startup_trials=1", "--set", "finalists.recipes=0", "--trials", 4]
    (tmp_path / "pruned.toml").write_text(TINY_STUDY.replace('"tiny"', '"pruned"').replace("startup_trials = 8", ""))
    assert run_command(tmp_path, "search", "pruned.toml", *options).exit_code == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("fmnist-search").experiment_id])  # type: ignore[union-attr]
    pruned = [r.info.run_id for r in runs if r.data.tags.get("state") == "pruned"]
    assert pruned, "no trial was pruned: this test says nothing"
    found = run_command(tmp_path, "reproduce", pruned[0], "--json")
    assert found.exit_code == 0, found.stdout
    assert [epoch["epoch"] for epoch in found.json["epochs"]] == [1]


def test_runs_that_cannot_be_reproduced_are_one_error_line(finished: FinishedStudy, client: MlflowClient) -> None:
    study = finished.run("status", "tiny", "--json").json["run_id"]
    assert_single_error(finished.run("reproduce", "f" * 32), "f" * 32, "does not exist")
    assert_single_error(finished.run("reproduce", study), "is the run of the study 'tiny'")
    with altered_environment(finished, "other", device="cuda:7"):
        assert_single_error(finished.run("reproduce", 0), "'cuda:7'", "not available here")
    client.set_tag(completed_run_ids(finished, "other")[0], "state", "running")
    try:
        assert_single_error(finished.run("reproduce", 0), "has not ended")
    finally:
        client.set_tag(completed_run_ids(finished, "other")[0], "state", "completed")


# ----------------------------------------------------------------------------------------------- gc


@pytest.fixture(scope="module")
def cluttered(finished: FinishedStudy, client: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """Return the folder with old garbage of every kind, and with old files that are still needed."""
    weights = finished.folder / "fmnist-search" / "weights"
    assert finished.run("promote", "tiny", "--seeds", 1).exit_code == 0
    second = client.get_model_version("fmnist-search", "2")
    client.delete_model_version("fmnist-search", "2")
    options = ["--fresh", "--trials", 1, "--set", "finalists.recipes=0"]
    assert finished.run("search", "other.toml", *options, "--workers", 1).exit_code == 0
    shutil.copytree(weights / "tiny", weights / "vanished")
    for study in ("tiny", "vanished"):
        checkpoints = finished.folder / "fmnist-search" / "checkpoints" / study
        checkpoints.mkdir(parents=True)
        (checkpoints / "998.ckpt").write_bytes(b"of a trial that goes on")
    (weights / "tiny" / "tmpabcdef01").write_bytes(b"half a file")
    (weights / "tiny" / "999.pt").write_bytes(b"of a trial that has not ended")
    training = finished.run("train", "--from-run", completed_run_ids(finished, "tiny")[0], "--json").json["run_id"]
    for run_id in (training, completed_run_ids(finished, "tiny")[3], second.run_id, champion_version(client).run_id):
        client.delete_run(run_id)
    foreign = client.create_experiment("foreign", str(finished.folder / "foreign"))
    deleted = client.create_run(foreign).info.run_id
    client.delete_run(deleted)
    client.delete_experiment(client.create_experiment("foreign and deleted"))
    old = time.time() - 7200
    for path in (finished.folder / "fmnist-search").rglob("*"):
        if ".db" not in path.name:
            os.utime(path, (old, old))
    with sqlite3.connect(finished.folder / "mlflow.db") as database:
        database.execute("UPDATE logged_models SET creation_timestamp_ms = creation_timestamp_ms - 7200000")
    return finished


def champion_version(client: MlflowClient) -> Any:
    return client.get_model_version_by_alias("fmnist-search", "champion")


def garbage_groups(outcome: CommandResult) -> dict[str, list[str]]:
    return {group["group"]: [item["name"] for item in group["items"]] for group in outcome.json["groups"]}


def stored_files(finished: FinishedStudy) -> set[str]:
    return {str(path) for path in finished.folder.rglob("*") if path.is_file() and ".db" not in path.name}


def test_gc_lists_garbage_and_removes_nothing(cluttered: FinishedStudy, client: MlflowClient) -> None:
    before = stored_files(cluttered)
    outcome = cluttered.run("gc", "--keep", 2, "--json")
    found = garbage_groups(outcome)
    weights = cluttered.folder / "fmnist-search" / "weights"
    assert [Path(name).parent for name in found["gone"]] == [weights / "vanished"] * 4
    (archived,) = {Path(name).parent.name for name in found["aside"]}
    assert archived.startswith("other until ")
    beaten = completed_trial_numbers(cluttered, "tiny")[2:]
    assert [Path(name).name for name in found["beaten"]] == sorted(f"{number:03d}.pt" for number in beaten)
    assert [Path(name).name for name in found["unfinished"]] == ["tmpabcdef01"]
    assert [Path(name).parent.name for name in found["checkpoints"]] == ["vanished"]
    assert len(found["deleted"]) == 1
    assert len(found["models"]) == 1
    assert found["models"][0] not in champion_version(client).source
    assert completed_run_ids(cluttered, "tiny")[3] in found["runs"]
    assert champion_version(client).run_id not in found["runs"]
    assert len(found["runs"]) == 2
    sizes = {item["name"]: item["bytes"] for group in outcome.json["groups"] for item in group["items"]}
    assert sum(sizes.values()) == outcome.json["bytes"]
    for name, count in sizes.items():
        assert count == Path(name).stat().st_size if name.startswith("/") else count > 0
    assert outcome.json["removed"] == 0
    assert stored_files(cluttered) == before


def completed_trial_numbers(finished: FinishedStudy, study: str) -> list[int]:
    """Return the completed trials of a study, the best first."""
    return [row["number"] for row in finished.run("leaderboard", study, "--top", 99, "--json").json]


def test_gc_shows_groups_with_their_sizes_and_a_total(cluttered: FinishedStudy) -> None:
    found = cluttered.run("gc", "--keep", 2, "--json").json
    head, *rows, total = cluttered.run("gc", "--keep", 2).stdout.splitlines()
    assert head.split() == ["what", "of", "count", "size"]
    assert {row.split("  ")[0] for row in rows} == {group["what"] for group in found["groups"]}
    count = sum(len(group["items"]) for group in found["groups"])
    assert total.split()[:2] == ["total", str(count)]


def test_recent_files_are_not_garbage(cluttered: FinishedStudy, tmp_path: Path) -> None:
    vanished = cluttered.folder / "fmnist-search" / "weights" / "vanished"
    young = vanished / "000.pt"
    before = young.stat()
    young.touch()
    try:
        assert str(young) not in garbage_groups(cluttered.run("gc", "--json"))["gone"]
    finally:
        os.utime(young, (before.st_atime, before.st_mtime))


def test_gc_asks_before_it_removes(cluttered: FinishedStudy) -> None:
    before = stored_files(cluttered)
    assert_single_error(cluttered.run("gc", "--delete", "--json"), "gc --delete", "--yes")
    assert stored_files(cluttered) == before


@contextlib.contextmanager
def answering(answer: str) -> Iterator[None]:
    """Let the standard input of this process be a terminal, in which a user answers."""
    near, far = pty.openpty()
    before = sys.stdin
    with os.fdopen(near, "w") as typing, os.fdopen(far) as terminal:
        typing.write(f"{answer}\n")
        typing.flush()
        sys.stdin = terminal
        try:
            yield
        finally:
            sys.stdin = before


@pytest.mark.in_process  # answers in place of a terminal
def test_gc_removes_nothing_if_the_answer_is_no(cluttered: FinishedStudy) -> None:
    before = stored_files(cluttered)
    with answering("n"):
        outcome = cluttered.run("gc", "--delete")
    assert outcome.exit_code == 0, outcome.stderr
    assert "permanently" in outcome.stderr
    assert "freed" not in outcome.stdout
    assert stored_files(cluttered) == before


def test_a_file_that_replaced_a_listed_one_stays(cluttered: FinishedStudy) -> None:
    home = Workspace.resolve(cluttered.tracking_uri)
    items = garbage.find_garbage(home, image_cache_folder(), 2)
    listed = [item for item in items if item.kind is garbage.GarbageKind.ORPHANED]
    path = Path(listed[0].name)
    before, content = path.stat(), path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, (before.st_atime, before.st_mtime - 60))
    assert garbage.remove_garbage(home, image_cache_folder(), 2, listed[:1]) == []
    assert path.exists()


@pytest.mark.in_process  # answers in place of a terminal
def test_gc_removes_what_it_listed_and_nothing_that_is_needed(cluttered: FinishedStudy, client: MlflowClient) -> None:
    weights = cluttered.folder / "fmnist-search" / "weights"
    listed = garbage_groups(cluttered.run("gc", "--keep", 2, "--json"))
    before = stored_files(cluttered)
    with answering("y"):
        outcome = cluttered.run("gc", "--keep", 2, "--delete")
    assert outcome.exit_code == 0, outcome.stderr
    assert f"Remove these {sum(map(len, listed.values()))} permanently" in outcome.stderr
    assert f": {sum(map(len, listed.values()))} removed" in outcome.stdout.splitlines()[-1]
    gone = before - stored_files(cluttered)
    parts = [name for names in listed.values() for name in names]
    assert all(any(part in path for part in parts) for path in gone)
    assert all(any(part in path for path in gone) for part in parts)
    assert cluttered.run("gc", "--keep", 2).stdout == "nothing to remove\n"
    assert sorted(path.name for path in weights.iterdir()) == ["other", "tiny", "train"]
    assert (weights / "tiny" / "999.pt").exists()

    # Deleted runs of other experiments stay, and the run of a finalist can still be restored.
    experiments = {e.name: e for e in client.search_experiments(view_type=ViewType.ALL)}
    assert experiments["foreign and deleted"].lifecycle_stage == "deleted"
    assert client.search_runs([experiments["foreign"].experiment_id], run_view_type=ViewType.DELETED_ONLY)
    client.restore_run(champion_version(client).run_id)
    assert cluttered.run("reproduce", champion_version(client).run_id, "--no-record").exit_code == 0
    assert cluttered.run("predict", "--test-image", 0).exit_code == 0
    again = cluttered.run("search", "tiny.toml", "--trials", 6, "--set", "finalists.recipes=0")
    assert again.exit_code == 0, again.stderr
    assert "new trials" in again.stderr


@pytest.mark.slow
def test_gc_does_not_disturb_a_running_study(tmp_path: Path) -> None:
    home = Workspace.resolve(f"sqlite:///{tmp_path / 'mlflow.db'}")
    removed: list[str] = []

    def remove_all_garbage(_: EpochReport) -> Decision:
        cache, at_once = tmp_path / "no cache", -1.0
        items = garbage.find_garbage(home, cache, 1, min_age=at_once)
        removed.extend(item.name for item in garbage.remove_garbage(home, cache, 1, items, min_age=at_once))
        return Decision.CONTINUE

    (tmp_path / "tiny.toml").write_text(TINY_STUDY)
    config = StudyConfig.load(tmp_path / "tiny.toml", {"budget.trials": 3, "finalists.recipes": 0})
    summary = run_study(
        config, workspace=home, tracking=TrackingOptions(plot_interval=None), stopper=remove_all_garbage
    )
    assert summary.count(TrialState.COMPLETED) == 3
    assert summary.best is not None
    assert home.weights_path("tiny", summary.best.number).exists()
    assert removed, "nothing was ever removed: this test says nothing"


def test_gc_finds_nothing_in_an_empty_folder(tmp_path: Path) -> None:
    outcome = run_command(tmp_path, "gc")
    assert (outcome.exit_code, outcome.stdout) == (0, "nothing to remove\n")
