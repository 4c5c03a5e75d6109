"""Overrides: names, the tables that they change, and the lines about unknown names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmnist_search.config.domain import Choice, Fixed
from fmnist_search.config.samplers import Tpe
from fmnist_search.config.study_config import StudyConfig
from tests.unit.config.study_files import CNN_SPACE, COMMON_HEADER, HEADER, TWO_FAMILIES, error_lines, load_study


def load_with_overrides(folder: Path, **overrides: object) -> StudyConfig:
    return load_study(folder, TWO_FAMILIES, {name.replace("__", "."): value for name, value in overrides.items()})


def test_key_of_the_study_file_is_overridden(tmp_path: Path) -> None:
    config = load_with_overrides(tmp_path, budget__trials=9, name="other", finalists__recipes=0, data__train_images=500)
    assert (config.budget.trials, config.name, config.finalists.recipes) == (9, "other", 0)
    assert config.data.train_images == 500
    assert config.space == load_study(tmp_path, TWO_FAMILIES).space


def test_sampler_and_pruner_are_overridden_by_name(tmp_path: Path) -> None:
    config = load_with_overrides(tmp_path, sampler="random", pruner="none")
    assert (config.sampler.name, config.pruner.name) == ("random", "none")


def test_settings_of_a_replaced_sampler_are_dropped_with_a_warning(tmp_path: Path) -> None:
    text = f'{TWO_FAMILIES}[sampler]\nname = "tpe"\nstartup_trials = 3\n'
    config = load_study(tmp_path, text, {"sampler": "random"})
    assert config.sampler.name == "random"
    assert config.warnings == ("sampler.startup_trials belongs to 'tpe' and does nothing for 'random'",)


def test_settings_stay_when_the_override_names_the_same_sampler(tmp_path: Path) -> None:
    text = f'{HEADER}{CNN_SPACE}[sampler]\nname = "tpe"\nstartup_trials = 3\n'
    config = load_study(tmp_path, text, {"sampler": "tpe"})
    assert config.sampler == Tpe(startup_trials=3)
    assert config.warnings == ()


@pytest.mark.parametrize("given_as", ["", "sampler = 'tpe'\n"])
def test_setting_of_the_sampler_is_overridden_in_every_spelling(given_as: str, tmp_path: Path) -> None:
    config = load_study(tmp_path, given_as + TWO_FAMILIES, {"sampler.startup_trials": 3})
    assert config.sampler == Tpe(startup_trials=3)


@pytest.mark.parametrize("spelling", ["optimizer.learning_rate", '"optimizer.learning_rate"'])
def test_shared_hyperparameter_is_fixed_in_every_spelling(spelling: str, tmp_path: Path) -> None:
    text = f"{COMMON_HEADER}{spelling} = [0.1, 0.2]\n"
    config = load_study(tmp_path, text, {"optimizer.learning_rate": 0.5, "label_smoothing": 0.1})
    assert config.space.common == {"optimizer.learning_rate": Fixed(0.5), "label_smoothing": Fixed(0.1)}


def test_override_replaces_an_invalid_domain(tmp_path: Path) -> None:
    text = f"{COMMON_HEADER}optimizer.learning_rate = []\nbatch_size = [1]\n"
    config = load_study(tmp_path, text, {"optimizer.learning_rate": 0.5, "batch_size": 64})
    assert config.space.common == {"optimizer.learning_rate": Fixed(0.5), "batch_size": Fixed(64)}


def test_model_hyperparameter_is_fixed_in_every_family_that_has_it(tmp_path: Path) -> None:
    space = load_with_overrides(tmp_path, model__depth=2, model__kernel_1=5).space
    assert space.domains("cnn")["model.depth"] == Fixed(2)
    assert space.domains("mlp")["model.depth"] == Fixed(2)
    assert space.domains("cnn")["model.kernel_1"] == Fixed(5)
    assert "model.kernel_1" not in space.domains("mlp")


def test_override_may_be_a_choice(tmp_path: Path) -> None:
    space = load_with_overrides(tmp_path, batch_size=[32, 64], model__width=[16]).space
    assert (space.common["batch_size"], space.domains("mlp")["model.width"]) == (Choice((32, 64)), Choice((16,)))


def test_fixed_family_drops_the_tables_of_the_others(tmp_path: Path) -> None:
    space = load_with_overrides(tmp_path, model__family="mlp").space
    assert (space.families, list(space.by_family)) == (("mlp",), ["mlp"])
    assert space.by_family["mlp"]["model.width"] == Choice((64, 128))


def test_chosen_families_keep_their_tables(tmp_path: Path) -> None:
    both = load_with_overrides(tmp_path, model__family=["mlp", "cnn"]).space
    assert both.by_family == load_study(tmp_path, TWO_FAMILIES).space.by_family


@pytest.mark.parametrize("order", [["model.family", "model.depth"], ["model.depth", "model.family"]])
def test_order_of_overrides_does_not_matter(order: list[str], tmp_path: Path) -> None:
    values: dict[str, object] = {"model.family": "mlp", "model.depth": 4}
    config = load_study(tmp_path, f"{HEADER}{CNN_SPACE}", {name: values[name] for name in order})
    assert config.space.domains("mlp") == {"model.depth": Fixed(4)}


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("budget.trails", "'trials'"),
        ("budgt.trials", "'budget"),
        ("sampler.startup", "'startup_trials'"),
        ("model.kernel_9", "'model.kernel_"),
        ("model.dept", "'model.depth'"),
        ("optimizer.learning_rat", "'optimizer.learning_rate'"),
        ("optimzer.learning_rate", "'optimizer.learning_rate'"),
        ("batchsize", "'batch_size'"),
        ("learning_rate", "'optimizer.learning_rate'"),
        ("epochs", "budget.epochs"),
        ("precision", "execution.precision"),
        ("xyz", "batch_size"),
    ],
)
def test_unknown_name_gets_the_nearest_one(name: str, suggestion: str, tmp_path: Path) -> None:
    (line,) = error_lines(tmp_path, f"{TWO_FAMILIES}[sampler]\nname = 'tpe'\n", {name: 3})
    assert name in line
    assert suggestion in line


@pytest.mark.parametrize(
    "text",
    [f"space = 3\n{HEADER}", f"{HEADER}[space]\ncommon = 3\n", f"{HEADER}[space]\ncnn = 3\n"],
    ids=["space", "common", "cnn"],
)
def test_override_below_something_that_is_not_a_table_is_an_error(text: str, tmp_path: Path) -> None:
    (line,) = error_lines(tmp_path, text, {"model.depth": 3})
    assert "3 is not a table" in line
