"""A dataset of a user's own, from a folder of image files to predictions, and folders that are none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmnist_search.recipe.datasets import DATASETS
from tests.integration.conftest import CommandResult, run_command
from tests.support.synthetic_dataset import make_dataset_files, write_files

CLASSES = ("ant", "bee", "cat")
STUDY = """
name = "insects"
data = { dataset = "insects", train_images = 150, validation = 80 }
budget = { trials = 2, epochs = 2 }
finalists = { recipes = 1, seeds = 1, epochs = 2, images = "slice", refit = "none" }
execution = { precision = "float32", workers = 1, threads = 1 }

[space.common]
batch_size = [50]
optimizer.learning_rate = [3e-3, 1e-2]

[space.mlp]
depth = 1
width = [32]
"""
PARAMETERS = (28 * 28 + 1) * 32 + (32 + 1) * len(CLASSES)
"""Those of the study's network: a layer of 32, and an output for each class."""
MADE_SETTINGS = ["--set", "data.dataset=made", "--set", "data.validation=100", "--set", "epochs=1"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of pictures of three classes, of a user with an empty cache."""
    folder = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(100):
            pixels = generator.integers(0, 60, (28, 28), np.uint8)
            pixels[9 * label : 9 * label + 6] = 255
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{number:03d}.png")
    (folder / "insects.toml").write_text(STUDY)
    yield folder
    for name in ("insects", "made"):
        DATASETS.pop(name, None)


def run(project: Path, *arguments: object) -> CommandResult:
    return run_command(project, *arguments, XDG_CACHE_HOME=str(project / "cache"))


def test_pictures_in_folders_of_classes_become_a_dataset(project: Path) -> None:
    assert "data.dataset: 'insects' is out of bounds" in run(project, "search", "insects.toml").stderr
    stored = run(project, "data", "insects", "--from", "pictures", "--json")
    assert stored.exit_code == 0, stored.stderr
    assert "insects: 258 training and 42 test images of 3 classes: ant, bee, cat" in stored.stderr
    assert stored.json["classes"] == [*CLASSES]
    assert run(project, "data", "insects", "--json").json == stored.json
    assert run(project, "data", "insects", "--from", "pictures", "--json").json["digest"] == stored.json["digest"]

    searched = run(project, "search", "insects.toml", "--json")
    assert searched.exit_code == 0, searched.stderr
    best = max(trial["value"] for trial in searched.json["trials"])
    assert best > 0.9
    assert {trial["parameters"] for trial in searched.json["trials"]} == {PARAMETERS}
    assert searched.json["selected"]["model"] == "fmnist-search-insects"
    model = "models:/fmnist-search-insects@champion"
    tested = run(project, "evaluate", model, "--json").json
    assert tested["images"] == 42
    (row,) = run(project, "predict", "pictures/bee/000.png", "--model", model, "--json").json
    assert row["class"] == "bee"
    assert "there are 42; take one from 0 to 41" in run(project, "predict", "--test-image", 42, "--model", model).stderr

    record = project / "cache/fmnist-search/images/insects/dataset.json"  # as earlier versions wrote it
    padded = [*CLASSES, *(f"unused {number}" for number in range(3, 10))]
    record.write_text(json.dumps({**json.loads(record.read_text()), "classes": padded}))
    DATASETS.pop("insects", None)
    assert run(project, "data", "insects", "--from", "pictures", "--json").json["classes"] == padded

    (project / "cache/fmnist-search/images/insects/t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    (error,) = run(project, "data", "insects").errors
    assert "t10k-labels-idx1-ubyte is damaged or missing in" in error
    assert "read the images again with `fmnist-search data insects --from FOLDER`" in error


def test_idx_files_become_a_dataset(project: Path) -> None:
    files = write_files(project / "idx", make_dataset_files(train_count=600, test_count=60, classes=12))
    (files / "classes.txt").write_text("\n".join("abcdefghijkl") + "\n")
    stored = run(project, "data", "made", "--from", "idx", "--json")
    assert stored.exit_code == 0, stored.stderr
    assert "".join(stored.json["classes"]) == "abcdefghijkl"
    small = run(project, "train", "mlp", "--set", "data.dataset=made", "--dry-run")
    assert "data.validation: 10848 images leave none of the 600 of made to train on; give" in small.stderr
    trained = run(project, "train", "mlp", *MADE_SETTINGS, "--test", "--json")
    assert trained.exit_code == 0, trained.stderr
    assert [row["class"] for row in trained.json["test"]["classes"]] == [*"abcdefghijkl"]
    model = trained.json["run_id"]
    (row,) = run(project, "predict", "--test-image", 0, "--top", 12, "--model", model, "--json").json
    assert {each["class"] for each in row["top"]} == {*"abcdefghijkl"}
    (files / "classes.txt").write_text("a\nb\n")
    assert "names 2 classes, and the labels are 0 to 11" in run(project, "data", "made", "--from", "idx").stderr
    (files / "classes.txt").unlink()
    assert "is stored with other images or classes" in run(project, "data", "made", "--from", "idx").stderr
    (files / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    assert "is not a whole IDX file of bytes in 3 dimensions" in run(project, "data", "other", "--from", "idx").stderr


def test_folders_that_are_no_dataset_are_refused_in_one_line(project: Path) -> None:
    (project / "few/ant").mkdir(parents=True)
    Image.new("L", (30, 28)).save(project / "few/ant/0.png")
    (project / "empty").mkdir()
    for words, text in (
        (["x", "--from", "nowhere"], "--from nowhere: is no folder"),
        (["x", "--from", "empty"], "empty: has neither IDX files nor folders of image files"),
        (["x", "--from", "few"], "is 30 by 28 pixels, not 28 by 28; add --resize"),
        (["x", "--from", "few", "--resize"], "dataset 'x': has 1 classes; give 2 to 100"),
        (["X y", "--from", "pictures"], "dataset 'X y': is not a valid name"),
        (["mnist", "--from", "pictures"], "dataset 'mnist': is stored with other images"),
        (["x", "--resize"], "--resize and --invert are for images of your own; add --from FOLDER"),
    ):
        refused = run(project, "data", *words)
        assert (refused.exit_code, len(refused.errors)) == (2, 1), refused.stderr
        assert text in refused.errors[0]
