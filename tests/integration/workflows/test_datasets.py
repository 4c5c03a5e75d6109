"""A model of another dataset, from its search to its predictions, and models whose dataset is not recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pytest
from mlflow import MlflowClient

from fmnist_search.config.sections import Finalists
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import read_test_set
from fmnist_search.models.classifier import build
from fmnist_search.recipe.datasets import DATASETS, FASHION_MNIST
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry.packaging import ProbabilityModel, load_model
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import promote
from fmnist_search.workspace import Workspace
from tests.integration.conftest import FinishedStudy, run_command
from tests.support.synthetic_dataset import CLASS_NAMES, make_dataset, make_dataset_files, write_files

pytestmark = pytest.mark.in_process  # a dataset is added to those of the process

STUDY = """
name = "animals"

[data]
dataset = "made"
train_images = 1000
validation = 2000

[budget]
trials = 2
epochs = 2

[space.common]
batch_size = [50]
optimizer.learning_rate = [3e-3, 1e-2]

[space.mlp]
depth = 1
width = [32]

[finalists]
recipes = 1
seeds = 2
epochs = 2
images = "slice"
refit = "none"

[execution]
precision = "float32"
workers = 1
"""
SYNTHETIC_MODEL_URI = "models:/fmnist-search-made/1"
OLD_MODEL_URI = "models:/old/1"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files of a dataset that is in the table while this module's tests run."""
    contents = make_dataset_files()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "made", make_dataset(contents))
        yield write_files(tmp_path_factory.mktemp("files"), contents)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, files: Path) -> FinishedStudy:
    """A tiny study of that dataset, run by the command line."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "animals.toml").write_text(STUDY)
    outcome = run_command(folder, "search", "animals.toml", "--data-dir", files)
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)


@pytest.fixture(scope="module")
def client(finished: FinishedStudy) -> MlflowClient:
    mlflow.set_tracking_uri(finished.tracking_uri)
    return MlflowClient(finished.tracking_uri)


@pytest.fixture(scope="module")
def old(client: MlflowClient, finished: FinishedStudy) -> str:
    """A model of another program that says nothing of its dataset."""
    experiment = client.create_experiment("old", str(finished.folder / "old"))
    with mlflow.start_run(run_id=client.create_run(experiment).info.run_id):
        info = mlflow.pytorch.log_model(
            ProbabilityModel(build(Recipe().replace({"model.family": "mlp", "model.width": 8}).model)).eval(),
            name="model",
            serialization_format="pt2",
            signature=mlflow.models.get_model_info(SYNTHETIC_MODEL_URI).signature,
            input_example=np.zeros((2, 28, 28), np.float32),
            pip_requirements=["torch"],
            registered_model_name="old",
        )
    assert info.metadata is None
    return OLD_MODEL_URI


def test_versions_and_runs_name_their_dataset(finished: FinishedStudy, client: MlflowClient) -> None:
    assert f"registered as {SYNTHETIC_MODEL_URI} (champion)" in finished.result.stdout
    version = client.get_model_version("fmnist-search-made", "1")
    assert version.tags["dataset"] == "made"
    assert "A classifier for Made: 10 classes of animals" in version.description
    runs = client.search_runs(["1"], "tags.dataset = 'made'")
    assert {version.run_id} < {found.info.run_id for found in runs}
    used = [entry.dataset for found in runs for entry in found.inputs.dataset_inputs]
    assert {(dataset.name, dataset.digest) for dataset in used} == {("made", DATASETS["made"].digest[:32])}


def test_predictions_have_the_class_names_of_the_dataset(
    finished: FinishedStudy, client: MlflowClient, files: Path
) -> None:
    numbers = [part for number in range(100) for part in ("--test-image", number)]
    rows = finished.run(
        "predict", *numbers, "--model", SYNTHETIC_MODEL_URI, "--data-dir", files, "--top", 10, "--json"
    ).json
    test = read_test_set("made", DataSource(files, files))
    assert [row["true"] for row in rows] == [CLASS_NAMES[label] for label in test.labels[:100]]
    assert all({rank["class"] for rank in row["top"]} == set(CLASS_NAMES) for row in rows)
    model = load_model(SYNTHETIC_MODEL_URI)
    assert (model.dataset, model.classes) == ("made", CLASS_NAMES)
    assert [row["class"] for row in rows] == [model.classes[label] for label in model.predict(test.pixels[:100])]
    accuracy = finished.run("evaluate", SYNTHETIC_MODEL_URI, "--again", "--data-dir", files, "--json").json["accuracy"]
    # Far from chance: images and names are those of one dataset.
    assert accuracy == (model.predict(test.pixels) == test.labels.numpy()).mean() > 0.9


def test_the_exported_file_is_checked_on_images_of_the_dataset_and_has_its_class_names(
    finished: FinishedStudy, client: MlflowClient, files: Path, tmp_path: Path
) -> None:
    outcome = finished.run("export", SYNTHETIC_MODEL_URI, "--onnx", tmp_path / "made.onnx", "--data-dir", files)
    assert outcome.exit_code == 0, outcome.stderr
    metadata = onnxruntime.InferenceSession(tmp_path / "made.onnx").get_modelmeta().custom_metadata_map
    assert (metadata["dataset"], tuple(json.loads(metadata["classes"]))) == ("made", CLASS_NAMES)


def test_a_model_without_a_recorded_dataset_is_one_of_fashion_mnist(finished: FinishedStudy, old: str) -> None:
    model = load_model(old, trust=True)
    assert (model.dataset, model.classes) == ("fashion-mnist", FASHION_MNIST.classes)
    (row,) = finished.run("predict", "--test-image", 0, "--model", old, "--trust", "--json").json
    assert row["true"] == "Ankle boot"
    assert {row["class"]} < set(FASHION_MNIST.classes)


def test_models_of_two_datasets_are_not_compared(finished: FinishedStudy, old: str) -> None:
    outcome = finished.run("evaluate", SYNTHETIC_MODEL_URI, old)
    assert outcome.exit_code == 2
    assert outcome.errors == [
        f"error: evaluate: '{SYNTHETIC_MODEL_URI}' is a model of made and '{OLD_MODEL_URI}' one of fashion-mnist, "
        "so they cannot be compared; give two models of one dataset"
    ]


def test_missing_files_give_one_line_with_their_address(finished: FinishedStudy, client: MlflowClient) -> None:
    outcome = finished.run(
        "predict", "--test-image", 0, "--model", SYNTHETIC_MODEL_URI, XDG_CACHE_HOME=str(finished.folder / "none")
    )
    assert outcome.exit_code == 2
    assert len(outcome.errors) == 1
    assert "https://example.org/made/" in outcome.errors[0]


def test_the_default_name_of_a_model_contains_its_dataset(finished: FinishedStudy, files: Path) -> None:
    settings = Finalists(recipes=1, seeds=1, epochs=1, images="slice", refit="none")
    workspace = Workspace.resolve(finished.tracking_uri, data_dir=files)
    summary = promote("animals", settings=settings, workspace=workspace, tracking=TrackingOptions(plot_interval=None))
    assert summary.champion is not None
    assert summary.champion.model == "fmnist-search-made"


def test_the_data_command_takes_a_dataset(finished: FinishedStudy, files: Path) -> None:
    found = finished.run("data", "made", "--data-dir", files, "--json").json
    assert (found["dataset"], found["classes"]) == ("made", list(CLASS_NAMES))
    assert found["digest"] == DATASETS["made"].digest
    assert "made: 4 files" in finished.run("data", "made", "--data-dir", files).stdout
    (error,) = finished.run("data", "mde").errors
    assert "did you mean 'made'?" in error
