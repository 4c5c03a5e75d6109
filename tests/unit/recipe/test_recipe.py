"""Recipes: they survive every form in which they are stored, and each mistake is one line."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fmnist_search.errors import UserError
from fmnist_search.models.classifier import check_size
from fmnist_search.models.cnn import Cnn
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.datasets import IMAGE_SIZE
from fmnist_search.recipe.families import FAMILIES, Architecture
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.groups import Augmentation, Data, Optimizer
from fmnist_search.recipe.hyperparameters import hyperparameter
from fmnist_search.recipe.recipe import Recipe, is_active, recipe_hyperparameters
from tests.support.strategies import hyperparameter_values, recipes

each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def error_lines(changes: dict[str, Any], recipe: Recipe | None = None) -> tuple[str, ...]:
    """Return the error lines of such changes."""
    with pytest.raises(UserError) as caught:
        (recipe or Recipe()).replace(changes)
    return caught.value.lines


def recipe_or_error(changes: dict[str, Any]) -> Recipe | UserError:
    """Return the recipe with these changes, or the error."""
    try:
        return Recipe().replace(changes)
    except UserError as error:
        return error


# ------------------------------------------------------------------------------------ round trips


@settings(max_examples=30)
@given(recipes())
def test_a_recipe_survives_nested_tables(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@settings(max_examples=30)
@given(recipes())
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.seed_independent_key() == recipe.seed_independent_key()


@settings(max_examples=40)
@given(recipes(), recipes())
def test_the_flat_form_replaces_every_value_of_another_recipe(recipe: Recipe, other: Recipe) -> None:
    assert other.replace(recipe.to_flat_dict()) == recipe


@settings(max_examples=30)
@given(recipes())
def test_the_flat_form_holds_every_hyperparameter_under_its_dotted_name(recipe: Recipe) -> None:
    flat = recipe.to_flat_dict()
    assert flat.keys() == recipe_hyperparameters(type(recipe.model)).keys() | {"model.family"}
    assert all(type(value) in (bool, int, float, str) for value in flat.values())


@settings(max_examples=30)
@given(recipes())
def test_the_text_of_a_value_parses_to_an_equal_value(recipe: Recipe) -> None:
    for value in recipe.to_flat_dict().values():
        read = {bool: {"true": True, "false": False}.get, int: int, float: float, str: str}[type(value)]
        assert read(format_value(value)) == value


def test_no_changes_give_the_same_recipe() -> None:
    recipe = Recipe(model=Mlp(depth=1))
    assert recipe.replace({}) == recipe
    assert Recipe.from_dict({}) == Recipe()


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3  # type: ignore[misc]


def test_an_old_recipe_without_a_newer_field_still_loads() -> None:
    recipe = Recipe(model=Cnn(norm="group", dropout=0.5), optimizer=Optimizer(name="sgd"), epochs=3)
    for name, spec in recipe_hyperparameters(Cnn).items():
        tables = recipe.to_dict()
        table, _, field = name.rpartition(".")
        del (tables[table] if table else tables)[field]
        assert Recipe.from_dict(tables) == recipe.replace({name: spec.default}), name


def test_a_recipe_of_the_first_release_loads_with_later_features_off() -> None:
    old = {
        "schema_version": 1,
        "epochs": 3,
        "keep": "val_loss",
        "augmentation": {"shift": 2, "flip": 0.5, "erasing": 0.25},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "clip_norm": 1.0},
    }
    recipe = Recipe.from_dict(old)
    assert recipe.augmentation == Augmentation(shift=2, flip=0.5, erasing=0.25)
    assert not recipe.augmentation.mixes_images
    assert (recipe.augmentation.rotation, recipe.optimizer.penalty, recipe.patience) == (0.0, 0.0, 0)
    assert (recipe.normalisation, recipe.test_time) == ("global", "none")


# -------------------------------------------------------------------------------------------- key


@settings(max_examples=40)
@given(recipes(), st.integers(0, 2**31))
def test_the_key_ignores_the_seed(recipe: Recipe, seed: int) -> None:
    assert recipe.replace({"seed": seed}).seed_independent_key() == recipe.seed_independent_key()


DEEP_RECIPE = Recipe(model=Cnn(depth=5), data=Data(validation=1), batch_size=2)
"""All widths and kernels have an effect, and any number of training images is large enough for the batch."""


# Shrinking a failure over all hyperparameters would take minutes, and the name in the message is enough.
@settings(max_examples=10, phases=[Phase.generate])
@given(st.data())
def test_any_other_change_gives_another_key(data: st.DataObject) -> None:
    key = DEEP_RECIPE.seed_independent_key()
    for name, spec in recipe_hyperparameters(Cnn).items():
        if name not in ("seed", "schema_version"):
            other = DEEP_RECIPE.replace({name: data.draw(hyperparameter_values(spec, largest=50_000), name)})
            assert (other.seed_independent_key() == key) == (other == DEEP_RECIPE), name


@settings(max_examples=30)
@given(recipes(), recipes())
def test_keys_are_equal_only_for_recipes_that_differ_in_the_seed_only(one: Recipe, other: Recipe) -> None:
    assert (one.seed_independent_key() == other.seed_independent_key()) == (
        one.replace({"seed": 0}) == other.replace({"seed": 0})
    )


def test_the_split_seed_is_part_of_the_key() -> None:
    assert Recipe().replace({"data.seed": 1}).seed_independent_key() != Recipe().seed_independent_key()


def test_minus_zero_and_zero_have_equal_keys() -> None:
    unsigned, signed = Recipe(), Recipe().replace({"model.dropout": -0.0})
    assert unsigned == signed
    assert unsigned.seed_independent_key() == signed.seed_independent_key()


# --------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.kernel_1": 4}, ["model.kernel_1", "4", "3, 5, 7"]),
        ({"optimizer.learning_rate": 0.0}, ["optimizer.learning_rate", "0.0", "above 0"]),
        ({"optimizer.learning_rate": -1}, ["optimizer.learning_rate", "-1", "above 0"]),
        ({"optimizer.learning_rate": math.nan}, ["optimizer.learning_rate", "nan"]),
        ({"optimizer.clip_norm": math.inf}, ["optimizer.clip_norm", "inf"]),
        ({"optimizer.name": "lion"}, ["optimizer.name", "lion", "sgd, adam, adamw, muon"]),
        ({"data.train_images": 100, "data.validation": 0}, ["batch_size", "128", "100"]),
        ({"data.train_images": 50_000}, ["data.train_images", "50000", "49152"]),
        ({"data.train_images": 99}, ["data.train_images", "99", "at least 100"]),
        ({"data.validation": 60_000}, ["data.validation", "60000", "59900"]),
        ({"epochs": "three"}, ["epochs", "three", "whole number"]),
        ({"epochs": 2.5}, ["epochs", "2.5", "whole number"]),
        ({"epochs": True}, ["epochs", "True", "whole number"]),
        ({"epochs": None}, ["epochs", "None", "whole number"]),
        ({"epochs": [1]}, ["epochs", "[1]", "whole number"]),
        ({"epochs": 0}, ["epochs", "0", "at least 1"]),
        ({"optimizer.nesterov": 1}, ["optimizer.nesterov", "1", "true or false"]),
        ({"optimizer.learning_rate": "1e-3"}, ["optimizer.learning_rate", "1e-3", "number"]),
        ({"model.dropout": 1.0}, ["model.dropout", "1.0", "at most 0.95"]),
        ({"schema_version": 2}, ["schema_version", "2"]),
        ({"augmentation.rotation": 181}, ["augmentation.rotation", "181", "at most 180"]),
        ({"augmentation.mixup": -0.1}, ["augmentation.mixup", "-0.1", "at least 0"]),
        ({"optimizer.penalty": -1}, ["optimizer.penalty", "-1", "at least 0"]),
        ({"normalisation": "per pixel"}, ["normalisation", "global, per-pixel, unit, centred"]),
        ({"test_time": "turn"}, ["test_time", "none, flip, shift, flip+shift"]),
        ({"patience": 3, "data.validation": 0}, ["patience", "3", "data.validation", "patience = 0"]),
    ],
)
def test_one_mistake_is_one_line_with_field_value_and_remedy(changes: dict[str, Any], words: list[str]) -> None:
    (line,) = error_lines(changes)
    assert [word for word in words if word not in line] == []


def test_each_of_several_mistakes_is_one_line() -> None:
    lines = error_lines({"model.kernel_2": 2, "epochs": 0, "optimizer.learning_rate": 0.0, "batchsize": 8})
    assert sorted(line.partition(":")[0] for line in lines) == [
        "batchsize",
        "epochs",
        "model.kernel_2",
        "optimizer.learning_rate",
    ]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("optimizer.learning_rte", "optimizer.learning_rate"),
        ("batchsize", "batch_size"),
        ("model.dropuot", "model.dropout"),
        ("data.trian_images", "data.train_images"),
    ],
)
def test_the_error_for_an_unknown_name_suggests_the_nearest(wrong: str, right: str) -> None:
    (line,) = error_lines({wrong: 1})
    assert line.startswith(f"{wrong}: ")
    assert repr(right) in line


def test_an_unknown_name_in_the_tables_is_a_mistake_too() -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr: unknown"):
        Recipe.from_dict({"optimizer": {"lr": 0.1}})


def test_the_error_for_an_unknown_family_names_a_known_one() -> None:
    assert "'cnn'" in error_lines({"model.family": "cnnn"})[0]
    assert "cnn" in error_lines({"model.family": 7})[0]


def test_a_field_of_another_family_is_unknown() -> None:
    (line,) = error_lines({"model.family": "mlp", "model.norm": "batch"})
    assert line.startswith("model.norm: unknown")


@settings(max_examples=150)
@given(st.data())
def test_any_scalar_is_accepted_or_refused_with_the_name_of_its_field(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(recipe_hyperparameters(Cnn))))
    value = data.draw(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400))
    outcome = recipe_or_error({name: value})
    if isinstance(outcome, UserError):
        # A valid number of images may still be smaller than the default batch.
        assert [line for line in outcome.lines if not line.startswith((f"{name}: ", "batch_size: "))] == []
    else:
        assert Recipe.from_dict(outcome.to_dict()) == outcome


@settings(max_examples=50)
@given(st.integers(0, 2**80))
def test_torch_accepts_every_seed_that_a_recipe_accepts(seed: int) -> None:
    outcome = recipe_or_error({"seed": seed})
    if isinstance(outcome, UserError):
        assert str(outcome).startswith("seed: ")
    else:
        torch.Generator().manual_seed(outcome.seed)


def test_groups_check_their_values_when_they_are_created() -> None:
    with pytest.raises(UserError, match=r"optimizer\.learning_rate"):
        Optimizer(learning_rate=0.0)
    with pytest.raises(UserError, match=r"augmentation\.flip"):
        Augmentation(flip=1.5)
    with pytest.raises(UserError, match=r"model\.depth"):
        Cnn(depth=6)


def test_an_integer_is_accepted_for_a_float() -> None:
    rate = Recipe().replace({"optimizer.learning_rate": 1}).optimizer.learning_rate
    assert rate == 1.0
    assert type(rate) is float


def test_validation_accepts_a_share_of_all_images() -> None:
    assert Data(validation=0.2).validation == 12_000  # type: ignore[arg-type]
    assert Recipe().replace({"data.validation": 0.5}).to_flat_dict()["data.validation"] == 30_000
    assert "share" in error_lines({"data.validation": 1.0})[0]


# --------------------------------------------------------------------------------------- families


def test_the_default_network_is_a_cnn_32_64_128() -> None:
    assert Recipe().label == "cnn 32-64-128"
    assert Recipe().widths == "32-64-128"
    assert Recipe(model=Mlp(depth=0)).label == "mlp"


def test_another_family_starts_from_its_own_defaults_and_keeps_the_other_groups() -> None:
    recipe = Recipe(model=Cnn(depth=5, dropout=0.5), optimizer=Optimizer(name="sgd"), epochs=4)
    other = recipe.replace({"model.family": "mlp", "model.width": 64})
    assert other.model == Mlp(width=64)
    assert (other.optimizer, other.epochs) == (recipe.optimizer, recipe.epochs)


@given(st.integers(1, 5), st.integers(1, 64), st.sampled_from([3, 5, 7]))
def test_blocks_beyond_the_depth_of_a_cnn_are_zero(depth: int, width: int, kernel: int) -> None:
    blocks = range(1, 6)
    given_values = {f"width_{block}": width for block in blocks} | {f"kernel_{block}": kernel for block in blocks}
    model = Cnn(depth=depth, **given_values)  # type: ignore[arg-type]
    assert [getattr(model, f"width_{block}") for block in blocks] == [width] * depth + [0] * (5 - depth)
    assert [getattr(model, f"kernel_{block}") for block in blocks] == [kernel] * depth + [0] * (5 - depth)
    assert model.widths == (width,) * depth
    assert model.kernels == (kernel,) * depth


def test_a_larger_depth_gives_the_new_blocks_their_defaults() -> None:
    shallow = Recipe(model=Cnn(depth=1, width_1=8, kernel_1=5))
    deep = shallow.replace({"model.depth": 5})
    assert deep.widths == "8-64-128-128-128"
    assert deep.model == Cnn(depth=5, width_1=8, kernel_1=5)
    assert deep.replace({"model.depth": 1}) == shallow


@given(st.integers(1, 5), st.integers(2, 4), st.sampled_from(["none", "space_to_depth"]))
def test_a_cnn_whose_pooling_leaves_nothing_is_refused(depth: int, pool: int, stem: str) -> None:
    model = Cnn(depth=depth, pool_size=pool, stem=stem)
    side = IMAGE_SIZE if stem == "none" else IMAGE_SIZE // 2
    if side // pool ** (depth - 1):
        check_size(model)
    else:
        with pytest.raises(UserError, match=rf"^model\.pool_size: .*{pool}.*model\.depth = \d") as caught:
            check_size(model)
        advice = int(str(caught.value).partition("model.depth = ")[2][0])
        check_size(Cnn(depth=advice, pool_size=pool, stem=stem))


@pytest.mark.parametrize(
    ("name", "family", "values", "expected"),
    [
        ("model.width_3", Cnn, {"model.depth": 3}, True),
        ("model.width_4", Cnn, {"model.depth": 3}, False),
        ("model.kernel_2", Cnn, {"model.depth": 1}, False),
        ("model.pool", Cnn, {"model.depth": 1}, False),
        ("model.pool_size", Cnn, {"model.depth": 2}, True),
        ("model.dropout", Cnn, {"model.depth": 1}, True),
        ("model.width", Mlp, {"model.depth": 0}, False),
        ("model.dropout", Mlp, {"model.depth": 0}, False),
        ("model.depth", Mlp, {"model.depth": 0}, True),
        ("model.width", Mlp, {"model.depth": 1}, True),
        ("optimizer.nesterov", Cnn, {"optimizer.name": "sgd"}, True),
        ("optimizer.nesterov", Cnn, {"optimizer.name": "adam"}, False),
        ("schedule.warmup", Cnn, {"schedule.name": "one-cycle"}, True),
        ("schedule.warmup", Cnn, {"schedule.name": "cosine"}, False),
        ("batch_size", Mlp, {}, True),
    ],
)
def test_a_hyperparameter_is_active_where_it_has_an_effect(
    name: str, family: type[Architecture], values: dict[str, Any], expected: bool
) -> None:
    assert is_active(name, family, values) is expected


@each_family
def test_every_hyperparameter_has_a_description_and_accepts_its_default(family: type[Architecture]) -> None:
    for spec in recipe_hyperparameters(family).values():
        assert spec.description
        assert spec.parse(spec.default) == spec.default


def test_a_hyperparameter_that_was_added_later_keeps_the_keys_of_stored_recipes() -> None:
    @dataclasses.dataclass(frozen=True)
    class LaterMlp(Mlp):
        epsilon: float = hyperparameter(0.5, "a hyperparameter that stored recipes do not have", added_later=True)

    key = Recipe(model=Mlp()).seed_independent_key()
    assert Recipe(model=LaterMlp()).seed_independent_key() == key
    assert Recipe(model=LaterMlp(epsilon=0.25)).seed_independent_key() != key
    assert Recipe(model=LaterMlp(width=7)).seed_independent_key() != key
