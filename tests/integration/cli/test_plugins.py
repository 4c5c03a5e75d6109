"""Families and costs of a user's own: the examples of docs/extending.md, from the search to serving, and mistakes."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fmnist_search.recipe.families import FAMILIES
from tests.integration.conftest import fork_command, link_image_cache, read_artifact, run_command
from tests.support.pages import page_example

SMALL = [
    *("--trials", "3", "--epochs", "1", "--sampler", "random", "--set", "data.train_images=500"),
    *("--set", "data.validation=500", "--set", "pruner=none", "--set", "execution.precision=float32"),
    *("--set", "finalists={ recipes = 1, seeds = 1, epochs = 1, images = 'slice', refit = 'none' }"),
]


example = partial(page_example, "extending.md")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example, of a user who has named no plugin yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(link_image_cache(tmp_path / "cache")))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_networks.py").write_text(example("python"))
    (folder / "separable.toml").write_text(example("toml"))
    return folder


def run(folder: Path, *arguments: object, **changes: str) -> tuple[int, str, str]:
    """Run a command in a process of its own, which has registered nothing."""
    command = fork_command(folder, *arguments, XDG_CACHE_HOME=os.environ["XDG_CACHE_HOME"], **changes)
    stdout, stderr = command.communicate(timeout=300)
    return command.wait(), stdout, stderr


def json_of(folder: Path, *arguments: object, **changes: str) -> Any:
    code, stdout, stderr = run(folder, *arguments, "--json", **changes)
    assert code == 0, stderr
    return json.loads(stdout)


@pytest.mark.slow
def test_a_family_of_ones_own_from_the_search_to_serving(project: Path) -> None:
    assert run(project, "train", "separable")[0] == 2  # nobody has named it
    workers = ["--backend", "processes", "--workers", 1]
    code, _, stderr = run(project, "search", "separable.toml", *SMALL, *workers)
    assert code == 0, stderr
    assert "separable: runs the code of my_networks.py" in stderr
    best = json_of(project, "status")["best"]
    assert best["recipe"]["model.family"] == "separable"
    assert {row["recipe"]["model.width"] for row in json_of(project, "leaderboard")} <= {8, 16, 32}
    probabilities = json_of(project, "predict", "--test-image", 0, "--model", best["run_id"])
    assert len(probabilities) == 1
    (project / "best.toml").write_text(run(project, "show", "--recipe")[1])
    trained = json_of(project, "train", "best.toml", "--set", "model.depth=1")
    assert trained["epochs"]

    (project / "my_networks.py").rename(project / "moved.py")
    code, _, stderr = run(project, "status")
    assert code == 2
    assert "my_networks.py is missing; name where it is with FMNIST_SEARCH_PLUGINS" in stderr
    named = {"FMNIST_SEARCH_PLUGINS": str(project / "moved.py")}
    assert json_of(project, "status", **named)["best"] == best
    shutil.rmtree(project.parent / "cache")  # a registered model needs neither the code nor its name
    assert len(json_of(project, "predict", "--test-image", 0, "--model", "models:/fmnist-search/1")) == 1
    assert run(project, "export", "models:/fmnist-search/1", "--onnx", "model.onnx")[0] == 0


@pytest.mark.slow
def test_a_cost_of_ones_own_from_the_search_to_mlflow(project: Path) -> None:
    costs = example("python", "register_cost")
    (project / "my_costs.py").write_text(costs)
    (project / "shirts.toml").write_text(example("toml", "missed_shirts"))
    trials = json_of(project, "search", "shirts.toml", *SMALL)["trials"]
    assert sum(trial["duplicate_of"] is None for trial in trials) == 3
    front = json_of(project, "leaderboard", "--pareto", "missed_shirts")
    for trial in trials:
        client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
        stored = read_artifact(client, trial["run_id"], "confusion_matrix.json")
        answers = json.loads(stored)["rows_true_columns_predicted"][6]
        missed = 100 * (1 - answers[6] / sum(answers))
        assert trial["cost"] == {"metric": "missed_shirts", "value": pytest.approx(missed)}
        assert client.get_run(trial["run_id"]).data.metrics["cost/missed_shirts"] == pytest.approx(missed)
    assert front[0]["cost"]["value"] == min(trial["cost"]["value"] for trial in trials)
    assert "missed_shirts" in run(project, "leaderboard")[1]

    (project / "my_costs.py").write_text(costs.replace("return 100", "return float('nan') * 100"))
    code, stdout, _ = run(project, "search", "shirts.toml", *SMALL, "--name", "nan", "--json")
    assert code == 3
    assert {(trial["state"], trial["reason"]) for trial in json.loads(stdout)["trials"]} == {
        ("failed", "objective.metrics: missed_shirts: returned nan, which is no finite number")
    }


def test_a_recipe_file_names_a_module(project: Path) -> None:
    recipe = '[plugins]\nmodules = ["my_networks"]\n[model]\nfamily = "separable"\nkernel = 5\n'
    (project / "recipe.toml").write_text(recipe)
    printed = json_of(project, "train", "recipe.toml", "--dry-run")
    assert printed["recipe"]["model.kernel"]["value"] == 5
    assert run(project, "train", "separable", "--dry-run")[0] == 0  # it is known now


def test_mistakes_of_plugins_are_one_line(project: Path) -> None:
    study, costs = example("toml"), example("python", "register_cost")
    for name, content, problem in (
        ("broken.py", "1 / 0\n", "broken.py: cannot be loaded (ZeroDivisionError: division by zero); correct it"),
        ("empty.py", "", "empty.py: registers no family and no cost; decorate a dataclass with @register_family"),
        ("accuracy.py", costs.replace('"missed_shirts"', '"mult_adds"'), "cost 'mult_adds': is not a valid name"),
        ("taken.py", example("python").replace('"separable"', '"cnn"'), "family 'cnn': is registered by fmnist_search"),
        ("common.py", example("python").replace('"separable"', '"common"'), "family 'common': is not a valid name"),
        ("none.py", None, "none.py: no such file; give its path from the folder of the naming file"),
        ("no_module", None, "no_module: cannot be loaded (ModuleNotFoundError"),
    ):
        if content is not None:
            (project / name).write_text(content)
        (project / "separable.toml").write_text(study.replace("my_networks.py", name))
        checked = run_command(project, "studies", "check", "separable.toml")
        assert checked.exit_code == 2
        (error,) = checked.errors
        assert error.startswith("error: separable.toml: plugins.modules: ")
        assert problem in error
    (project / "separable.toml").write_text(study.replace('["my_networks.py"]', "7"))
    assert "names no modules; write modules = " in run_command(project, "space", "separable.toml").stderr
    assert "separable" not in list(FAMILIES)


def test_a_list_of_study_files_runs_no_code(project: Path) -> None:
    (project / "my_networks.py").write_text("open('ran', 'w').close()\n")
    listed = run_command(project, "studies", "list", ".")
    assert (listed.exit_code, "is not a valid study" in listed.stderr) == (0, True)
    assert not (project / "ran").exists()
