"""Study files and recipe files: what is written is read back, and every mistake is one line that says all."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.config.sections import Tpe
from fmnist_search.config.space import Choice, Fixed, Range
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.config.toml_files import parse_assignment, read_recipe, recipe_from_toml, recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe
from tests.support.strategies import recipes
from tests.support.studies import make_study, space_tables

STUDY_FILES = sorted((Path(__file__).parents[3] / "studies").glob("*.toml"))


def load_study(folder: Path, text: str, overrides: dict[str, object] | None = None) -> StudyConfig:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return StudyConfig.load(path, overrides)


def error_lines(folder: Path, text: str, overrides: dict[str, object] | None = None) -> list[str]:
    """What a study file is refused with, each line without the file's name, which it has to begin with."""
    with pytest.raises(UserError) as caught:
        load_study(folder, text, overrides)
    prefix = f"{folder / 'study.toml'}: "
    assert caught.value.exit_code == 2
    for line in caught.value.lines:
        assert line.startswith(prefix)
        assert "\n" not in line
    return [line.removeprefix(prefix) for line in caught.value.lines]


# ------------------------------------------------------------------------------------- round trips


def test_what_a_study_file_says_is_what_the_study_holds(tmp_path: Path) -> None:
    config = load_study(
        tmp_path,
        """
        name = "my study"
        question = "Why?"
        sampler = "random"
        [data]
        validation = 0.2
        train_images = 12_000
        [budget]
        minutes = 5
        [pruner]
        name = "median"
        warmup_epochs = 2
        [space.common]
        batch_size = [64, 128]
        label_smoothing = 0.1
        optimizer.learning_rate = { low = 1e-3, high = 1, log = true }
        [space.mlp]
        depth = { low = 1, high = 4 }
        """,
    )
    assert (config.name, config.question, config.experiment) == ("my study", "Why?", "fmnist-search")
    assert (config.sampler.name, config.pruner.name, config.budget.minutes) == ("random", "median", 5.0)
    assert (config.data.validation, config.data.train_images) == (12_000, 12_000)
    # Only the mlp has a table, so it is the family.
    assert config.space.families == ("mlp",)
    assert config.space.domains("mlp") == {
        "batch_size": Choice((64, 128)),
        "label_smoothing": Fixed(0.1),
        "optimizer.learning_rate": Range(1e-3, 1.0, log=True),
        "model.depth": Range(1, 4),
    }


@settings(max_examples=60)
@given(space_tables(), st.text(), st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_a_study_written_as_toml_is_read_back_equal(space: dict[str, Any], question: str, minutes: float) -> None:
    config = make_study(space, question=question, budget={"minutes": minutes})
    again = StudyConfig.from_dict(tomllib.loads(config.to_toml()))
    assert again == config
    assert again.comparability_key() == config.comparability_key()


def test_a_study_written_as_toml_spells_every_setting_out() -> None:
    written = tomllib.loads(make_study().to_toml())
    assert written.keys() == StudyConfig.model_fields.keys()
    assert written["sampler"] == {"name": "tpe", "startup_trials": 5, "candidates": 24}
    assert written["data"]["validation"] == 10_848
    # A budget of minutes that was not given stays away: TOML has no null.
    assert "minutes" not in written["budget"]


@settings(max_examples=60)
@given(recipes())
def test_a_recipe_written_as_toml_is_read_back_exactly(recipe: Recipe) -> None:
    again = recipe_from_toml(recipe_to_toml(recipe))
    assert again == recipe
    assert repr(again) == repr(recipe)


def test_a_recipe_file_is_read_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('epochs = 2\n[model]\nfamily = "mlp"\nwidth = 32\n')
    recipe = read_recipe(path, {"optimizer.learning_rate": 0.5, "epochs": 3})
    assert (recipe.label, recipe.epochs, recipe.optimizer.learning_rate) == ("mlp 32-32", 3, 0.5)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("[model]\nwidht_1 = 3\n", {}, "model.widht_1: unknown hyperparameter; did you mean 'model.width_1'?"),
        ("epoch = 3\n", {}, "epoch: unknown hyperparameter; did you mean 'epochs'?"),
        ("batch_size = 1\n", {}, "batch_size: 1 is out of bounds; give a whole number at least 2 and at most 60000"),
        ("", {"augmentation.shif": 1}, "augmentation.shif: unknown hyperparameter; did you mean 'augmentation.shift'?"),
        ("epochs = \n", {}, "not valid TOML: Invalid value (at line 1, column 10); mend the file there"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_file_is_one_line_with_file_and_key(
    text: str, overrides: dict[str, object], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_recipe(path, overrides)
    assert caught.value.lines == (f"{path}: {expected}",)


# ---------------------------------------------------------------------------------------- mistakes

HEADER = 'name = "t"\n[budget]\ntrials = 4\n'
CNN_SPACE = "[space.cnn]\ndepth = [1, 2]\n"
COMMON_HEADER = f"{HEADER}[space.common]\n"
SCARCE_DATA = f"{HEADER}[data]\ntrain_images = 100\n"


INVALID_STUDIES = [
    # Names that do not exist.
    (f"nmae = 3\n{HEADER}{CNN_SPACE}", "nmae", "unknown key", "'name'"),
    (f"{HEADER}{CNN_SPACE}[finalist]\nseeds = 3\n", "finalist", "unknown key", "'finalists'"),
    (f"{HEADER}epoch = 3\n{CNN_SPACE}", "budget.epoch", "unknown key", "'epochs'"),
    (f"{HEADER}{CNN_SPACE}[execution]\nthread = 3\n", "execution.thread", "unknown key", "'threads'"),
    (f"{HEADER}{CNN_SPACE}[finalists]\nseed = 3\n", "finalists.seed", "unknown key", "'seeds'"),
    (f"{HEADER}{CNN_SPACE}[data]\ntrain_imges = 300\n", "data.train_imges", "unknown", "'data.train_images'"),
    (f"{HEADER}[space.cnn]\ndept = [1]\n", "space.cnn.dept", "unknown hyperparameter", "'depth'"),
    (f"{COMMON_HEADER}batchsize = [64]\n", "space.common.batchsize", "unknown hyperparameter", "'batch_size'"),
    (
        f"{COMMON_HEADER}optimizer.learning_rat = 0.1\n",
        "space.common.optimizer.learning_rat",
        "unknown hyperparameter",
        "'optimizer.learning_rate'",
    ),
    (f"{COMMON_HEADER}family = 'cnm'\n", "space.common.family", "no family 'cnm'", "'cnn'"),
    (f"{COMMON_HEADER}family = ['mlp', 'transformer']\n", "space.common.family", "no family 'transformer'", "cnn, convnet"),  # noqa: E501
    (f"{HEADER}[space.transformer]\ndepth = 3\n", "space.transformer", "no such family", "cnn"),
    (f"sampler = 'tpee'\n{HEADER}{CNN_SPACE}", "sampler", "no sampler 'tpee'", "'tpe'"),
    (f"pruner = 'halvng'\n{HEADER}{CNN_SPACE}", "pruner", "no pruner 'halvng'", "'halving'"),
    (f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 1e-3, hihg = 1 }}\n",
     "space.common.optimizer.learning_rate", "unknown key 'hihg'", "'high'"),
    # Names that exist elsewhere.
    (f"{HEADER}[space.common]\nfamily = 'cnn'\n[space.mlp]\ndepth = 1\n",
     "space.mlp", "does not search this family", "space.common.family"),
    (f"{COMMON_HEADER}epochs = [1, 2]\n", "space.common.epochs", "the same in all trials", "set budget.epochs"),
    (f"{COMMON_HEADER}seed = [1, 2]\n", "space.common.seed", "the same in all trials", "set seed"),
    (f"{COMMON_HEADER}precision = 'float32'\n",
     "space.common.precision", "the same in all trials", "set execution.precision"),
    (f"{COMMON_HEADER}data.validation = [1000, 2000]\n", "space.common.data.validation", "the same in all", "set [data]"),  # noqa: E501
    # Values out of bounds.
    (f"{HEADER}[space.cnn]\nkernel_1 = [3, 4]\n", "space.cnn.kernel_1", "4 is out of bounds", "choose from 3, 5, 7"),
    (f"{HEADER}[space.cnn]\ndepth = 6\n", "space.cnn.depth", "6 is out of bounds", "at most 5"),
    (f"{COMMON_HEADER}optimizer.learning_rate = 0\n",
     "space.common.optimizer.learning_rate", "0.0 is out of bounds", "above 0"),
    (f"{COMMON_HEADER}optimizer.learning_rate = nan\n",
     "space.common.optimizer.learning_rate", "nan is out of bounds", "above 0"),
    (f"{SCARCE_DATA}[space.common]\nbatch_size = [64, 128]\n",
     "space.common.batch_size", "128 is larger than the 100", "smaller batches or more images"),
    (f"{SCARCE_DATA}[space.common]\nbatch_size = {{ low = 16, high = 256 }}\n",
     "space.common.batch_size", "256 is larger than the 100", "smaller batches or more images"),
    (f"{COMMON_HEADER}batch_size = 50_000\n", "space.common.batch_size", "50000 is larger than the 49152", "smaller"),
    (f"{HEADER}{CNN_SPACE}[data]\nvalidation = 60_000\n", "data.validation", "60000 is out of bounds", "at most 59900"),
    (f"{HEADER}{CNN_SPACE}[data]\nvalidation = 0\n", "data.validation", "judges its trials on validation images", "hold"),  # noqa: E501
    (f"{HEADER}{CNN_SPACE}[data]\ntrain_images = 59_000\n",
     "data.train_images", "59000 is more than the 49152", "take fewer"),
    (f"seed = -1\n{HEADER}{CNN_SPACE}", "seed", "-1", "greater than or equal to 0"),
    ('name = "t"\n[budget]\ntrials = 0\n' + CNN_SPACE, "budget.trials", "0", "greater than or equal to 1"),
    (f"{HEADER}{CNN_SPACE}[finalists]\nschedule = 'constant'\n", "finalists.schedule", "'constant'", "'one-cycle'"),
    # Domains that are none.
    (f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 1e-2, high = 1e-3 }}\n",
     "space.common.optimizer.learning_rate", "low = 0.01 is not below high = 0.001", "exchange them"),
    (f"{HEADER}[space.cnn]\ndepth = []\n", "space.cnn.depth", "an empty list chooses nothing", "at least one"),
    (f"{COMMON_HEADER}family = []\n", "space.common.family", "an empty list chooses nothing", "at least one"),
    (f"{COMMON_HEADER}optimizer.weight_decay = {{ low = 0, high = 1, log = true }}\n",
     "space.common.optimizer.weight_decay", "low = 0.0 has no logarithm", "a low above 0, or leave out log"),
    (f"{HEADER}[space.cnn]\ndepth = [1, 2, 1]\n", "space.cnn.depth", "names a value twice", "name each once"),
    # 1 and 1.0 are one learning rate.
    (f"{COMMON_HEADER}optimizer.learning_rate = [1, 1.0]\n",
     "space.common.optimizer.learning_rate", "names a value twice", "name each once"),
    (f"{COMMON_HEADER}family = ['cnn', 'cnn']\n", "space.common.family", "twice", "once"),
    (f"{COMMON_HEADER}optimizer.name = {{ low = 0, high = 1 }}\n",
     "space.common.optimizer.name", "a range needs numbers", "choose from sgd, adam, adamw"),
    # A range over kernels would draw even ones.
    (f"{HEADER}[space.cnn]\nkernel_1 = {{ low = 3, high = 7 }}\n", "space.cnn.kernel_1", "range", "3, 5, 7"),
    (f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 1e-3 }}\n",
     "space.common.optimizer.learning_rate", "a range needs low and high", "high is missing"),
    (f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 0.1, high = 1, log = 'yes' }}\n",
     "space.common.optimizer.learning_rate", "log = 'yes' is no bool", "true or false"),
    (f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 0.1, high = 1, log = true, step = 0.1 }}\n",
     "space.common.optimizer.learning_rate", "step = 0.1 does not fit", "none together with log"),
    (f"{HEADER}[space.cnn]\nwidth_1 = {{ low = 8, high = 64, step = 0.5 }}\n",
     "space.cnn.width_1", "step = 0.5", "whole number"),
    (f"{COMMON_HEADER}optimizer.momentum = {{ low = 0, high = 0.9, step = nan }}\n",
     "space.common.optimizer.momentum", "step = nan does not fit", "a number above 0"),
    # Values of another type.
    ('name = "t"\n[budget]\ntrials = "many"\n' + CNN_SPACE, "budget.trials", "'many'", "integer"),
    ('name = "t"\n[budget]\ntrials = 3.5\n' + CNN_SPACE, "budget.trials", "3.5", "integer"),
    ('name = "t"\n[budget]\ntrials = true\n' + CNN_SPACE, "budget.trials", "True", "integer"),
    ('name = "t"\n[budget]\ntrials = "4"\n' + CNN_SPACE, "budget.trials", "'4'", "integer"),
    (f"{HEADER}[space.cnn]\ndepth = '3'\n", "space.cnn.depth", "'3' is not a whole number", "at least 1"),
    (f"{HEADER}[space.cnn]\ndepth = true\n", "space.cnn.depth", "True is not a whole number", "at least 1"),
    (f"{HEADER}[space.cnn]\ndropout = 'no'\n", "space.cnn.dropout", "'no' is not a number", "at most 0.95"),
    (f"{COMMON_HEADER}optimizer.nesterov = 1\n",
     "space.common.optimizer.nesterov", "1 is not true or false", "give true or false"),
    (f"{HEADER}[space]\ncnn = 3\n", "space.cnn", "3 is no table", "write [space.cnn]"),
    (f"space = 3\n{HEADER}", "space", "3 is no table", "[space.cnn]"),
    (f"data = 3\n{HEADER}{CNN_SPACE}", "data", "3 is no table", "[data]"),
    (f'name = "t"\nbudget = 3\n{CNN_SPACE}', "budget", "3 is no table", "[budget]"),
    # Studies without what every study needs.
    (f'name = "t"\n[budget]\nepochs = 3\n{CNN_SPACE}', "budget", "needs an end", "give trials, minutes or both"),
    (f"[budget]\ntrials = 3\n{CNN_SPACE}", "name", "is missing", "every study file needs it"),
    (f'name = "t"\n{CNN_SPACE}', "budget", "is missing", "every study file needs it"),
    (HEADER, "space", "is missing", "every study file needs it"),
    # Names that could not be a file's or stand in an address.
    (f'name = "a/b"\n[budget]\ntrials = 3\n{CNN_SPACE}', "name", "'a/b' is no usable name", "letters, digits"),
    (f'name = ""\n[budget]\ntrials = 3\n{CNN_SPACE}', "name", "'' is no usable name", "letters, digits"),
    (f'name = "a\\nb"\n[budget]\ntrials = 3\n{CNN_SPACE}', "name", r"'a\nb' is no usable name", "letters, digits"),
    (f"{HEADER}{CNN_SPACE}[finalists]\nensemble = 1\n", "finalists.ensemble", "1 is no ensemble", "give 2 or more"),
    (f"{HEADER}{CNN_SPACE}[finalists]\nensemble = 10\n", "finalists.ensemble", "more than the 9 finalists", "fewer members"),  # noqa: E501
    (f"{HEADER}{CNN_SPACE}[finalists]\nmodel_name = 'a/b'\n", "finalists.model_name", "'a/b' is no usable name", "letters"),  # noqa: E501
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key", "wrong", "right"), INVALID_STUDIES, ids=[f"{key}: {wrong}" for _, key, wrong, _ in INVALID_STUDIES]
)
def test_a_mistake_is_one_line_with_file_key_fault_and_remedy(
    text: str, key: str, wrong: str, right: str, tmp_path: Path
) -> None:
    lines = error_lines(tmp_path, text)
    assert len(lines) == 1
    assert lines[0].startswith(f"{key}: ")
    what, remedy = lines[0].index(wrong), lines[0].rindex(right)
    assert what < remedy


@pytest.mark.parametrize(
    ("table", "key", "other"),
    [
        ('[sampler]\nname = "random"\nstartup_trials = 3\n', "sampler.startup_trials", "startup_trials"),
        ('[pruner]\nname = "median"\nreduction_factor = 3\n', "pruner.reduction_factor", "reduction_factor"),
        ('[pruner]\nname = "none"\nmin_epochs = 3\n', "pruner.min_epochs", "min_epochs"),
    ],
    ids=["random", "median", "none"],
)
def test_a_setting_of_another_sampler_or_pruner_is_unknown_and_not_advised(
    table: str, key: str, other: str, tmp_path: Path
) -> None:
    (line,) = error_lines(tmp_path, f"{HEADER}{CNN_SPACE}{table}")
    assert line.startswith(f"{key}: unknown key; ")
    assert other not in line.partition("unknown key; ")[2]


def test_settings_without_a_name_are_those_of_the_default_sampler_and_pruner(tmp_path: Path) -> None:
    config = load_study(tmp_path, f"{HEADER}{CNN_SPACE}[sampler]\nstartup_trials = 3\n[pruner]\nreduction_factor = 4\n")
    assert config.sampler == Tpe(startup_trials=3)
    assert (config.pruner.name, config.pruner.model_dump()["reduction_factor"]) == ("halving", 4)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (f"{COMMON_HEADER}depth = [1, 2]\n", "space.cnn"),
        (f"{HEADER}[space.cnn]\noptimizer.learning_rate = [0.1, 0.2]\n", "space.common"),
        (f"{COMMON_HEADER}learning_rate = [0.1, 0.2]\n", "'optimizer.learning_rate'"),
    ],
    ids=["of the model", "of the optimizer", "without its group"],
)
def test_a_hyperparameter_in_the_wrong_table_is_pointed_to_the_right_one(
    text: str, advice: str, tmp_path: Path
) -> None:
    (line,) = error_lines(tmp_path, text)
    assert advice in line.partition("; ")[2]


def test_a_batch_that_is_larger_than_the_images_is_refused_even_where_no_table_names_it(tmp_path: Path) -> None:
    # The default of 128 does not fit into 100 images.
    (line,) = error_lines(tmp_path, f"{SCARCE_DATA}{CNN_SPACE}")
    assert "batch_size: 128 is larger than the 100" in line


def test_several_mistakes_are_several_lines(tmp_path: Path) -> None:
    lines = error_lines(
        tmp_path,
        f"nmae = 3\n{HEADER}epoch = 3\n[space.common]\nkeep = 'best'\n[space.cnn]\ndept = [1]\nkernel_1 = 4\n"
        "[pruner]\nname = 'non'\n",
    )
    keys = {line.partition(":")[0] for line in lines}
    assert keys == {
        "nmae",
        "budget.epoch",
        "space.common.keep",
        "space.cnn.dept",
        "space.cnn.kernel_1",
        "pruner",
    }
    assert len(lines) == len(keys)


# ---------------------------------------------------------------------------- files that are none


def error_line(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        StudyConfig.load(path)
    (line,) = caught.value.lines
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def test_a_file_that_is_not_toml_is_refused_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('name = "t"\n[budget\n')
    assert "line 2, column 8" in error_line(path)


def test_a_file_that_is_not_there_is_refused_with_those_beside_it(tmp_path: Path) -> None:
    assert error_line(tmp_path / "nowhere" / "study.toml") == "no such file; check the path"
    for name in ("b.toml", "a.toml", "notes.md"):
        (tmp_path / name).write_text("")
    assert error_line(tmp_path / "c.toml") == f"no such file; there are {tmp_path / 'a.toml'}, {tmp_path / 'b.toml'}"


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(bytes(range(256)))
    assert "cannot be read" in error_line(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in error_line(tmp_path)


# --------------------------------------------------------------------------------------- overrides

TWO_FAMILIES = f"""{COMMON_HEADER}
family = ["cnn", "mlp"]
batch_size = [64, 128]
optimizer.learning_rate = {{ low = 1e-3, high = 1e-1, log = true }}
[space.cnn]
depth = [1, 2]
kernel_1 = [3, 5]
[space.mlp]
depth = [1, 2, 3]
width = [64, 128]
"""


def load_with_overrides(folder: Path, **overrides: object) -> StudyConfig:
    return load_study(folder, TWO_FAMILIES, {name.replace("__", "."): value for name, value in overrides.items()})


def test_a_key_of_the_file_is_overridden(tmp_path: Path) -> None:
    config = load_with_overrides(tmp_path, budget__trials=9, name="other", finalists__recipes=0, data__train_images=500)
    assert (config.budget.trials, config.name, config.finalists.recipes) == (9, "other", 0)
    assert config.data.train_images == 500
    # What nobody named stays.
    assert config.space == load_study(tmp_path, TWO_FAMILIES).space


def test_a_sampler_and_a_pruner_are_overridden_by_name(tmp_path: Path) -> None:
    config = load_with_overrides(tmp_path, sampler="random", pruner="none")
    assert (config.sampler.name, config.pruner.name) == ("random", "none")
    table = f'{TWO_FAMILIES}[sampler]\nname = "tpe"\nstartup_trials = 3\n'
    assert load_study(tmp_path, table, {"sampler": "random"}).sampler.name == "random"


@pytest.mark.parametrize("given_as", ["", "sampler = 'tpe'\n"])
def test_a_setting_of_the_sampler_is_overridden_however_the_file_names_it(given_as: str, tmp_path: Path) -> None:
    config = load_study(tmp_path, given_as + TWO_FAMILIES, {"sampler.startup_trials": 3})
    assert config.sampler == Tpe(startup_trials=3)


@pytest.mark.parametrize("spelling", ["optimizer.learning_rate", '"optimizer.learning_rate"'])
def test_a_shared_hyperparameter_is_pinned_however_the_file_spells_it(spelling: str, tmp_path: Path) -> None:
    text = f"{COMMON_HEADER}{spelling} = [0.1, 0.2]\n"
    config = load_study(tmp_path, text, {"optimizer.learning_rate": 0.5, "label_smoothing": 0.1})
    assert config.space.common == {"optimizer.learning_rate": Fixed(0.5), "label_smoothing": Fixed(0.1)}


def test_an_override_replaces_a_domain_that_the_file_gets_wrong(tmp_path: Path) -> None:
    text = f"{COMMON_HEADER}optimizer.learning_rate = []\nbatch_size = [1]\n"
    config = load_study(tmp_path, text, {"optimizer.learning_rate": 0.5, "batch_size": 64})
    assert config.space.common == {"optimizer.learning_rate": Fixed(0.5), "batch_size": Fixed(64)}


def test_a_hyperparameter_of_the_model_is_pinned_in_every_family_that_has_it(tmp_path: Path) -> None:
    space = load_with_overrides(tmp_path, model__depth=2, model__kernel_1=5).space
    assert space.domains("cnn")["model.depth"] == Fixed(2)
    assert space.domains("mlp")["model.depth"] == Fixed(2)
    assert space.domains("cnn")["model.kernel_1"] == Fixed(5)
    assert "model.kernel_1" not in space.domains("mlp")


def test_an_override_may_choose_as_well_as_pin(tmp_path: Path) -> None:
    space = load_with_overrides(tmp_path, batch_size=[32, 64], model__width=[16]).space
    assert (space.common["batch_size"], space.domains("mlp")["model.width"]) == (Choice((32, 64)), Choice((16,)))


def test_a_family_that_is_pinned_drops_the_tables_of_the_others(tmp_path: Path) -> None:
    space = load_with_overrides(tmp_path, model__family="mlp").space
    assert (space.families, list(space.by_family)) == (("mlp",), ["mlp"])
    assert space.by_family["mlp"]["model.width"] == Choice((64, 128))


def test_families_that_are_chosen_keep_their_tables(tmp_path: Path) -> None:
    both = load_with_overrides(tmp_path, model__family=["mlp", "cnn"]).space
    assert both.by_family == load_study(tmp_path, TWO_FAMILIES).space.by_family


@pytest.mark.parametrize("order", [["model.family", "model.depth"], ["model.depth", "model.family"]])
def test_overrides_mean_the_same_in_any_order(order: list[str], tmp_path: Path) -> None:
    values: dict[str, object] = {"model.family": "mlp", "model.depth": 4}
    config = load_study(tmp_path, f"{HEADER}{CNN_SPACE}", {name: values[name] for name in order})
    assert config.space.domains("mlp") == {"model.depth": Fixed(4)}


@pytest.mark.parametrize(
    ("name", "advice"),
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
def test_an_override_of_an_unknown_name_gets_the_nearest_one(name: str, advice: str, tmp_path: Path) -> None:
    (line,) = error_lines(tmp_path, f"{TWO_FAMILIES}[sampler]\nname = 'tpe'\n", {name: 3})
    assert name in line
    assert advice in line


@pytest.mark.parametrize(
    "text",
    [f"space = 3\n{HEADER}", f"{HEADER}[space]\ncommon = 3\n", f"{HEADER}[space]\ncnn = 3\n"],
    ids=["space", "common", "cnn"],
)
def test_an_override_does_not_hide_that_a_table_is_none(text: str, tmp_path: Path) -> None:
    (line,) = error_lines(tmp_path, text, {"model.depth": 3})
    assert "3 is no table" in line


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("optimizer.learning_rate=0.01", "optimizer.learning_rate", 0.01),
        ("budget.trials=3", "budget.trials", 3),
        ("batch_size=[64, 128]", "batch_size", [64, 128]),
        ("model.dropout={low = 0.1, high = 0.5}", "model.dropout", {"low": 0.1, "high": 0.5}),
        ("optimizer.nesterov=false", "optimizer.nesterov", False),
        ("optimizer.name=sgd", "optimizer.name", "sgd"),
        ('optimizer.name="sgd"', "optimizer.name", "sgd"),
        ("name=my study", "name", "my study"),
        ("question=is a=b?", "question", "is a=b?"),
        (" batch_size = 64", "batch_size", 64),
        ("optimizer.name = sgd", "optimizer.name", "sgd"),
    ],
)
def test_an_assignment_is_read_as_toml_and_as_text_where_it_is_none(text: str, name: str, value: object) -> None:
    parsed = parse_assignment(text)
    assert parsed == (name, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize("text", ["budget.trials", "", "=3", " = 3"])
def test_what_is_no_assignment_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="is no assignment; write --set ") as caught:
        parse_assignment(text)
    assert len(caught.value.lines) == 1


# ---------------------------------------------------------------------------------------- identity

SUBSET_STUDY = f"{TWO_FAMILIES}[data]\ntrain_images = 1000\n"


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("seed", 1, "seed"),
        ("budget.epochs", 4, "budget.epochs"),
        ("data.train_images", 2_000, "data.train_images"),
        ("data.validation", 0.5, "data.validation"),
        ("data.seed", 1, "data.seed"),
        ("batch_size", [64, 256], "space.common.batch_size"),
        # Optuna takes another order of the choices for another domain.
        ("batch_size", [128, 64], "space.common.batch_size"),
        ("batch_size", 64, "space.common.batch_size"),
        ("optimizer.learning_rate", {"low": 1e-3, "high": 1e-1}, "space.common.optimizer.learning_rate"),
        ("label_smoothing", 0.1, "space.common.label_smoothing"),
        ("model.kernel_1", [3, 7], "space.cnn.kernel_1"),
        ("model.width", {"low": 64, "high": 128, "step": 8}, "space.mlp.width"),
        ("model.dropout", 0.1, "space.mlp.dropout"),
        ("space.common.family", ["mlp", "cnn"], "space.common.family"),
    ],
)
def test_the_identity_changes_with_what_must_not_change(name: str, value: object, key: str, tmp_path: Path) -> None:
    before = load_study(tmp_path, SUBSET_STUDY).comparability_key()
    after = load_study(tmp_path, SUBSET_STUDY, {name: value}).comparability_key()
    assert before.get(key) != after.get(key)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget.trials", 99),
        ("budget.minutes", 3),
        ("budget.failures", 1),
        ("question", "Why?"),
        ("sampler", "random"),
        ("sampler", {"name": "tpe", "startup_trials": 3}),
        ("pruner", "median"),
        ("finalists.recipes", 0),
        ("finalists.epochs", 99),
        ("experiment", "other"),
        ("name", "other"),
    ],
)
def test_the_identity_does_not_change_with_what_may(name: str, value: object, tmp_path: Path) -> None:
    assert (
        load_study(tmp_path, SUBSET_STUDY, {name: value}).comparability_key()
        == load_study(tmp_path, SUBSET_STUDY).comparability_key()
    )


@settings(max_examples=60)
@given(st.floats(1e-6, 1), st.sampled_from(["low", "high", "step"]))
def test_the_identity_sees_the_last_digit_of_a_range(low: float, end: str) -> None:
    table = {"low": low, "high": 2 * low, "step": low / 4}
    other = {**table, end: math.nextafter(table[end], math.inf)}
    texts = [
        make_study({"common": {"averaging.horizon": domain}}).comparability_key()["space.common.averaging.horizon"]
        for domain in (table, other)
    ]
    assert texts[0] != texts[1]


# ----------------------------------------------------------------------------- the studies we ship


def test_there_are_studies_to_begin_with() -> None:
    assert {"quick.toml", "baseline.toml"} <= {path.name for path in STUDY_FILES}


@pytest.mark.parametrize("path", STUDY_FILES, ids=lambda path: path.name)
def test_a_shipped_study_loads_and_begins_with_its_question(path: Path) -> None:
    config = StudyConfig.load(path)
    assert config.name == path.stem
    assert config.question.endswith("?")
    assert config.builds_on in ("", *(other.stem for other in STUDY_FILES))
    schema, _, rest = path.read_text(encoding="utf-8").partition("\n")
    assert schema == "#:schema ./schema.json"
    first_comment = rest.partition("\n#\n")[0]
    assert all(line.startswith("# ") for line in first_comment.splitlines())
    assert first_comment.endswith("?")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_bytes(b"\xef\xbb\xbf" + f"{HEADER}{CNN_SPACE}".encode())
    assert StudyConfig.load(tmp_path / "study.toml").budget.trials == 4


def test_naming_the_sampler_that_a_file_has_keeps_its_settings(tmp_path: Path) -> None:
    table = f'{HEADER}{CNN_SPACE}[sampler]\nname = "tpe"\nstartup_trials = 3\n'
    assert load_study(tmp_path, table, {"sampler": "tpe"}).sampler == Tpe(startup_trials=3)
