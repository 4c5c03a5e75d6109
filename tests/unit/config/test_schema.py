"""The JSON Schema accepts what study files may hold. That it rejects mistakes is tested in test_messages."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_search.config.schema import VARIANTS, study_schema, variant_name
from fmnist_search.config.space import NOT_SEARCHABLE, shared_hyperparameters
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import hyperparameters
from tests.support.studies import make_study, space_tables
from tests.unit.config.study_files import CNN_SPACE, HEADER, ROOT

STUDY_FILES = sorted([*ROOT.glob("studies/*.toml"), *ROOT.glob("benchmarks/curves/*.toml")])
SCHEMA = study_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
MINIMAL_STUDY: dict[str, Any] = tomllib.loads(f"{HEADER}{CNN_SPACE}")


def schema_errors(tables: dict[str, Any]) -> list[str]:
    """Return the errors of a study file, each with its key."""
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(tables)]


def test_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_study_files_of_the_repository_validate_as_written_and_resolved() -> None:
    assert {"quick.toml", "baseline.toml", "final.toml", "cpu.toml"} <= {path.name for path in STUDY_FILES}
    for path in STUDY_FILES:
        assert schema_errors(tomllib.loads(path.read_text())) == [], path
        assert schema_errors(tomllib.loads(StudyConfig.load(path).to_toml())) == [], path


def test_minimal_study_validates() -> None:
    assert schema_errors(MINIMAL_STUDY) == []
    StudyConfig.from_dict(MINIMAL_STUDY)


def test_names_of_the_users_own_validate_with_plugins_only() -> None:
    for changes in ({"space": {"separable": {"depth": [1, 2]}}}, {"objective": {"metrics": ["val_accuracy", "price"]}}):
        assert schema_errors({**MINIMAL_STUDY, **changes})
        assert schema_errors({**MINIMAL_STUDY, **changes, "plugins": {"modules": ["mine.py"]}}) == []
    assert schema_errors({**MINIMAL_STUDY, "data": {"dataset": "my-images"}}) == []


@pytest.mark.parametrize("entry", ["champion", "study:other", "best.toml", {"model": {"depth": 2}, "batch_size": 64}])
def test_start_recipes_of_every_form_validate(entry: Any) -> None:
    start = {"recipes": [entry], "outside": "try"}
    assert schema_errors(tomllib.loads(make_study(start=start).to_toml())) == []


def test_schema_has_the_keys_of_a_study_and_no_other() -> None:
    assert SCHEMA["properties"].keys() == StudyConfig.model_fields.keys()
    assert SCHEMA["properties"]["space"]["properties"].keys() == {"common", *FAMILIES}


def test_schema_describes_every_hyperparameter() -> None:
    spaces = SCHEMA["properties"]["space"]["properties"]
    for family, architecture in FAMILIES.items():
        for name, spec in hyperparameters(architecture).items():
            assert spaces[family]["properties"][name]["description"] == spec.description
    for name, spec in shared_hyperparameters().items():
        at = spaces["common"]
        for part in name.split("."):
            at = at["properties"].get(part, {"properties": {}})
        assert at.get("description") == (None if name in NOT_SEARCHABLE else spec.description)


def test_samplers_and_pruners_validate_as_name_and_as_table() -> None:
    for key, variants in VARIANTS.items():
        for section in variants:
            name, table = variant_name(section), section().model_dump(exclude_none=True)
            for form in (name, {"name": name}, table):
                assert schema_errors({**MINIMAL_STUDY, key: form}) == [], form
            assert schema_errors({**MINIMAL_STUDY, key: {**table, "nonsense": 1}}), name


@st.composite
def studies(draw: st.DrawFn) -> StudyConfig:
    """Valid studies with any space, and with any sampler and pruner that fits."""
    tables: dict[str, Any] = {"space": draw(space_tables(draw(st.sampled_from([40.0, 200.0]))))}
    tables["budget"] = draw(
        st.fixed_dictionaries(
            {"epochs": st.integers(5, 50)},
            optional={
                "minutes": st.floats(0.1, 1e4),
                "total_epochs": st.integers(1, 10_000),
                "trial_minutes": st.floats(0.1, 100) | st.integers(1, 100),
                "max_mult_adds": st.integers(1, 10**15),
                "max_seconds_per_epoch": st.floats(0.1, 100) | st.integers(1, 100),
                "target": st.floats(0.01, 1.0),
                "patience": st.integers(1, 100),
                "failures": st.integers(1, 100),
            },
        )
    ) | {"trials": draw(st.integers(10, 1000))}
    tables["sampler"] = draw(st.sampled_from(["tpe", "random", "gp", "qmc"]))
    names = [variant_name(section) for section in VARIANTS["pruner"]]
    tables["pruner"] = draw(st.sampled_from([name for name in names if name != "extrapolation"]))  # not for any space
    optional: dict[str, st.SearchStrategy[Any]] = {
        "question": st.text(max_size=20),
        "builds_on": st.text(max_size=20),
        "seed": st.integers(0, 2**63 - 1),
        "data": st.fixed_dictionaries({}, optional={"validation": st.integers(1, 10_000) | st.floats(0.01, 0.2)}),
        "start": st.fixed_dictionaries({"outside": st.sampled_from(["refuse", "try"])}),
        "finalists": st.fixed_dictionaries({}, optional={"recipes": st.integers(0, 9), "seeds": st.integers(1, 9)}),
    }
    return make_study(**tables, **draw(st.fixed_dictionaries({}, optional=optional)))


@settings(max_examples=30)
@given(studies())
def test_resolved_file_of_any_study_validates(config: StudyConfig) -> None:
    assert schema_errors(tomllib.loads(config.to_toml())) == []


@settings(max_examples=40)
@given(space_tables())
def test_any_space_validates(table: dict[str, Any]) -> None:
    # Dotted names become the nested tables that TOML reads from them.
    nested = make_study(table, data={"validation": 100}).space.to_toml_table()
    assert schema_errors({**MINIMAL_STUDY, "space": nested}) == []


def test_schema_in_the_repository_is_up_to_date() -> None:
    fresh = json.dumps(SCHEMA, indent=2) + "\n"
    stored = (Path(ROOT) / "studies" / "schema.json").read_text()
    assert stored == fresh, "studies/schema.json is out of date: run `make docs`"
