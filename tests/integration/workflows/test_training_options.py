"""A search with augmentation, early stopping and averaging over views, from the study file to the registered model."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import read_test_set
from fmnist_search.registry.packaging import load_model
from tests.integration.conftest import FinishedStudy, run_command

STUDY = """
name = "options"

[data]
train_images = 300
validation = 200

[budget]
total_epochs = 4
epochs = 5

[sampler]
name = "random"

[pruner]
name = "none"

[space.common]
batch_size = 100
optimizer.learning_rate = { low = 1e-13, high = 1e-12, log = true }    # the first epoch stays the best
optimizer.penalty = 1e-3
augmentation.rotation = 10
augmentation.mixup = 0.2
augmentation.cutmix = 1.0
normalisation = "per-pixel"
patience = 1
test_time = "flip"

[space.cnn]
depth = 1
width_1 = 4

[finalists]
recipes = 1
seeds = 1
epochs = 3
images = "slice"
refit = "none"

[execution]
precision = "float32"
workers = 1
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    folder = tmp_path_factory.mktemp("options")
    (folder / "options.toml").write_text(STUDY)
    outcome = run_command(folder, "search", "options.toml")
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)


@pytest.fixture(scope="module")
def client(searched: FinishedStudy) -> MlflowClient:
    mlflow.set_tracking_uri(searched.tracking_uri)
    return MlflowClient(searched.tracking_uri)


def run_epochs(client: MlflowClient, kind: str) -> list[tuple[str, str, str, int]]:
    """State, reason and epochs of the runs of a kind, as tags and as points."""
    runs = client.search_runs(["1"], f"tags.kind = '{kind}'")
    return [
        (
            *(r.data.tags.get(tag, "") for tag in ("state", "reason", "epochs")),
            len(client.get_metric_history(r.info.run_id, "train/loss")),
        )
        for r in runs
    ]


def test_trials_that_stop_early_are_completed_and_the_budget_counts_their_epochs(client: MlflowClient) -> None:
    assert (
        run_epochs(client, "trial")
        == [("completed", "early stopping: no better val_accuracy since epoch 1", "2", 2)] * 2
    )


def test_finalists_train_to_the_end(client: MlflowClient) -> None:
    assert run_epochs(client, "finalist") == [("completed", "", "3", 3)]


def test_a_trial_that_stopped_early_is_reproduced_bit_for_bit(searched: FinishedStudy) -> None:
    found = searched.run("reproduce", 0, "--study", "options", "--no-record", "--json").json
    assert (found["same"], len(found["epochs"])) == (True, 2)


def test_the_registered_model_normalises_and_averages_views_as_the_trained_one_and_is_exported(
    searched: FinishedStudy, client: MlflowClient, source: DataSource, tmp_path: Path
) -> None:
    tags = client.get_model_version("fmnist-search", "1").tags
    images = read_test_set("fashion-mnist", source)
    model = load_model("models:/fmnist-search/1")
    probabilities = torch.as_tensor(model.probabilities(images.pixels.numpy()))
    assert int((probabilities.argmax(1) == images.labels).sum()) == int(tags["test_hits"])
    assert len(probabilities.unique(dim=0)) > 9_000
    mirrored = torch.as_tensor(model.probabilities(images.pixels[:1_000].flip(-1).numpy()))
    torch.testing.assert_close(mirrored, probabilities[:1_000], rtol=1e-4, atol=1e-5)
    outcome = searched.run("export", "models:/fmnist-search/1", "--onnx", tmp_path / "model.onnx", "--json")
    assert outcome.exit_code == 0, outcome.stderr
