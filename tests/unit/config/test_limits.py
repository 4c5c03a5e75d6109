"""Numbers at their limits: each is checked when the study file is read, against what its consumers take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import annotated_types
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fmnist_search.config.schema import VARIANTS
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import MAX_SEED
from fmnist_search.recipe.recipe import recipe_hyperparameters
from tests.unit.config.study_files import CNN_SPACE, COMMON_HEADER, HEADER, error_lines, load_study


def numeric_fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the fields of a section and of the sections in it that are numbers."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        if {int, float} & set(kinds):
            yield prefix + name, field
        for kind in [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]:
            yield from numeric_fields(kind, f"{prefix}{name}.")


FIELDS = {
    **dict(numeric_fields(StudyConfig)),
    **{
        f"{key}.{section.__name__}.{name}": field
        for key, sections in VARIANTS.items()
        for section in sections
        for name, field in numeric_fields(section)
    },
}


CHECKED_BY_FUNCTIONS = {"execution.workers", "execution.ray.resources.memory", "budget.target"}
"""Numbers whose error messages name a remedy of their own."""


@pytest.mark.parametrize("key", sorted(FIELDS.keys() - CHECKED_BY_FUNCTIONS))
def test_every_number_of_a_study_file_has_limits(key: str) -> None:
    kinds = {type(limit) for limit in FIELDS[key].metadata}
    assert kinds & {annotated_types.Ge, annotated_types.Gt}
    assert annotated_types.Le in kinds


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_a_recipe_has_limits(family: str) -> None:
    for spec in recipe_hyperparameters(FAMILIES[family]).values():
        if spec.kind in (int, float) and spec.choices is None:
            assert spec.high is not None, spec.name
            assert spec.low is not None or spec.above is not None, spec.name


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"seed": 2**63}, "seed: 9223372036854775808 should be less than or equal to 9223372036854775807"),
        ({"budget.trials": 10**23}, "budget.trials: 100000000000000000000000 should be less than or equal to 1000000"),
        ({"budget.minutes": 1e-320}, "budget.minutes: 1e-320 should be greater than or equal to 0.001"),
        ({"budget.minutes": float("inf")}, "budget.minutes: inf should be a finite number"),
        ({"budget.epochs": 10_001}, "budget.epochs: 10001 should be less than or equal to 10000"),
        ({"finalists.epochs": 10_001}, "finalists.epochs: 10001 should be less than or equal to 10000"),
        ({"execution.workers": 10**9}, "execution.workers: 1000000000 is not a number of trials"),
        ({"execution.threads": 9_999}, "execution.threads: 9999 should be less than or equal to 1024"),
        ({"sampler.candidates": 10**12}, "sampler.candidates: 1000000000000 should be less than or equal to 10000"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_number_beyond_its_limit_is_refused_when_the_file_is_read(
    tmp_path: Path, overrides: dict[str, object], expected: str
) -> None:
    (line,) = error_lines(tmp_path, HEADER + CNN_SPACE, overrides)
    assert line.startswith(expected)


@pytest.mark.parametrize("step", [1e-320, 1e-7, 1e308])
def test_a_step_that_makes_no_or_too_many_values_is_refused(tmp_path: Path, step: float) -> None:
    text = f"{COMMON_HEADER}optimizer.learning_rate = {{ low = 0.001, high = 0.1, step = {step} }}\n"
    (line,) = error_lines(tmp_path, text)
    assert line.startswith(f"space.common.optimizer.learning_rate: step = {step} makes no or too many steps")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"seed = {'9' * 5_000}\n{HEADER}{CNN_SPACE}", "an integer has thousands of digits"),
        (f"seed = 0x{'f' * 17}\n{HEADER}{CNN_SPACE}", "seed: the integer has more than 64 bits"),
        (f"{HEADER}[space.cnn]\ndepth = {'[' * 1_000}{']' * 1_000}\n", "is nested too deeply"),
        (f"{HEADER}[space.cnn]\ndepth = {'[' * 20}{']' * 20}\n", "space.cnn.depth: is nested too deeply"),
        (f"{HEADER}[space.cnn{'.a' * 1_000}]\n", "space.cnn.a.a.a"),
        (f'question = "\\u0000"\n{HEADER}{CNN_SPACE}', "question: a text with '\\x00' cannot be stored"),
    ],
    ids=["digits", "bits", "1000 lists", "20 lists", "1000 tables", "NUL"],
)
def test_a_value_that_cannot_be_stored_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    (line,) = error_lines(tmp_path, text)
    assert line.startswith(expected)
    assert len(line) < 500


@pytest.mark.parametrize("name", [variant.model_fields["name"].default for variant in VARIANTS["sampler"]])
def test_the_largest_seed_is_taken_by_every_sampler(tmp_path: Path, name: str) -> None:
    from fmnist_search.search.preview import preview_recipes

    steps = "{ low = 0.001, high = 0.1, step = 0.001 }"
    text = f"seed = {MAX_SEED}\nsampler = '{name}'\n{COMMON_HEADER}optimizer.learning_rate = {steps}\n{CNN_SPACE}"
    config = load_study(tmp_path, text)
    assert list(preview_recipes(config, "float32"))


def test_limits_hold_for_studies_from_python_too() -> None:
    tables: dict[str, Any] = {"name": "t", "budget": {"trials": 2**70}, "space": {"cnn": {"depth": 2}}}
    with pytest.raises(UserError, match=r"budget\.trials"):
        StudyConfig.from_dict(tables)
