"""`draw` writes PNG files, and replaces an existing file only with --force."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.integration.conftest import CommandResult, FinishedStudy, run_command

RECIPE = """
epochs = 1
batch_size = 50
model.family = "mlp"
model.width = 8
data.train_images = 500
data.validation = 500
augmentation.shift = 2
augmentation.flip = 0.5
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """Return a folder with a recipe and one training of it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.toml").write_text(RECIPE)
    outcome = run_command(folder, "train", "recipe.toml", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)


def assert_png_written(outcome: CommandResult, path: Path) -> None:
    assert outcome.exit_code == 0, outcome.stderr
    assert str(path) in outcome.stdout
    with Image.open(path) as picture:
        assert picture.format == "PNG"


def assert_single_error(outcome: CommandResult, *expected: str) -> None:
    assert outcome.exit_code == 2, outcome
    assert len(outcome.errors) == 1, outcome.stderr
    for text in expected:
        assert text in outcome.errors[0]


def test_samples_and_augmentations_depend_on_the_seed_only(trained: FinishedStudy, tmp_path: Path) -> None:
    for what in (["samples", "--count", 2], ["augmentations", "recipe.toml", "--image", 3, "--count", 2]):
        drawn = []
        for number, seed in enumerate((0, 0, 1)):
            path = tmp_path / f"{what[0]} {number}.png"
            assert_png_written(trained.run("draw", *what, "--seed", seed, "--output", path), path)
            drawn.append(path.read_bytes())
        assert drawn[0] == drawn[1] != drawn[2]


def test_augmentations_come_from_a_preset_and_from_settings(trained: FinishedStudy, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    changes = ["--set", "augmentation.flip=1", "--output"]
    assert_png_written(trained.run("draw", "augmentations", "lenet", *changes, paths[0]), paths[0])
    assert_png_written(trained.run("draw", "augmentations", *changes, paths[1]), paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert_single_error(
        trained.run("draw", "augmentations", "--output", tmp_path / "2.png"), "changes no image", "--set"
    )
    assert_single_error(trained.run("draw", "augmentations", "lent", *changes, tmp_path / "2.png"), "'lenet'")
    assert_single_error(trained.run("draw", "augmentations", "none.toml", *changes, tmp_path / "2.png"), "none.toml")
    beyond = trained.run("draw", "augmentations", "--image", 60_000, *changes, tmp_path / "2.png")
    assert_single_error(beyond, "--image 60000", "from 0 to 59999")
    assert not (tmp_path / "2.png").exists()


def test_filters_are_drawn_from_the_stored_weights_of_a_run(trained: FinishedStudy, tmp_path: Path) -> None:
    path = tmp_path / "filters.png"
    run_id = trained.result.json["run_id"]
    assert_png_written(trained.run("draw", "filters", run_id, "--output", path), path)
    assert_single_error(trained.run("draw", "filters", "f" * 32, "--output", tmp_path / "2.png"), "does not exist")


def test_edited_damaged_or_missing_weights_are_one_error_line(trained: FinishedStudy, tmp_path: Path) -> None:
    run_id, client = trained.result.json["run_id"], MlflowClient(trained.tracking_uri)
    digest = client.get_run(run_id).data.tags["weights_sha256"]
    (artifact,) = (trained.folder / "mlruns").rglob("weights.pt")
    before = artifact.read_bytes()
    try:
        artifact.write_bytes(before[:-100])
        outcome = trained.run("draw", "filters", run_id, "--output", tmp_path / "filters.png")
        assert_single_error(outcome, run_id, "weights.pt is not the artifact that was logged")
        client.delete_tag(run_id, "weights_sha256")  # like a run of an earlier version
        outcome = trained.run("draw", "filters", run_id, "--output", tmp_path / "filters.png")
        assert_single_error(outcome, run_id, "stored weights", "damaged")
        artifact.unlink()
        outcome = trained.run("draw", "filters", run_id, "--output", tmp_path / "filters.png")
        assert_single_error(outcome, run_id, "no weights of it are stored", f"fmnist-search train --from-run {run_id}")
    finally:
        artifact.write_bytes(before)
        client.set_tag(run_id, "weights_sha256", digest)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_replaced_only_with_force(trained: FinishedStudy, tmp_path: Path) -> None:
    path = tmp_path / "samples.png"
    path.write_text("mine")
    outcome = trained.run("draw", "samples", "--output", path)
    assert_single_error(outcome, str(path), "--force")
    assert path.read_text() == "mine"
    assert_png_written(trained.run("draw", "samples", "--output", path, "--force"), path)
    assert_single_error(trained.run("draw", "samples", "--output", tmp_path / "samples.jpg"), "samples.jpg", ".png")
    nowhere = tmp_path / "nowhere" / "samples.png"
    assert_single_error(trained.run("draw", "samples", "--output", nowhere), str(nowhere), "cannot be written")
    assert [file.name for file in tmp_path.iterdir()] == ["samples.png"]
