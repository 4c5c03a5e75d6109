"""What is generated from the code is true: the schema takes what studies are and refuses what they are not."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.config.schema import VARIANTS, study_keys_page, study_schema
from fmnist_search.config.space import NOT_SEARCHABLE, shared_hyperparameters
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import hyperparameters
from tests.support.studies import make_study, space_tables

ROOT = Path(__file__).parents[3]
STUDY_FILES = sorted([*ROOT.glob("studies/*.toml"), *ROOT.glob("benchmarks/curves/*.toml")])
SCHEMA = study_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def schema_errors(tables: dict[str, Any]) -> list[str]:
    """What a validator has to say of a study file, with the place of each."""
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(tables)]


# -------------------------------------------------------------------------------------- the schema


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_there_are_study_files_to_look_at() -> None:
    assert {"quick.toml", "baseline.toml", "final.toml", "cpu.toml"} <= {path.name for path in STUDY_FILES}


@pytest.mark.parametrize("path", STUDY_FILES, ids=lambda path: path.name)
def test_every_study_file_of_the_repository_validates(path: Path) -> None:
    assert schema_errors(tomllib.loads(path.read_text())) == []


@pytest.mark.parametrize("path", STUDY_FILES, ids=lambda path: path.name)
def test_every_resolved_study_file_validates(path: Path) -> None:
    assert schema_errors(tomllib.loads(StudyConfig.load(path).to_toml())) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("studies/*.toml")), ids=lambda path: path.name)
def test_editors_find_the_schema_from_every_study_file(path: Path) -> None:
    assert path.read_text().startswith("#:schema ./schema.json\n")


MINIMAL_STUDY = """
name = "minimal"
[budget]
trials = 1
[space.cnn]
"""


def test_a_study_of_three_lines_validates() -> None:
    assert schema_errors(tomllib.loads(MINIMAL_STUDY)) == []
    StudyConfig.from_dict(tomllib.loads(MINIMAL_STUDY))


@pytest.mark.parametrize("given", ["champion", "study:other", "best.toml", {"model": {"depth": 2}, "batch_size": 64}])
def test_a_study_may_start_with_files_studies_the_champion_and_tables(given: Any) -> None:
    start = {"recipes": [given], "outside": "try"}
    assert schema_errors(tomllib.loads(make_study(start=start).to_toml())) == []


FULL_STUDY = """
name = "whole"
sampler = "random"
[data]
train_images = 1000
validation = 0.1
[budget]
trials = 10
minutes = 1.5
epochs = 6
[pruner]
name = "percentile"
percentile = 30.0
[space.common]
family = ["cnn", "mlp"]
batch_size = [64, 128]
optimizer.name = "sgd"
optimizer.nesterov = [true, false]
optimizer.learning_rate = { low = 1e-3, high = 1e-1, log = true }
[space.cnn]
depth = { low = 1, high = 3 }
width_1 = { low = 16, high = 64, step = 16 }
norm = ["batch", "none"]
[space.mlp]
width = 64
[finalists]
recipes = 0
[execution]
device = "cpu"
"""


def test_the_study_that_is_to_be_spoilt_is_a_good_one() -> None:
    StudyConfig.from_dict(tomllib.loads(FULL_STUDY))
    assert schema_errors(tomllib.loads(FULL_STUDY)) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('name = "whole"', ""),
        ('name = "whole"', "name = 3"),
        ('name = "whole"', 'name = "a/b"'),
        ('sampler = "random"', 'sampler = "rnadom"'),
        ('sampler = "random"', 'sampler = { name = "rnadom" }'),
        ('sampler = "random"', 'sampler = { name = "random", startup_trials = 5 }'),
        ('sampler = "random"', 'sampler = { name = "tpe", startup_trials = 0 }'),
        ('sampler = "random"', 'sampler = { candidates = "many" }'),
        ('name = "percentile"', 'name = "percentil"'),
        ("percentile = 30.0", "percentile = 130.0"),
        ("percentile = 30.0", "reduction_factor = 3"),
        ("trials = 10", "trails = 10"),
        ("trials = 10", 'trials = "10"'),
        ("trials = 10", "trials = 0"),
        ("minutes = 1.5", "minutes = -1"),
        ("[budget]", "[budgets]"),
        ("train_images = 1000", "train_images = 1.5"),
        ("train_images = 1000", "train_images = 50"),
        ("train_images = 1000", "images = 1000"),
        ('family = ["cnn", "mlp"]', 'family = ["cnn", "rnn"]'),
        ("batch_size = [64, 128]", "batch_size = []"),
        ("batch_size = [64, 128]", 'batch_size = ["64"]'),
        ("batch_size = [64, 128]", "batch_sizes = [64, 128]"),
        ("batch_size = [64, 128]", "epochs = [3, 6]"),
        ('optimizer.name = "sgd"', 'optimizer.name = "sdg"'),
        ('optimizer.name = "sgd"', 'optimizer.nmae = "sgd"'),
        ("optimizer.nesterov = [true, false]", 'optimizer.nesterov = "yes"'),
        ("low = 1e-3, high = 1e-1, log = true", "low = 1e-3, log = true"),
        ("low = 1e-3, high = 1e-1, log = true", "low = 0.0, high = 1e-1"),
        ("low = 1e-3, high = 1e-1, log = true", 'low = 1e-3, high = 1e-1, log = "yes"'),
        ("low = 1e-3, high = 1e-1, log = true", "from = 1e-3, to = 1e-1"),
        ("low = 16, high = 64, step = 16", "low = 16, high = 64, step = 0"),
        ("low = 16, high = 64, step = 16", "low = 16.5, high = 64"),
        ("low = 16, high = 64, step = 16", "low = 16, high = 5000"),
        ('norm = ["batch", "none"]', 'norm = { low = "batch", high = "none" }'),
        ("[space.mlp]", "[space.mpl]"),
        ("width = 64", "width_1 = 64"),
        ("recipes = 0", 'refit = "all"'),
        ('device = "cpu"', "device = 0"),
    ],
)
def test_a_typical_mistake_does_not_validate(before: str, after: str) -> None:
    assert before in FULL_STUDY
    spoilt = tomllib.loads(FULL_STUDY.replace(before, after, 1))
    assert schema_errors(spoilt)
    with pytest.raises(UserError):
        StudyConfig.from_dict(spoilt)


def test_the_schema_knows_the_keys_that_a_study_has_and_no_other() -> None:
    assert SCHEMA["properties"].keys() == StudyConfig.model_fields.keys()
    families = {"common", *FAMILIES}
    assert SCHEMA["properties"]["space"]["properties"].keys() == families


def test_an_editor_is_told_what_every_hyperparameter_means() -> None:
    spaces = SCHEMA["properties"]["space"]["properties"]
    for family, architecture in FAMILIES.items():
        for name, spec in hyperparameters(architecture).items():
            assert spaces[family]["properties"][name]["description"] == spec.description
    for name, spec in shared_hyperparameters().items():
        at = spaces["common"]
        for part in name.split("."):
            at = at["properties"].get(part, {"properties": {}})
        assert at.get("description") == (None if name in NOT_SEARCHABLE else spec.description)


SECTIONS = [section() for variants in VARIANTS.values() for section in variants]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_sampler_and_pruner_validates_by_name_as_table_and_with_its_settings(section: Any) -> None:
    key = next(key for key, variants in VARIANTS.items() if type(section) in variants)
    for spelt in (section.name, {"name": section.name}, section.model_dump(exclude_none=True)):
        assert schema_errors({**tomllib.loads(MINIMAL_STUDY), key: spelt}) == []
    assert schema_errors({**tomllib.loads(MINIMAL_STUDY), key: {"name": section.name, "nonsense": 1}})


@st.composite
def studies(draw: st.DrawFn) -> StudyConfig:
    """Valid studies over any space, with any sampler and pruner that fits."""
    tables: dict[str, Any] = {"space": draw(space_tables(draw(st.sampled_from([40.0, 200.0]))))}
    tables["budget"] = draw(
        st.fixed_dictionaries(
            {"epochs": st.integers(5, 50)},
            optional={
                "minutes": st.floats(0.1, 1e4),
                "total_epochs": st.integers(1, 10_000),
                "trial_minutes": st.floats(0.1, 100) | st.integers(1, 100),
                "target": st.floats(0.01, 1.0),
                "patience": st.integers(1, 100),
                "failures": st.integers(1, 100),
            },
        )
    ) | {"trials": draw(st.integers(10, 1000))}
    tables["sampler"] = draw(st.sampled_from(["tpe", "random", "gp", "qmc"]))
    tables["pruner"] = draw(
        st.sampled_from([section.name for section in SECTIONS if type(section) in VARIANTS["pruner"]])
    )
    optional: dict[str, st.SearchStrategy[Any]] = {
        "question": st.text(max_size=20),
        "builds_on": st.text(max_size=20),
        "seed": st.integers(0, 2**63 - 1),
        "data": st.fixed_dictionaries({}, optional={"validation": st.integers(1, 10_000) | st.floats(0.01, 0.2)}),
        "start": st.fixed_dictionaries({"outside": st.sampled_from(["refuse", "try"])}),
        "finalists": st.fixed_dictionaries({}, optional={"recipes": st.integers(0, 9), "seeds": st.integers(1, 9)}),
    }
    return make_study(**tables, **draw(st.fixed_dictionaries({}, optional=optional)))


@settings(max_examples=60)
@given(studies())
def test_whatever_study_there_is_its_file_validates(config: StudyConfig) -> None:
    assert schema_errors(tomllib.loads(config.to_toml())) == []


@settings(max_examples=60)
@given(space_tables())
def test_every_space_validates_as_its_file_may_write_it(table: dict[str, Any]) -> None:
    # Nothing is too large here, since no study is made of it: dotted names become the tables that TOML makes of them.
    nested = make_study(table, data={"validation": 100}).space.to_toml_table()
    assert schema_errors({**tomllib.loads(MINIMAL_STUDY), "space": nested}) == []


# ------------------------------------------------------------------------------ what is checked in


def test_the_schema_that_is_checked_in_is_the_one_that_the_code_gives() -> None:
    fresh = json.dumps(SCHEMA, indent=2) + "\n"
    assert (ROOT / "studies" / "schema.json").read_text() == fresh, "studies/schema.json is stale: run `make docs`"


def test_the_page_of_keys_that_is_checked_in_is_the_one_that_the_code_gives() -> None:
    page = (ROOT / "docs" / "study-keys.md").read_text()
    assert page == study_keys_page(), "docs/study-keys.md is stale: run `make docs`"


def test_the_page_names_every_key() -> None:
    page = study_keys_page()
    for family, architecture in FAMILIES.items():
        assert f"## [space.{family}]" in page
        assert all(f"| `{name}` |" in page for name in hyperparameters(architecture))
    for key, variants in VARIANTS.items():
        for section in variants:
            assert f'### {key} = "{section().name}"' in page
            assert all(f"| `{name}` |" in page for name in section.model_fields if name != "name")
    for name, field in StudyConfig.model_fields.items():
        assert f"| `{name}` |" in page or f"## [{name}" in page, (name, field)
