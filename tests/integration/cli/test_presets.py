"""`models`, and a search over several families."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from fmnist_search.config.toml_files import read_recipe
from fmnist_search.models.presets import PRESETS
from fmnist_search.recipe.families import FAMILIES
from tests.integration.conftest import RunCommand, run_command

ROOT = Path(__file__).parents[3]

FOUR_FAMILY_STUDY = """
name = "four"
sampler = { name = "tpe", startup_trials = 4 }
pruner = "none"

[data]
train_images = 500
validation = 500

[budget]
epochs = 1
trials = 9

[space.common]
family = ["cnn", "vgg", "resnet", "mlp"]
batch_size = [100]
optimizer.learning_rate = { low = 1e-3, high = 1e-1, log = true }

[space.cnn]
depth = [1, 2]
width_1 = [4]
width_2 = [8]

[space.vgg]
depth = [1, 2]
width = [4, 8]
convolutions = 1

[space.resnet]
stages = [1, 2]
blocks = { low = 1, high = 2 }
width = [4]
stem_stride = [1, 2]

[space.mlp]
depth = { low = 0, high = 2 }
width = [16, 32]
shrink = [1, 2]

[finalists]
recipes = 0

[execution]
workers = 1
precision = "float32"
"""


def test_models_lists_every_preset(command: RunCommand) -> None:
    outcome = command("models")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    head, *lines = outcome.stdout.splitlines()
    assert head.split() == ["preset", "family", "parameters", "mult_adds", "published", "notes"]
    assert [line.split()[0] for line in lines[: len(PRESETS)]] == list(PRESETS)
    assert any("resnet18" in line and "11,175,370" in line for line in lines)
    assert lines[-1].endswith(", ".join(FAMILIES))
    rows = {row["preset"]: row for row in command("models", "--json").json}
    assert rows["mlp-512"]["parameters"] == 669_706
    # torchinfo counts a multiply-add for each weight and each bias.
    assert rows["logistic"]["mult_adds"] == rows["logistic"]["parameters"] == 7_850
    assert rows["simple-cnn"]["published"] == "87.2 (validation 88.1)"


def test_models_show_shows_layers_and_changes(command: RunCommand) -> None:
    text = command("models", "show", "simple-cnn").stdout
    assert "[1, 16, 7, 7]" in text
    assert "simple-cnn: simple_cnn 8-16, 1,941 parameters" in text
    assert "\npublished: 87.2 (validation 88.1)\n" in text
    changed = command("models", "show", "simple-cnn", "--set", "model.width_1=64")
    assert "simple_cnn 64-16, 10,677 parameters" in changed.stdout
    assert "published of the unchanged preset" in changed.stdout
    found = command("models", "show", "simple-cnn", "--set", "model.width_1=64", "--json").json
    assert found["hyperparameters"]["model.width_1"] == 64
    assert found["layers"][0] == {
        "name": "network.0",
        "kind": "Conv2d",
        "output": [64, 28, 28],
        "parameters": 640,
        "mult_adds": 640 * 28 * 28,
    }
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"] == 10_677
    assert "resnet 16-32-64" in command("models", "show", "resnet").stdout
    batch = command("models", "show", "simple-cnn", "--batch-size", 64)
    assert "[64, 16, 7, 7]" in batch.stdout
    assert command("models", "show", "simple-cnn", "--batch-size", 64, "--json").json["mult_adds"] == 64 * 299_301


def test_models_show_prints_a_recipe_that_trains(command: RunCommand, tmp_path: Path) -> None:
    printed = command("models", "show", "logistic", "--recipe", "--set", "epochs=1").stdout
    (tmp_path / "logistic.toml").write_text(printed)
    assert read_recipe(tmp_path / "logistic.toml") == PRESETS["logistic"].recipe.replace({"epochs": 1})
    settings = ["--set", "data.train_images=500", "--set", "data.validation=500"]
    outcome = command("train", "logistic.toml", *settings, "--json")
    assert outcome.json["state"] == "completed", outcome
    assert outcome.json["parameters"] == 7_850


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lenett"], ["'lenett': no such preset or family", "did you mean 'lenet'?"]),
        (["resnt"], ["did you mean 'resnet'?"]),
        (["lenet", "--set", "model.widht_1=3"], ["model.widht_1", "did you mean 'model.width_1'?"]),
        (["lenet", "--set", "model.width_1=wide"], ["model.width_1", "'wide'", "whole number"]),
        (["lenet", "--set", "model.width_1"], ["--set", "not an assignment"]),
        (["lenet", "--set", "model.pool_size=4"], ["model.pool_size", "after block 3 (side 1)", "model.depth = 2"]),
        (
            ["lenet", "--set", "model.kernel=11", "--set", "model.padding=valid", "--recipe"],
            ["model.kernel", "in block 2 (side 9)", "model.depth = 1"],
        ),
        (["wide-conv", "--set", "model.hidden_1=4096"], ["parameters", "50,000,000"]),
    ],
)
def test_an_error_is_one_line(command: RunCommand, arguments: list[str], expected: list[str]) -> None:
    outcome = command("models", "show", *arguments)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert len(outcome.errors) == len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert all(text in outcome.errors[0] for text in expected), outcome.stderr


def test_the_page_and_the_recipes_of_the_repository_are_up_to_date(command: RunCommand, tmp_path: Path) -> None:
    stale = "is stale: run `make docs`"
    assert command("models", "page").stdout == (ROOT / "docs" / "models.md").read_text(), f"docs/models.md {stale}"
    assert command("models", "recipes", "made").exit_code == 0
    for made in (tmp_path / "made").iterdir():
        assert made.read_text() == (ROOT / "studies" / "recipes" / made.name).read_text(), f"{made.name} {stale}"


def test_a_search_over_families_has_numeric_columns(tmp_path: Path) -> None:
    (tmp_path / "four.toml").write_text(FOUR_FAMILY_STUDY)
    outcome = run_command(tmp_path, "search", "four.toml")
    assert outcome.exit_code == 0, outcome.stderr
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.family != ''")
    rows = [run.data.params for run in runs]
    assert {run.data.tags["family"] for run in runs} == {"cnn", "vgg", "resnet", "mlp"}
    assert len({frozenset(row) for row in rows}) == 1
    numeric = {name for name in rows[0] if name.startswith("model.")} - {"model.family", "model.widths"}
    assert {"model.stages", "model.width_2", "model.shrink", "model.width"} <= numeric
    for name in numeric:
        assert all(float(row[name]) >= 0 for row in rows), name


def test_a_study_starts_with_a_preset(command: RunCommand, tmp_path: Path) -> None:
    plain = {"batch_size": [100, 128], "optimizer.name": "adam", "averaging.horizon": 0.0}
    pinned = [f"--set={name}={value}" for name, value in plain.items()]
    (tmp_path / "four.toml").write_text(FOUR_FAMILY_STUDY.replace("trials = 9", "trials = 1"))
    mlp = ["--set", "model.family=mlp", "--set", "optimizer.weight_decay=0.0"]
    outcome = command("search", "four.toml", "--start", "preset:logistic", *mlp, *pinned)
    assert outcome.exit_code == 0, outcome.stderr
    assert "preset:logistic is tried first" in outcome.stderr
    (row,) = command("leaderboard", "four", "--json").json
    recipe = PRESETS["logistic"].recipe
    wanted = ("model.depth", "optimizer.name", "optimizer.learning_rate", "batch_size", "averaging.horizon")
    assert {name: row["recipe"][name] for name in wanted} == {name: recipe.to_flat_dict()[name] for name in wanted}
