"""Errors of users: one line each, the documented exit code, no traceback, and nothing written."""

from __future__ import annotations

import gzip
import socket
from pathlib import Path

import joblib
import pytest
from mlflow import MlflowClient

from fmnist_search.data.files import DataSource
from fmnist_search.recipe.datasets import FILE_NAMES
from fmnist_search.recipe.execution import Execution
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from tests.integration.conftest import CommandResult, FinishedStudy, RunCommand


def assert_error(outcome: CommandResult, *expected: str, code: int = 2, lines: int = 1) -> None:
    assert outcome.exit_code == code, outcome
    assert len(outcome.errors) == lines, outcome.stderr
    assert "Traceback" not in outcome.stderr
    for text in expected:
        assert text in outcome.stderr


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("budget.trails=3", ["budget.trails", "did you mean 'trials'"]),
        ("model.kernel_1=4", ["space.cnn.kernel_1", "4", "3, 5, 7"]),
        ("batch_size=5000", ["space.common.batch_size", "5000", "500 training images"]),
        ("optimizer.learning_rate=0.0", ["optimizer.learning_rate", "above 0"]),
        ("optimizer.learning_rat=0.1", ["did you mean 'optimizer.learning_rate'"]),
        ("model.dept=2", ["did you mean 'model.depth'"]),
        ("sampler=tpee", ["sampler", "did you mean 'tpe'"]),
        ("budget.epochs=0", ["budget.epochs", "greater than or equal to 1"]),
    ],
)
def test_an_invalid_setting_is_named_with_a_remedy(
    command: RunCommand, tiny: Path, setting: str, expected: list[str]
) -> None:
    assert_error(command("search", "tiny.toml", "--set", setting), *expected)
    assert sorted(path.name for path in tiny.parent.iterdir()) == ["tiny.toml"]


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", ""])
def test_an_invalid_number_of_workers_is_refused(command: RunCommand, tiny: Path, number: str) -> None:
    outcome = command("search", "tiny.toml", "--set", f"execution.workers={number}")
    assert_error(outcome, "execution.workers", "give 1 or more, or 'auto'")
    outcome = command("search", "tiny.toml", "--workers", number or "none")
    assert_error(outcome, "execution.workers", repr(number or "none").strip("'"), "give 1 or more, or 'auto'")
    assert sorted(path.name for path in tiny.parent.iterdir()) == ["tiny.toml"]


@pytest.mark.slow
def test_more_workers_than_fit_are_reported_and_the_study_runs(command: RunCommand, tiny: Path) -> None:
    # A trial that takes every core leaves none for a second one.
    cores = joblib.cpu_count()
    changes = ("data.train_images=100", "data.validation=100", "budget.epochs=1", "finalists.recipes=0")
    small = [f"--set={change}" for change in changes]
    outcome = command("search", "tiny.toml", "--workers", 99, "--threads", cores, "--trials", 1, *small)
    assert outcome.exit_code == 0, outcome.stderr
    (line,) = (line for line in outcome.stderr.splitlines() if "execution.workers: 99" in line)
    assert f"99 with {cores} thread" in line
    assert "is more than" in line
    assert line.endswith("1 at a time")


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("graph", ["engine: 'graph'", "the device is 'cpu'", "--engine plain"]),
        ("other", ["execution.engine", "'plain' or 'graph'"]),
    ],
)
def test_an_unavailable_engine_is_refused(command: RunCommand, tiny: Path, engine: str, expected: list[str]) -> None:
    assert_error(command("search", "tiny.toml", "--device", "cpu", "--engine", engine), *expected)
    assert sorted(path.name for path in tiny.parent.iterdir()) == ["tiny.toml"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("{ low = 3e-3, high = 3e-2, log = true }", "{ low = 3e-2, high = 3e-3 }", "is not below high"),
        ("depth = [1, 2]", "depth = []", "an empty list holds no value"),
        ("name = ", "name ", "not valid TOML"),
        ("[budget]", "[budgets]", "did you mean 'budget'"),
    ],
)
def test_an_invalid_study_file_names_the_key(
    command: RunCommand, tiny: Path, before: str, after: str, expected: str
) -> None:
    tiny.write_text(tiny.read_text().replace(before, after, 1))
    outcome = command("search", "tiny.toml")
    assert outcome.exit_code == 2
    assert all(line.startswith("error: tiny.toml: ") for line in outcome.errors)
    assert expected in outcome.stderr


def test_a_missing_study_file_names_existing_ones(command: RunCommand, tiny: Path) -> None:
    assert_error(command("search", "tinny.toml"), "tinny.toml", "no such file", "tiny.toml")


def test_cuda_without_a_gpu_is_refused(command: RunCommand, tiny: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert_error(command("search", "tiny.toml", "--device", "cuda"), "cuda", "--device cpu")
    assert_error(command("search", "tiny.toml", "--device", "gpu"), "'gpu'", "--device cpu")
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.toml"]


def test_a_study_whose_device_is_missing_is_refused(command: RunCommand, tiny: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert command("search", "tiny.toml", "--trials", 1, "--set", "finalists.recipes=0").exit_code == 0
    store = StudyStore.load(f"sqlite:///{tmp_path / 'fmnist-search' / 'optuna.db'}", "tiny")
    store.runtime = StudyRuntime(Execution(device="cuda"), "float32")
    assert_error(command("search", "tiny.toml", "--trials", 2), "began on 'cuda'", "--fresh")
    assert command("status", "--json").json["completed"] == 1


def test_an_unreachable_store_is_reported_within_seconds(command: RunCommand, tiny: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        home = tmp_path / "home"
        assert_error(command("search", "tiny.toml", "--tracking-uri", uri, "--workdir", home), uri, "--tracking-uri")
        assert not home.exists()


def test_an_unwritable_store_is_one_error_line(command: RunCommand, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "invalid.db").write_text("this is no database " * 100)
    uri = f"sqlite:///{tmp_path / 'invalid.db'}"
    assert_error(command("search", "tiny.toml", "--tracking-uri", uri), "invalid.db")
    below_a_file = f"sqlite:///{tmp_path}/tiny.toml/mlflow.db"
    assert_error(command("search", "tiny.toml", "--tracking-uri", below_a_file), "tiny.toml")
    assert_error(command("ui", "--tracking-uri", f"sqlite:///{tmp_path}/nowhere/mlflow.db"), "nowhere")
    assert_error(command("search", "tiny.toml", "--workdir", tmp_path / "tiny.toml"), "--workdir")


def test_a_truncated_dataset_file_is_one_error_line(
    command: RunCommand, tiny: Path, tmp_path: Path, source: DataSource
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in FILE_NAMES:
        content = (source.cache / "fashion-mnist" / name).read_bytes()
        (folder / name).write_bytes(content[:-1000])
    assert_error(command("search", "tiny.toml", "--data-dir", folder), "train-images", "cut short")
    for name in FILE_NAMES:
        (folder / name).rename(folder / f"{name}.gz")
        (folder / f"{name}.gz").write_bytes(gzip.compress(b"0" * 1000)[:-10])
    assert_error(command("data", "--data-dir", folder), "train-images", "cannot be read")


def test_missing_studies_runs_models_and_images_are_named(finished: FinishedStudy, tmp_path: Path) -> None:
    assert_error(finished.run("status", "tyny"), "tyny", "did you mean 'tiny'")
    assert_error(finished.run("promote", "nothing"), "nothing")
    assert_error(finished.run("train", "--from-run", "f" * 32), "f" * 32, "does not exist")
    assert_error(finished.run("evaluate", "models:/nobody@champion"), "models:/nobody@champion", "does not exist")
    assert_error(finished.run("evaluate", "nobody"), "nobody")
    assert_error(finished.run("predict", "--test-image", "0", "--model", "models:/fmnist-search/99"), "/99")
    assert_error(finished.run("predict", "--test-image", "10000"), "10000", "9999")
    assert_error(finished.run("predict"), "--test-image")
    assert_error(finished.run("predict", tmp_path / "none.png"), "none.png", "no such file")
    (tmp_path / "text.png").write_text("not a picture")
    assert_error(finished.run("predict", tmp_path / "text.png"), "text.png", "cannot be read as an image")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--ensemble", 1], ["finalists.ensemble: 1 is not an ensemble"]),
        (["--ensemble", 3], ["finalists.ensemble: 3 members are more than the 2 finalists"]),
        # The study has four trials at most.
        (
            ["--recipes", 9, "--seeds", 1, "--ensemble", 9],
            ["finalists.ensemble: 9 members are more than the", "distinct"],
        ),
        (["--model-name", "a/b"], ["finalists.model_name: 'a/b' is not a valid name", "letters"]),
        (["--model-name", "a:b"], ["finalists.model_name: 'a:b' is not a valid name"]),
        (["--model-name", ""], ["--model-name: is empty"]),
        (["--model-name", "taken"], ["finalists.model_name: 'taken' is the name of a prompt"]),
    ],
    ids=str,
)
def test_an_impossible_promotion_is_refused_before_training(
    finished: FinishedStudy, options: list[object], expected: list[str]
) -> None:
    client = MlflowClient(finished.tracking_uri)
    if "taken" in options:
        client.register_prompt("taken", "Say {{it}}.")
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    before = len(client.search_runs([experiment.experiment_id]))
    assert_error(finished.run("promote", "tiny", *options), *expected)
    assert len(client.search_runs([experiment.experiment_id])) == before
    assert [version.version for version in client.search_model_versions("name='fmnist-search'")] == [1]


def test_a_study_without_a_completed_trial_cannot_be_promoted(command: RunCommand, tiny: Path) -> None:
    bad = ["--set", "optimizer.name=sgd", "--set", "optimizer.learning_rate=100.0", "--set", "model.norm=none"]
    assert command("search", "tiny.toml", "--set", "budget.failures=1", *bad).exit_code == 4
    assert_error(command("promote", "tiny"), "'tiny': has no completed trial to promote", code=3)


def test_a_run_without_a_recipe_cannot_be_trained(finished: FinishedStudy) -> None:
    status = finished.run("status", "tiny", "--json").json
    assert_error(finished.run("train", "--from-run", status["run_id"]), "recipe.toml")


def test_each_error_of_a_recipe_file_is_a_line(command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("epochs = 0\nbatchsize = 3\n[model]\nfamily = 'cnn'\nkernel_1 = 4\n")
    assert_error(command("train", "recipe.toml"), "epochs", "batchsize", "model.kernel_1", lines=3)
    assert_error(command("train"), "recipe file", "--from-run")


def test_a_network_that_pools_too_often_is_refused(command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[model]\nfamily = 'cnn'\ndepth = 5\npool_size = 4\n")
    assert_error(command("train", "recipe.toml"), "model.pool_size", "block 3")
    (tmp_path / "recipe.toml").write_text("[model]\nfamily = 'cnn'\nwidth_2 = 4096\nwidth_3 = 4096\nkernel_3 = 7\n")
    assert_error(command("train", "recipe.toml"), "parameters", "50,000,000")


def test_a_study_whose_trials_all_fail_reports_the_reason(command: RunCommand, tiny: Path) -> None:
    outcome = command(
        "search",
        "tiny.toml",
        "--set",
        "optimizer.name=sgd",
        "--set",
        "optimizer.learning_rate=100.0",
        "--set",
        "budget.failures=2",
        "--set",
        "model.norm=none",
    )
    assert_error(outcome, "2 trials failed", "not finite", code=4)


def test_reading_in_an_empty_folder_writes_nothing(command: RunCommand, tmp_path: Path) -> None:
    assert_error(command("status"), "no study yet", "fmnist-search search")
    assert_error(command("leaderboard", "quick"), "no study yet")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_a_usage_error(command: RunCommand) -> None:
    outcome = command("search", "--nonsense")
    assert outcome.exit_code == 2
    assert "--nonsense" in outcome.stderr
