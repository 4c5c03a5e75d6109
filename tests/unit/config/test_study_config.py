"""Study files: what is written is read back, and reading needs neither torch nor MLflow."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.config.comparability import search_settings
from fmnist_search.config.domain import Choice, Fixed, Range
from fmnist_search.config.samplers import Tpe
from fmnist_search.config.sections import MAX_MINUTES
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from tests.support.studies import make_study, space_tables
from tests.unit.config.study_files import CNN_SPACE, HEADER, ROOT, load_study

STUDY_FILES = sorted((ROOT / "studies").glob("*.toml"))


def test_values_of_a_study_file_are_loaded(tmp_path: Path) -> None:
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


@settings(max_examples=40)
@given(space_tables(), st.text(), st.floats(0.001, MAX_MINUTES))
def test_study_written_as_toml_is_read_back_equal(space: dict[str, Any], question: str, minutes: float) -> None:
    config = make_study(space, question=question, budget={"minutes": minutes})
    again = StudyConfig.from_dict(tomllib.loads(config.to_toml()))
    assert again == config
    assert again.comparability_key() == config.comparability_key()


def test_study_written_as_toml_has_every_setting() -> None:
    written = tomllib.loads(make_study().to_toml())
    # Studies had no objective once, and those that have the one of then are stored as then.
    assert written.keys() == StudyConfig.model_fields.keys() - {"objective", "plugins"}
    assert (written["sampler"], written["pruner"]) == ({"name": "freeze-thaw", "candidates": 24}, {"name": "none"})
    assert written["data"]["validation"] == 10_848
    # TOML has no null, so a limit that is not given is left out.
    assert "minutes" not in written["budget"]


@pytest.mark.parametrize(
    ("overrides", "search"),
    [
        ({}, ("freeze-thaw", "none")),
        ({"pruner": "median"}, ("tpe", "median")),
        ({"sampler": "random"}, ("random", "halving")),
        ({"budget.epochs": 1}, ("tpe", "halving")),  # there is nothing to pause
        ({"model.depth": 2}, ("tpe", "halving")),  # nothing varies
    ],
    ids=str,
)
def test_study_that_names_no_search_has_freeze_thaw_where_it_can_be_used(
    overrides: dict[str, object], search: tuple[str, str], tmp_path: Path
) -> None:
    config = load_study(tmp_path, f"{HEADER}{CNN_SPACE}", overrides)
    assert (config.sampler.name, config.pruner.name) == search
    assert StudyConfig.from_dict(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize("objective", ["", '[objective]\nmetrics = ["val_accuracy", "mult_adds"]\n'])
def test_study_that_names_no_search_goes_on_with_the_one_that_it_has(objective: str, tmp_path: Path) -> None:
    text = f"{HEADER}{CNN_SPACE}{objective}"
    stored = StudyConfig.from_dict(tomllib.loads(load_study(tmp_path, text, {"sampler": "random"}).to_toml()))
    continued = load_study(tmp_path, text).continuing(stored)
    assert (continued.sampler, continued.pruner) == (stored.sampler, stored.pruner)
    assert load_study(tmp_path, text, {"sampler": "qmc"}).continuing(stored).sampler.name == "qmc"


def test_study_with_two_metrics_has_no_pruner_and_is_stored_with_them(tmp_path: Path) -> None:
    metrics = '[objective]\nmetrics = ["val_accuracy", "mult_adds"]\n'
    config = load_study(tmp_path, f"{HEADER}{CNN_SPACE}{metrics}")
    assert (config.objective.cost, config.pruner.name) == ("mult_adds", "none")
    assert config.origins["pruner.name"] == "default"
    assert config.origins["objective.metrics"].endswith(".toml")
    assert StudyConfig.from_dict(tomllib.loads(config.to_toml())) == config
    assert search_settings(config)["objective.metrics"] == "val_accuracy, mult_adds"


def test_study_with_the_accuracy_alone_is_stored_as_without_an_objective(tmp_path: Path) -> None:
    given_, left_out = (
        load_study(tmp_path, f"{HEADER}{CNN_SPACE}{text}") for text in ('[objective]\nmetrics = ["val_accuracy"]\n', "")
    )
    assert given_.to_toml() == left_out.to_toml()
    assert "objective.metrics" not in search_settings(given_)


def test_settings_without_a_name_belong_to_the_default_sampler_and_pruner(tmp_path: Path) -> None:
    config = load_study(tmp_path, f"{HEADER}{CNN_SPACE}[sampler]\nstartup_trials = 3\n[pruner]\nreduction_factor = 4\n")
    assert config.sampler == Tpe(startup_trials=3)
    assert (config.pruner.name, config.pruner.model_dump()["reduction_factor"]) == ("halving", 4)


@pytest.mark.parametrize("path", STUDY_FILES, ids=lambda path: path.name)
def test_shipped_study_loads_and_starts_with_its_question(path: Path) -> None:
    config = StudyConfig.load(path)
    assert config.name == path.stem
    assert config.question.endswith("?")
    assert config.builds_on in ("", *(other.stem for other in STUDY_FILES))
    schema, _, rest = path.read_text(encoding="utf-8").partition("\n")
    assert schema == "#:schema ./schema.json"
    first_comment = rest.partition("\n#\n")[0]
    assert all(line.startswith("# ") for line in first_comment.splitlines())
    assert first_comment.endswith("?")


def test_quick_and_baseline_are_shipped() -> None:
    assert {"quick.toml", "baseline.toml"} <= {path.name for path in STUDY_FILES}


LOAD_WITHOUT_LIBRARIES = """
import sys
for name in ("torch", "torchvision", "mlflow", "optuna", "torchinfo", "matplotlib", "sqlalchemy"):
    sys.modules[name] = None  # importing it raises ImportError
from fmnist_search.config import Space, StudyConfig
from fmnist_search.config.conditional_space import space_size
config = StudyConfig.load(sys.argv[1])
assert isinstance(config.space, Space)
print(config.name, space_size(config.space).recipe_count, config.independently_sampled)
"""


def test_study_is_loaded_and_checked_without_torch_mlflow_and_optuna() -> None:
    command = [sys.executable, "-c", LOAD_WITHOUT_LIBRARIES, str(ROOT / "studies" / "quick.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("quick ")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"name": "train"}, "name: 'train' is reserved"),
        ({"name": "Train"}, "name: 'Train' is reserved"),
        ({"name": "a until 2026-01-02 03.04.05.678901"}, "name: 'a until 2026-01-02 03.04.05.678901' ends like"),
        ({"name": "a" * 201}, "has 201 bytes"),
        ({"name": "火" * 67}, "has 201 bytes"),
        ({"name": ".."}, "name: '..' is not a valid name"),
        ({"experiment": "../../../x"}, "experiment: '../../../x' is not a valid name"),
        ({"experiment": "/var/x"}, "experiment: '/var/x' is not a valid name"),
        ({"experiment": ".."}, "experiment: '..' is not a valid name"),
        ({"experiment": ""}, "experiment: '' is not a valid name"),
        ({"experiment": "a\nb"}, "experiment: 'a\\nb' is not a valid name"),
        ({"experiment": "火" * 67}, "has 201 bytes"),
        ({"finalists.model_name": "火" * 67}, "has 201 bytes"),
    ],
)
def test_names_that_become_paths_are_checked_when_the_file_is_read(
    tmp_path: Path, setting: dict[str, object], expected: str
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f"{HEADER}{CNN_SPACE}")
    with pytest.raises(UserError, match=re.escape(expected)):
        StudyConfig.load(path, setting)


@pytest.mark.parametrize("name", ["a" * 200, "火" * 66, "größer", "a until 2026", "training", "trains+1@home - v1.0"])
def test_names_up_to_two_hundred_bytes_are_valid(tmp_path: Path, name: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f"{HEADER}{CNN_SPACE}")
    config = StudyConfig.load(path, {"name": name, "experiment": name, "finalists.model_name": name})
    assert config.name == config.experiment == config.finalists.model_name == name


def test_stored_studies_with_names_that_are_reserved_now_are_read() -> None:
    config = make_study(name="train", experiment="team/a")
    assert (config.name, config.experiment) == ("train", "team/a")
