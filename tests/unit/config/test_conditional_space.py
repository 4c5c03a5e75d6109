"""Conditional hyperparameters, the number of recipes of a space, and its points."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fmnist_search.config.conditional_space import (
    FAMILY_NAME,
    ConditionalHyperparameter,
    SpaceSize,
    conditional_hyperparameters,
    enumerate_points,
    space_size,
    unconditional_domains,
    unconditional_ranges,
)
from fmnist_search.config.domain import Choice, Fixed, Range, value_count
from fmnist_search.config.space import Space, parse_space
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.search.suggest import grid_points
from tests.support.studies import space_tables

# --------------------------------------------------------------------------------------- what varies


def make_space(table: dict[str, Any]) -> Space:
    return parse_space(table)


def variable_names(variables_found: list[ConditionalHyperparameter]) -> list[str]:
    return [variable.name for variable in variables_found]


def variable_conditions(table: dict[str, Any], family: str = "cnn") -> dict[str, dict[str, tuple[Value, ...]]]:
    """Return the conditions of each hyperparameter by name."""
    return {
        variable.name: dict(variable.conditions) for variable in conditional_hyperparameters(make_space(table), family)
    }


def test_widths_and_kernels_are_active_up_to_the_depth() -> None:
    found = variable_conditions(
        {"cnn": {"depth": [1, 2, 3], "width_1": [8, 16], "width_2": [8, 16], "kernel_3": [3, 5]}}
    )
    assert found == {
        "model.depth": {},
        "model.width_1": {},
        "model.width_2": {"model.depth": (2, 3)},
        "model.kernel_3": {"model.depth": (3,)},
    }


def test_range_of_depths_is_a_condition_like_a_list() -> None:
    found = variable_conditions({"cnn": {"depth": {"low": 1, "high": 4}, "width_3": {"low": 8, "high": 16}}})
    assert found["model.width_3"] == {"model.depth": (3, 4)}


def test_order_of_a_list_of_depths_does_not_matter() -> None:
    for depths in itertools.permutations([1, 2, 3]):
        found = variable_conditions({"cnn": {"depth": list(depths), "width_2": [8, 16]}})
        (wanted,) = found["model.width_2"].values()
        assert sorted(map(int, wanted)) == [2, 3]


@pytest.mark.parametrize(
    ("depth", "active"),
    [(1, ["width_1"]), (2, ["width_1", "width_2", "pool"]), (3, ["width_1", "width_2", "width_3", "pool"])],
)
def test_fixed_depth_gives_no_conditions_and_leaves_out_deeper_blocks(depth: int, active: list[str]) -> None:
    own = {"depth": depth, "pool": ["max", "average"], **{f"width_{block}": [8, 16] for block in (1, 2, 3)}}
    assert variable_conditions({"cnn": own}) == {f"model.{name}": {} for name in active}


def test_default_depth_decides_if_the_depth_is_not_searched() -> None:
    assert variable_names(
        conditional_hyperparameters(make_space({"cnn": {f"width_{n}": [8, 16] for n in range(1, 6)}}), "cnn")
    ) == [
        "model.width_1",
        "model.width_2",
        "model.width_3",
    ]


def test_nesterov_is_active_with_sgd() -> None:
    nesterov = {"optimizer.nesterov": [True, False]}
    several = {"common": {**nesterov, "optimizer.name": ["sgd", "adam", "adamw"]}}
    assert variable_conditions(several) == {"optimizer.name": {}, "optimizer.nesterov": {"optimizer.name": ("sgd",)}}
    assert variable_conditions({"common": {**nesterov, "optimizer.name": "sgd"}}) == {"optimizer.nesterov": {}}
    for never in ({"optimizer.name": ["adam", "adamw"]}, {"optimizer.name": "adam"}, {}):
        assert "optimizer.nesterov" not in variable_conditions({"common": {**nesterov, **never}})


def test_warmup_is_active_with_one_cycle() -> None:
    common = {"schedule.warmup": {"low": 0.1, "high": 0.5}, "schedule.name": ["constant", "one-cycle"]}
    assert variable_conditions({"common": common})["schedule.warmup"] == {"schedule.name": ("one-cycle",)}


def test_hidden_layers_are_active_unless_an_mlp_is_linear() -> None:
    found = variable_conditions(
        {"mlp": {"depth": [0, 1, 2], "width": [64, 128], "dropout": {"low": 0.0, "high": 0.5}}}, "mlp"
    )
    hidden = {"model.depth": (1, 2)}
    assert found == {"model.depth": {}, "model.width": hidden, "model.dropout": hidden}
    assert variable_conditions({"mlp": {"depth": 0, "width": [64, 128]}}, "mlp") == {}


def test_hyperparameter_is_active_in_recipes_that_meet_its_conditions() -> None:
    _, second = conditional_hyperparameters(make_space({"cnn": {"depth": [1, 2], "width_2": [8, 16]}}), "cnn")
    assert second.is_active({"model.depth": 2})
    assert not second.is_active({"model.depth": 1})
    assert not second.is_active({})


# ------------------------------------------------------------------------------ how many recipes


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"cnn": {}}, SpaceSize(1, ())),
        ({"cnn": {"depth": 2, "width_1": 8}}, SpaceSize(1, ())),
        ({"common": {"batch_size": [64, 128]}, "cnn": {"width_1": [8, 16, 32]}}, SpaceSize(6, ())),
        ({"cnn": {"depth": [1, 2], "width_2": [8, 16, 32]}}, SpaceSize(1 + 3, ())),
        ({"cnn": {"depth": {"low": 1, "high": 5}, "width_5": {"low": 8, "high": 64, "step": 8}}}, SpaceSize(4 + 8, ())),
        ({"mlp": {"depth": [0, 1, 2], "width": [64, 128]}}, SpaceSize(1 + 2 * 2, ())),
        (
            {"common": {"family": ["cnn", "mlp"], "batch_size": [64, 128]}, "mlp": {"width": [64, 128, 256]}},
            SpaceSize(2 + 2 * 3, ()),
        ),
        (
            {"common": {"batch_size": [64, 128], "optimizer.learning_rate": {"low": 1e-3, "high": 1e-1}}},
            SpaceSize(2, ("optimizer.learning_rate",)),
        ),
        (
            # Nesterov momentum is active with sgd only.
            {"common": {"optimizer.name": ["sgd", "adam"], "optimizer.nesterov": [True, False]}},
            SpaceSize(2 + 1, ()),
        ),
    ],
)
def test_size_is_the_number_of_recipes(table: dict[str, Any], expected: SpaceSize) -> None:
    assert space_size(make_space(table)) == expected


MAX_RECIPES = 500


@st.composite
def small_finite_spaces(draw: st.DrawFn) -> Space:
    """Return spaces with few recipes."""
    space = make_space(draw(space_tables(largest=40)))
    assume(all(value_count(d) for family in space.families for d in space.domains(family).values()))
    found = space_size(space)
    assume(not found.unbounded and found.recipe_count <= MAX_RECIPES)
    return space


def has_duplicate_default(space: Space) -> bool:
    """Return whether a list has both 0, which means the default of a block, and that default."""
    return any(
        name.partition("_")[0] in ("model.width", "model.kernel")
        and not isinstance(domain, Fixed)
        and domain.contains(0)
        for family in space.families
        for name, domain in space.domains(family).items()
    )


@settings(max_examples=25)
@given(small_finite_spaces())
def test_size_equals_the_number_of_enumerated_points(space: Space) -> None:
    assume(not has_duplicate_default(space))
    keys = {
        recipe_of(space, family, point).seed_independent_key()
        for family in space.families
        for point in enumerate_points(space, family)
    }
    everything = list(grid_points(space))
    assert len(keys) == len(everything) == space_size(space).recipe_count
    assert len({tuple(sorted(point.items())) for point in everything}) == len(everything)


def recipe_of(space: Space, family: str, point: dict[str, Value]) -> Recipe:
    """Return the recipe of a point, which must lie in the space."""
    domains = space.domains(family)
    assert all(domains[name].contains(value) for name, value in point.items())
    pins = {name: domain.value for name, domain in domains.items() if isinstance(domain, Fixed)}
    return Recipe().replace({**pins, **point, FAMILY_NAME: family})


@settings(max_examples=25)
@given(small_finite_spaces())
def test_point_has_the_active_hyperparameters_only(space: Space) -> None:
    for family in space.families:
        found = conditional_hyperparameters(space, family)
        seen: set[str] = set()
        for point in enumerate_points(space, family):
            assert {v.name for v in found if v.is_active(point)} == point.keys()
            seen |= point.keys()
        assert seen == {variable.name for variable in found}


# ------------------------------------------------------------------------- what every recipe has


def test_unconditional_domains_are_those_without_conditions() -> None:
    rate = {"low": 1e-3, "high": 1e-1, "log": True}
    space = make_space(
        {
            "common": {"batch_size": [64, 128], "optimizer.learning_rate": rate, "label_smoothing": 0.1},
            "cnn": {"depth": [1, 2], "width_1": {"low": 8, "high": 16}, "width_2": {"low": 8, "high": 16}},
        }
    )
    ranges = {"model.width_1": Range(8, 16), "optimizer.learning_rate": Range(1e-3, 1e-1, log=True)}
    assert unconditional_domains(space) == {"model.depth": Choice((1, 2)), "batch_size": Choice((64, 128)), **ranges}
    assert unconditional_ranges(space) == ranges


def test_unconditional_domains_of_several_families_belong_to_none_of_them() -> None:
    space = make_space(
        {
            "common": {
                "family": ["cnn", "mlp"],
                "batch_size": [64, 128],
                "schedule": {"name": ["constant", "one-cycle"], "warmup": {"low": 0.1, "high": 0.5}},
            },
            "cnn": {"dropout": {"low": 0.0, "high": 0.5}},
            "mlp": {"dropout": {"low": 0.0, "high": 0.5}},
        }
    )
    assert unconditional_domains(space) == {
        "batch_size": Choice((64, 128)),
        "schedule.name": Choice(("constant", "one-cycle")),
    }
    assert unconditional_ranges(space) == {}


@settings(max_examples=25)
@given(small_finite_spaces())
def test_every_point_has_the_unconditional_hyperparameters(space: Space) -> None:
    always = unconditional_domains(space).keys()
    for family in space.families:
        assert all(always <= point.keys() for point in enumerate_points(space, family))
