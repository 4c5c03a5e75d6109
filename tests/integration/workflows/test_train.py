"""`train`: a recipe without a study, from every kind of source; its artifacts, resuming it, and several seeds."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from fmnist_search import load_model
from fmnist_search.config.toml_files import read_recipe
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import read_test_set
from fmnist_search.recipe.execution import ExecutionSettings
from fmnist_search.results.training import EpochReport
from fmnist_search.training.checkpoint import classifier_from_weights
from fmnist_search.training.evaluation import evaluate
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.single_training import train_seeds
from fmnist_search.workspace import Workspace
from tests.integration.conftest import (
    CommandResult,
    RunCommand,
    read_artifact,
    run_command,
    run_interrupted_command,
    start_command,
)

RECIPE_TOML = """
epochs = 2
batch_size = 100
seed = 5
[model]
family = "cnn"
depth = 2
width_1 = 4
width_2 = 8
[optimizer]
learning_rate = 0.01
[data]
train_images = 500
validation = 500
"""
DIVERGING_OPTIONS = ["--set=optimizer.name=sgd", "--set=optimizer.learning_rate=100", "--set=model.norm=none"]
SMALL_DATA_OPTIONS = ["--set", "data.train_images=500", "--set", "data.validation=500", "--epochs", 1]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE_TOML)
    return path


def make_client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def metric_history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def assert_single_error(outcome: CommandResult, *texts: str, code: int = 2) -> None:
    assert outcome.exit_code == code, outcome
    assert len(outcome.errors) == len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert all(text in outcome.errors[0] for text in texts), outcome.stderr


# ---------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("arguments", [["logistic"], ["--preset", "logistic"]])
def test_a_preset_is_trained_by_its_name(command: RunCommand, tmp_path: Path, arguments: list[str]) -> None:
    outcome = command("train", *arguments, *SMALL_DATA_OPTIONS, "--json")
    assert (outcome.json["state"], outcome.json["parameters"]) == ("completed", 7_850), outcome
    logged = make_client(tmp_path).get_run(outcome.json["run_id"]).data
    assert logged.tags["mlflow.runName"] == "train logistic"
    assert logged.params["optimizer.name"] == "adam"
    origins = read_artifact(make_client(tmp_path), outcome.json["run_id"], "recipe_origins.csv")
    origin_of = dict(csv.reader(io.StringIO(origins)))
    assert origin_of["epochs"] == origin_of["data.train_images"] == "command line"
    assert origin_of["optimizer.name"] == "preset logistic"
    assert origin_of["label_smoothing"] == "default"


def test_a_dry_run_lists_every_value_with_its_origin_and_starts_nothing(
    command: RunCommand, tmp_path: Path, recipe: Path
) -> None:
    outcome = command("train", "recipe.toml", "--set", "optimizer.momentum=0.8", "--dry-run")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in outcome.stdout.splitlines() if line.strip()}
    assert rows["optimizer.momentum"] == ["0.8", "command", "line"]
    assert rows["batch_size"] == ["100", "recipe.toml"]
    assert rows["optimizer.name"] == ["adamw", "default"]
    for precision, shown in (("bfloat16", "bfloat16 command line"), ("auto", "float32 command line: auto, which")):
        lines = command("train", "recipe.toml", "--precision", precision, "--dry-run").stdout.splitlines()
        (line,) = (" ".join(line.split()) for line in lines if line.startswith("precision"))
        assert line.startswith(f"precision {shown}")
    values = command("train", "recipe.toml", "--dry-run", "--json").json["recipe"]
    assert values.keys() == read_recipe(recipe).to_flat_dict().keys()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_training_without_validation_images_has_neither_their_metrics_nor_their_plots(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images = ["--set", "data.validation=0", "--set", "data.train_images=500"]
    outcome = run_command(tmp_path, "train", "logistic", "--epochs", 1, *images, "--tensorboard", "board", plots=True)
    assert outcome.exit_code == 0, outcome.stderr
    start, _, run_id = outcome.stdout.partition("; run ")
    assert start == "logistic: trained"
    assert "was not drawn" not in outcome.stderr
    artifacts = {artifact.path for artifact in make_client(tmp_path).list_artifacts(run_id.partition(",")[0])}
    assert {"curves.png", "filters.png"} <= artifacts
    assert "val" not in artifacts
    (board,) = (tmp_path / "board").iterdir()
    tags = EventAccumulator(str(board)).Reload().Tags()
    assert "train/loss" in tags["scalars"]
    assert [tag for tag in [*tags["scalars"], *tags["images"]] if tag.startswith("val/")] == []


def test_a_training_that_fails_names_the_reason_and_its_run(command: RunCommand, tmp_path: Path, recipe: Path) -> None:
    outcome = command("train", "recipe.toml", *DIVERGING_OPTIONS)
    assert outcome.exit_code == 3
    (error,) = outcome.errors
    assert "train: diverged" in error
    (run_id,) = re.findall("the run ([0-9a-f]{32}) has the details", error)
    run = make_client(tmp_path).get_run(run_id)
    assert (run.info.status, run.data.tags["state"]) == ("FAILED", "failed")
    assert "diverged" in run.data.tags["reason"]


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], ["a preset", "--from-run", "--resume"]),
        (["recipe.toml", "--preset", "lenet"], ["give one of these"]),
        (["lenett"], ["'lenett'", "did you mean 'lenet'?"]),
        (["nothing.toml"], ["nothing.toml", "no such file"]),
        (
            ["recipe.toml", "--set", "optimizer.momentun=0.5"],
            ["momentun", "did you mean 'optimizer.momentum'"],
        ),
        (["recipe.toml", "--set", "batch_size=many"], ["batch_size", "'many'", "whole number"]),
        (["recipe.toml", "--set", "data.validation=0.999999"], ["data.validation"]),
        (["recipe.toml", "--workers", "2"], ["--workers", "--seeds"]),
        (["recipe.toml", "--register", "--seeds", "2"], ["--register", "--seeds"]),
        (["recipe.toml", "--model-name", "single"], ["--model-name", "add --register"]),
        (["recipe.toml", "--register", "--set", "data.validation=0"], ["--register", "set data.validation"]),
        (["recipe.toml", "--output", "recipe.toml/below"], ["--output", "cannot be written"]),
        (["--resume", "f" * 32], ["f" * 32, "state.pt does not exist", "--from-run"]),
        (
            ["--resume", "f" * 32, "--set", "batch_size=9", "--device", "cpu"],
            ["--set batch_size, --device", "--from-run"],
        ),
        (["--resume", "f" * 32, "recipe.toml"], ["give one of these"]),
    ],
)
def test_a_mistake_gives_one_line_and_trains_nothing(
    command: RunCommand, tmp_path: Path, recipe: Path, arguments: list[str], texts: list[str]
) -> None:
    assert_single_error(command("train", *arguments), *texts)
    assert not (tmp_path / "fmnist-search" / "weights").exists()


# -------------------------------------------------------------------------------------------- artifacts


def test_a_training_logs_weights_epochs_and_recipe_and_copies_them_to_the_output_folder(
    command: RunCommand, tmp_path: Path, recipe: Path
) -> None:
    outcome = command("train", "recipe.toml", "--epochs", 3, "--output", "out", "--json")
    run_id, client = outcome.json["run_id"], make_client(tmp_path)
    artifacts = {artifact.path for artifact in client.list_artifacts(run_id)}
    assert {"weights.pt", "last_weights.pt", "epochs.csv", "recipe.toml", "recipe_origins.csv"} <= artifacts
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "weights.pt",
        "last_weights.pt",
        "epochs.csv",
        "recipe.toml",
    }
    trained = read_recipe(tmp_path / "out" / "recipe.toml")
    assert trained == read_recipe(recipe, {"epochs": 3})
    for name in ("weights.pt", "last_weights.pt"):
        classifier_from_weights(trained, torch.load(tmp_path / "out" / name, weights_only=True))
    rows = list(csv.DictReader((tmp_path / "out" / "epochs.csv").open()))
    logged = metric_history(client, run_id, "val/accuracy")
    assert [(int(row["epoch"]), float(row["val_accuracy"])) for row in rows] == logged
    assert len(rows) == 3
    assert read_artifact(client, run_id, "epochs.csv") == (tmp_path / "out" / "epochs.csv").read_text()


def test_tensorboard_shows_scalars_matrices_and_the_graph(command: RunCommand, tmp_path: Path, recipe: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    generator = torch.get_rng_state()
    outcome = command("train", "recipe.toml", "--tensorboard", "board", "--json")
    assert torch.equal(torch.get_rng_state(), generator)
    (board,) = (tmp_path / "board").iterdir()
    assert board.name == f"train-cnn-4-8-{outcome.json['run_id'][:8]}"
    events = EventAccumulator(str(board)).Reload()
    (text,) = events.Tensors("training/text_summary")
    assert all(part in str(text.tensor_proto.string_val) for part in ("# Command", "Conv2d", "learning_rate = 0.01"))
    logged = [report["val_accuracy"] for report in outcome.json["epochs"]]
    assert [event.value for event in events.Scalars("val/accuracy")] == pytest.approx(logged)
    assert [event.step for event in events.Images("val/confusion_matrix")] == [1, 2]
    assert any("Conv2d" in node.name for node in events.Graph().node)


def test_seeds_have_folders_of_their_own_and_no_file_is_replaced_without_force(
    command: RunCommand, tmp_path: Path, recipe: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train = ["train", "recipe.toml", "--epochs", 1, "--workers", 1, "--threads", 1, "--seeds", 2, "--output", "out"]
    outcome = command(*train, "--tensorboard", "board", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    (board,) = (tmp_path / "board").iterdir()
    for seed, member in zip((5, 6), outcome.json["runs"], strict=True):
        assert read_recipe(tmp_path / "out" / f"seed-{seed}" / "recipe.toml").seed == seed
        scalars = EventAccumulator(str(board / f"seed-{seed}")).Reload().Scalars("val/accuracy")
        assert [event.value for event in scalars] == pytest.approx([member["val_accuracy"]])
    weights = tmp_path / "out" / "seed-6" / "weights.pt"
    weights.write_text("mine")
    assert_single_error(command(*train), "--output out", "exists already", "--force")
    assert weights.read_text() == "mine"
    assert command(*train, "--force").exit_code == 0
    assert weights.read_bytes() != b"mine"


def test_a_training_says_what_it_trains_on_what_and_where_each_value_comes_from(
    command: RunCommand, tmp_path: Path, recipe: Path
) -> None:
    recipe.write_text(recipe.read_text() + 'dataset = "fashion-mnist"\n')  # its default
    outcome = command("train", "recipe.toml", "--epochs", 1, "--threads", 1, "--device", "cpu", "-v")
    assert outcome.exit_code == 0, outcome.stderr
    lines = outcome.stderr.splitlines()
    starts = {
        name: line
        for line in lines
        for name in ("device", "images", "classes", "network")
        if line.startswith(f"{name}: ")
    }
    assert starts["device"].startswith("device: cpu (")
    assert starts["device"].endswith(", 1 thread")
    assert starts["images"] == "images: fashion-mnist, 500 to train and 500 to validate"
    assert starts["classes"].startswith("classes: 10: T-shirt/top, Trouser,")
    assert re.fullmatch(r"network: cnn 4-8, [\d,]+ parameters, [\d,]+ multiply-adds of an image", starts["network"])
    assert {"epochs = 1 (command line)", "data.dataset = fashion-mnist (recipe.toml)", "patience = 0 (default)"} <= {
        *lines
    }
    (epoch,) = [line for line in lines if line.startswith("  epoch 1: ")]
    assert re.search(r"validation loss \d\.\d{4}, accuracy \d+\.\d\d%, ", epoch)


# --------------------------------------------------------------------------------------------- resuming

EPOCH_METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "optimizer/learning_rate")


def assert_same_training(client: MlflowClient, first: str, second: str) -> None:
    for name in EPOCH_METRICS:
        assert metric_history(client, first, name) == metric_history(client, second, name) != []


def test_a_resumed_training_equals_an_uninterrupted_one(command: RunCommand, tmp_path: Path, recipe: Path) -> None:
    # tests/unit/training/test_trial_resume.py resumes with many settings.
    train = ["train", "recipe.toml", "--set", "augmentation.shift=2", "--threads", 1, "--json"]
    first = command(*train).json["run_id"]
    resumed = command("train", "--resume", first, "--epochs", 4, "--json", "--output", "resumed")
    uninterrupted = command(*train, "--epochs", 4, "--output", "uninterrupted")
    client = make_client(tmp_path)
    assert_same_training(client, resumed.json["run_id"], uninterrupted.json["run_id"])
    assert client.get_run(resumed.json["run_id"]).data.tags["resumes"] == first
    for name in ("weights.pt", "last_weights.pt"):
        folders = (tmp_path / "resumed", tmp_path / "uninterrupted")
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in folders)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    again = command("train", "--resume", resumed.json["run_id"], "--epochs", 5, "--json")
    assert len(again.json["epochs"]) == 5


def test_a_training_that_has_stopped_early_gives_the_same_result_when_it_is_resumed(
    command: RunCommand, tmp_path: Path, recipe: Path
) -> None:
    stopping = ["--set", "patience=1", "--set", "optimizer.learning_rate=1e-6", "--epochs", 5]
    first = command("train", recipe, *stopping, "--json", "--output", "first")
    resumed = command("train", "--resume", first.json["run_id"], "--epochs", 9, "--json", "--output", "resumed")
    assert resumed.exit_code == 0, resumed.stderr
    assert len(resumed.json["epochs"]) == len(first.json["epochs"]) < 5
    ours, theirs = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("resumed", "first"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_training_that_was_killed_after_its_last_epoch_gets_its_result_when_it_is_resumed(
    command: RunCommand, tmp_path: Path, recipe: Path
) -> None:
    first = command("train", recipe, "--json", "--output", "first").json
    make_client(tmp_path).update_run(first["run_id"], "RUNNING")  # as if it had not stored its result
    resumed = command("train", "--resume", first["run_id"], "--json", "--output", "resumed")
    assert resumed.exit_code == 0, resumed.stderr
    assert_same_training(make_client(tmp_path), resumed.json["run_id"], first["run_id"])
    assert resumed.json["epochs"] == first["epochs"]
    for name in ("weights.pt", "last_weights.pt"):
        ours, theirs = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("resumed", "first"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_an_interrupted_training_keeps_its_epochs_and_can_be_resumed(tmp_path: Path, recipe: Path) -> None:
    weights = tmp_path / "fmnist-search" / "weights" / "train"
    train = ["train", "recipe.toml", "--threads", 1]
    interrupted = run_interrupted_command(
        tmp_path, *train, "--epochs", 1000, until=lambda: bool(list(weights.glob("*/state.pt")))
    )
    assert interrupted.exit_code == 130
    (folder,) = weights.iterdir()
    assert f"continue with `fmnist-search train --resume {folder.name}`" in interrupted.stderr
    client = make_client(tmp_path)
    assert {"weights.pt", "last_weights.pt"} <= {artifact.path for artifact in client.list_artifacts(folder.name)}

    trained = len(metric_history(client, folder.name, "val/accuracy"))
    assert 0 < trained < 1000
    epochs = ["--epochs", trained + 1, "--json"]
    resumed = run_command(tmp_path, "train", "--resume", folder.name, *epochs)
    assert resumed.exit_code == 0, resumed.stderr
    assert f"epoch {trained}:" not in resumed.stderr  # it is not trained again
    uninterrupted = run_command(tmp_path, *train, *epochs)
    assert_same_training(client, resumed.json["run_id"], uninterrupted.json["run_id"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGKILL, id="kill -9")]
)
def test_a_training_whose_process_is_ended_by_a_signal_loses_only_the_running_epoch(
    tmp_path: Path, recipe: Path, number: signal.Signals
) -> None:
    train = ["train", "recipe.toml", "--threads", 1, "--epochs", 12, "--set", "data.train_images=6000"]
    process = start_command(tmp_path, *train)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2:" in line:
            break
    time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    (folder,) = (tmp_path / "fmnist-search" / "weights" / "train").iterdir()
    if number is signal.SIGINT:
        assert process.returncode == 130
        assert f"continue with `fmnist-search train --resume {folder.name}`" in stderr
        assert {"weights.pt", "last_weights.pt"} <= {
            artifact.path for artifact in make_client(tmp_path).list_artifacts(folder.name)
        }
    resumed = run_command(tmp_path, "train", "--resume", folder.name, "--epochs", 5, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert "epoch 2:" not in resumed.stderr  # it is not trained again
    uninterrupted = run_command(tmp_path, *train[:4], "--epochs", 5, "--set", "data.train_images=6000", "--json").json
    assert_same_training(make_client(tmp_path), resumed.json["run_id"], uninterrupted["run_id"])


def test_a_training_that_cannot_be_resumed_gives_one_line(command: RunCommand, tmp_path: Path, recipe: Path) -> None:
    def trained(*arguments: object) -> str:
        run_id: str = command("train", "recipe.toml", *arguments, "--json").json["run_id"]
        return run_id

    def state(run_id: str) -> Path:
        return tmp_path / "fmnist-search" / "weights" / "train" / run_id / "state.pt"

    first, other = trained("--set", "schedule.name=cosine"), trained("--set", "model.width_1=8")
    assert_single_error(command("train", "--resume", first), "epochs: 2", "has", "--epochs")
    content = state(first).read_bytes()

    state(first).write_bytes(state(other).read_bytes())
    assert_single_error(command("train", "--resume", first, "--epochs", 3), first, "of another training")
    state(first).write_bytes(content[: len(content) // 2])
    assert_single_error(command("train", "--resume", first, "--epochs", 3), "state.pt", "damaged")
    checkpoint: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    torch.save({**checkpoint, "images": ["0", "1"]}, state(first))
    assert_single_error(command("train", "--resume", first, "--epochs", 3), "other images", "--from-run")
    torch.save({**checkpoint, "recipe": {**checkpoint["recipe"], "model.width_1": 16}}, state(first))
    assert_single_error(command("train", "--resume", first, "--epochs", 3), "weights of another network")
    torch.save({"weights": checkpoint["state"]["weights"]}, state(first))
    assert_single_error(command("train", "--resume", first, "--epochs", 3), "not the checkpoint of a training")
    state(first).write_bytes(content)
    resumed = command("train", "--resume", first, "--epochs", 3)
    assert resumed.exit_code == 0, resumed.stderr
    assert "schedule.name: cosine spanned 2 epochs until now, and spans 3 from here on" in resumed.stderr.splitlines()


# ------------------------------------------------------------------------------------------ test images


def test_the_kept_weights_are_tested_once_at_the_end(
    command: RunCommand, tmp_path: Path, recipe: Path, source: DataSource
) -> None:
    train = ["train", "recipe.toml", "--threads", 1, "--test"]
    found = command(*train, "--output", "out", "--json").json
    images = read_test_set("fashion-mnist", source)
    classifier = classifier_from_weights(
        read_recipe(recipe), torch.load(tmp_path / "out" / "weights.pt", weights_only=True)
    )
    expected = evaluate(classifier, images)
    assert found["test"]["accuracy"] == pytest.approx(expected.accuracy, abs=2e-4)
    assert found["test"]["loss"] == pytest.approx(expected.loss, abs=1e-4)
    assert sum(map(sum, found["test"]["confusion"])) == found["test"]["images"] == 10_000
    client = make_client(tmp_path)
    logged = client.get_run(found["run_id"]).data
    assert (logged.metrics["test/accuracy"], logged.metrics["test/loss"]) == (
        found["test"]["accuracy"],
        found["test"]["loss"],
    )
    assert (logged.tags["test_evaluations"], logged.tags["test_hits"]) == ("1", str(found["test"]["hits"]))
    matrix = json.loads(read_artifact(client, found["run_id"], "test/confusion_matrix.json"))
    assert matrix["rows_true_columns_predicted"] == found["test"]["confusion"]

    seeds = command(*train, "--seeds", 2, "--workers", 1, "--json").json
    assert seeds["runs"][0]["test"] == found["test"]
    accuracies, losses = ([run["test"][key] for run in seeds["runs"]] for key in ("accuracy", "loss"))
    assert seeds["test"]["mean"] == pytest.approx(sum(accuracies) / 2)
    parent = client.get_run(seeds["run_id"]).data.metrics
    assert parent["seeds/test_loss_mean"] == seeds["test"]["loss_mean"] == pytest.approx(sum(losses) / 2)
    assert parent["seeds/test_accuracy_deviation"] == seeds["test"]["deviation"] > 0


def test_a_registered_training_is_a_version_that_other_commands_can_name(
    command: RunCommand, tmp_path: Path, recipe: Path
) -> None:
    train = ["train", "recipe.toml", "--threads", 1, "--register", "--model-name", "single"]
    found = command(*train, "--json").json
    assert found["registered"] == "models:/single/1"
    client = make_client(tmp_path)
    version, run = client.get_model_version("single", "1"), client.get_run(found["run_id"])
    assert version.run_id == found["run_id"]
    assert version.tags["accuracy_validation"] == f"{found['best_val_accuracy']:.2%}"
    assert "no study has selected its recipe" in version.description
    tested = command("evaluate", found["registered"], "--json").json
    assert (tested["accuracy"], tested["evaluations"]) == (run.data.metrics["test/accuracy"], 1)
    by_version, by_run = (
        command("predict", "--test-images", "0:20", "--model", address, "--json").json
        for address in (found["registered"], found["run_id"])
    )
    assert [row["class"] for row in by_version] == [row["class"] for row in by_run]

    again = command(*train)
    assert "single version 1 has the same weights and recipes" in again.stderr
    assert "registered as models:/single/1" in again.stdout
    other = command(*train, "--set", "seed=77")
    assert "registered as models:/single/2" in other.stdout
    assert "single version 2 is ch" in other.stderr  # champion or challenger, compared image by image


def test_a_training_is_a_model_by_its_run_and_by_its_file(
    command: RunCommand, tmp_path: Path, recipe: Path, source: DataSource
) -> None:
    run_id = command("train", "recipe.toml", "--output", "out", "--json").json["run_id"]
    weights = tmp_path / "out" / "weights.pt"
    predictions = [
        command("predict", "--test-images", "0:50", "--model", address, "--json").json for address in (run_id, weights)
    ]
    assert predictions[0] == predictions[1]
    classes = [row["class"] for row in predictions[0]]
    model, images = load_model(str(weights)), read_test_set("fashion-mnist", source)
    assert [model.classes[number] for number in model.predict(images.pixels[:50])] == classes

    client = make_client(tmp_path)
    first = command("evaluate", weights, "--json").json
    assert first["accuracy"] == pytest.approx((model.predict(images.pixels) == images.labels.numpy()).mean())
    assert client.get_run(run_id).data.metrics["test/accuracy"] == first["accuracy"]
    assert command("evaluate", run_id, "--json").json == {**first, "model": run_id}
    assert command("evaluate", run_id, "--again", "--json").json["evaluations"] == 2

    shutil.copytree(tmp_path / "out", tmp_path / "first")
    (tmp_path / "out" / "recipe.toml").write_text("epochs = 1")
    assert_single_error(command("evaluate", weights, "--again"), str(weights), "another network")
    (tmp_path / "out" / "recipe.toml").unlink()
    assert_single_error(command("predict", "--test-image", 0, "--model", weights), "recipe.toml", "cannot be read")
    assert_single_error(command("evaluate", "out/none.pt"), "none.pt", "No such file")
    assert_single_error(command("evaluate", run_id, "models:/fmnist-search/1"), run_id, "registered model")
    saved = tmp_path / "elsewhere"
    saved.mkdir()
    assert run_command(saved, "predict", "--test-image", 0, "--model", tmp_path / "first" / "weights.pt").exit_code == 0
    assert not (saved / "mlflow.db").exists()


def test_the_test_of_a_training_is_printed_for_each_class(command: RunCommand, recipe: Path) -> None:
    outcome = command("train", "recipe.toml", "--test", "--epochs", 1, "--threads", 1)
    assert outcome.exit_code == 0, outcome.stderr
    head, *rows, last = outcome.stdout.splitlines()
    assert head.split() == ["class", "images", "recall", "precision", "most", "mistakes"]
    assert len(rows) == 10
    assert rows[0].split()[:2] == ["T-shirt/top", "1000"]
    assert re.search(r"on validation, \d+\.\d\d% on the test images \(loss \d\.\d{4}\); run ", last)


# ---------------------------------------------------------------------------------------- several seeds


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_several_seeds_give_mean_and_standard_deviation(
    command: RunCommand, tmp_path: Path, recipe: Path, workers: int
) -> None:
    outcome = command("train", "recipe.toml", "--seeds", 3, "--workers", workers, "--threads", 1, "--json")
    found, client = outcome.json, make_client(tmp_path)
    accuracies = [member["val_accuracy"] for member in found["runs"]]
    assert len(set(accuracies)) > 1
    parent = client.get_run(found["run_id"]).data
    assert parent.metrics["seeds/val_accuracy_mean"] == pytest.approx(sum(accuracies) / 3) == found["mean"]
    assert parent.metrics["seeds/val_accuracy_deviation"] == pytest.approx(found["deviation"])
    members = [client.get_run(member["run_id"]) for member in found["runs"]]
    assert [member.data.params["seed"] for member in members] == ["5", "6", "7"]
    assert {member.data.tags["mlflow.parentRunId"] for member in members} == {found["run_id"]}
    alone = command("train", "recipe.toml", "--set", "seed=6", "--threads", 1, "--json").json
    assert alone["val_accuracy"] == accuracies[1]
    assert_single_error(
        command("train", "--resume", found["runs"][0]["run_id"], "--epochs", 3), "state.pt does not exist"
    )


def test_several_seeds_are_reported_as_text(command: RunCommand, tmp_path: Path, recipe: Path) -> None:
    options = ["--seeds", 2, "--epochs", 1, "--workers", 1, "--threads", 1, "--precision", "float32"]
    outcome = command("train", "recipe.toml", *options)
    assert outcome.exit_code == 0, outcome.stderr
    (found,) = re.findall("^cnn 4-8: (.*) on validation; run ([0-9a-f]{32}), see it with", outcome.stdout)
    parent = make_client(tmp_path).get_run(found[1]).data
    assert f"{parent.metrics['seeds/val_accuracy_mean']:.2%}" in f"{found[0]}%"


def test_several_seeds_that_fail_name_a_reason_and_have_no_mean(
    command: RunCommand, tmp_path: Path, recipe: Path
) -> None:
    outcome = command("train", "recipe.toml", "--seeds", 2, "--workers", 1, "--threads", 1, *DIVERGING_OPTIONS)
    assert outcome.exit_code == 3
    (error,) = outcome.errors
    assert "train: 2 of 2 trainings failed, the last because diverged" in error
    (run_id,) = re.findall("the run ([0-9a-f]{32}) has the details", error)
    assert "seeds/val_accuracy_mean" not in make_client(tmp_path).get_run(run_id).data.metrics


def test_an_error_of_a_callback_ends_the_runs_of_all_seeds(tmp_path: Path, recipe: Path) -> None:
    class Failing(StudyCallback):
        def on_epoch_end(self, name: str, report: EpochReport) -> None:
            if name.startswith("seed 6"):
                raise OSError("the disk is full")

    workspace = Workspace.resolve(f"sqlite:///{tmp_path / 'mlflow.db'}")
    execution = ExecutionSettings(threads=1, workers=1)
    with pytest.raises(OSError, match="the disk is full"):
        train_seeds(read_recipe(recipe), 2, workspace=workspace, execution=execution, callback=Failing())
    runs = {run.info.run_name: run for run in make_client(tmp_path).search_runs(["1"])}
    states = {name: (run.info.status, run.data.tags.get("state")) for name, run in runs.items()}
    assert states == {
        "train cnn 4-8, 2 seeds": ("FAILED", "failed"),
        "seed 5 cnn 4-8": ("FINISHED", "completed"),
        "seed 6 cnn 4-8": ("KILLED", "interrupted"),
    }
    assert runs["seed 6 cnn 4-8"].data.tags["reason"] == "another training stopped on an error"
