"""Sampled recipes stay within the space, and only active hyperparameters are suggested."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fmnist_search.config.conditional_space import constant_values, varying_names
from fmnist_search.config.domain import Choice, Domain, Fixed, Range
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.models.classifier import check_size
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe, is_active, recipe_hyperparameters
from fmnist_search.search.samplers import make_study_sampler
from fmnist_search.search.suggest import base_recipe, displayed_names, suggest_recipe, to_optuna_params, trial_seed
from tests.support.studies import make_study, space_tables

optuna.logging.set_verbosity(optuna.logging.WARNING)

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def sample_recipes(config: StudyConfig, count: int) -> Iterator[tuple[dict[str, Any], Recipe]]:
    """Yield the parameters and the recipe of each trial of a study."""
    base = base_recipe(config, "float32")
    search = optuna.create_study(direction="maximize", sampler=make_study_sampler(config))
    for _ in range(count):
        trial = search.ask()
        recipe = suggest_recipe(trial, config.space, base, trial_seed(config.seed, trial.number))
        # TPE needs values that depend on the recipe.
        search.tell(trial, recipe.optimizer.learning_rate + len(recipe.widths))
        yield trial.params, recipe


def domain_contains(value: Value, domain: Domain) -> bool:
    match domain:
        case Fixed(only):
            return value == only
        case Choice(values):
            return value in values
        case Range(low, high, _, step):
            assert isinstance(value, int | float)
            return low <= value <= high and (step is None or (value - low) % step == 0)


@settings(max_examples=25)
@given(space_tables(largest=200), st.integers(0, 2**31))
def test_sampled_recipes_lie_within_their_domains(space: dict[str, Any], seed: int) -> None:
    config = make_study(space, sampler="random", seed=seed, budget={"trials": 1, "epochs": 7})
    for number, (_, recipe) in enumerate(sample_recipes(config, 3)):
        family = type(recipe.model)
        assert recipe.model.family in config.space.families
        assert (recipe.seed, recipe.epochs, recipe.data) == (trial_seed(seed, number), 7, config.data)
        domains, flat = config.space.domains(recipe.model.family), recipe.to_flat_dict()
        # Hyperparameters without a domain have their defaults; those of the model depend on its depth.
        given_values = {
            name: flat[name]
            for name, domain in domains.items()
            if is_active(name, family, flat) or (isinstance(domain, Fixed) and not name.startswith("model."))
        }
        untouched = Recipe().replace({"model.family": recipe.model.family, "epochs": 7, **given_values})
        assert recipe == untouched.replace({"seed": recipe.seed})
        # A sampled 0 means the default width or kernel size of an active block.
        depth = {name: value for name, value in given_values.items() if name == "model.depth"}
        defaults = Recipe().replace({"model.family": recipe.model.family, **depth}).to_flat_dict()
        for name, value in given_values.items():
            assert domain_contains(value, domains[name]) or (
                domain_contains(0, domains[name]) and value == defaults[name]
            )


BLOCKS = range(1, 6)
FULL_CNN_SPACE = {
    "depth": list(BLOCKS),
    **{f"width_{block}": [8, 16] for block in BLOCKS},
    **{f"kernel_{block}": [3, 5] for block in BLOCKS},
}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_hyperparameters_of_inactive_blocks_are_not_suggested(sampler: str) -> None:
    depths = set()
    for asked, recipe in sample_recipes(make_study({"cnn": FULL_CNN_SPACE}, sampler=sampler), 30):
        depth = len(recipe.model.widths)
        depths.add(depth)
        blocks = {f"model.{stem}_{n}" for stem in ("width", "kernel") for n in range(1, depth + 1)}
        assert asked.keys() == {"model.depth"} | blocks
        flat = recipe.to_flat_dict()
        assert {name: flat[name] for name in asked} == asked
        assert all(flat[f"model.{stem}_{n}"] == 0 for stem in ("width", "kernel") for n in range(depth + 1, 6))
    assert len(depths) > 2


def test_block_beyond_the_default_depth_is_not_suggested() -> None:
    # The depth is not searched, so it is three.
    ((asked, _),) = sample_recipes(make_study({"cnn": {"width_3": [8, 16], "width_4": [8, 16]}}), 1)
    assert asked.keys() == {"model.width_3"}


def test_nesterov_is_suggested_with_sgd_only() -> None:
    common = {"optimizer.name": ["sgd", "adam", "adamw"], "optimizer.nesterov": [True, False]}
    names = set()
    for asked, recipe in sample_recipes(make_study({"common": common}), 20):
        names.add(recipe.optimizer.name)
        assert ("optimizer.nesterov" in asked) == (recipe.optimizer.name == "sgd")
    assert names == {"sgd", "adam", "adamw"}
    ((asked, _),) = sample_recipes(make_study({"common": {"optimizer.nesterov": [True, False]}}), 1)
    assert not asked


def test_warmup_is_suggested_with_one_cycle_only() -> None:
    common = {"schedule.name": ["constant", "cosine", "one-cycle"], "schedule.warmup": {"low": 0.1, "high": 0.4}}
    names = set()
    for asked, recipe in sample_recipes(make_study({"common": common}), 20):
        names.add(recipe.schedule.name)
        assert ("schedule.warmup" in asked) == (recipe.schedule.name == "one-cycle")
    assert names == {"constant", "cosine", "one-cycle"}


def test_families_that_share_names_are_searched_together() -> None:
    space = {
        "common": {"family": ["cnn", "mlp"], "optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
        # The same names with other domains: Optuna accepts only one domain per name.
        "cnn": {"depth": [1, 2], "activation": ["relu", "elu"], "dropout": {"low": 0.1, "high": 0.2}},
        "mlp": {"depth": {"low": 1, "high": 4}, "activation": ["gelu", "silu"], "dropout": [0.3, 0.4]},
    }
    families = []
    with warnings.catch_warnings():
        # TPE warns if it cannot model a parameter and samples it independently.
        warnings.simplefilter("error", UserWarning)
        for asked, recipe in sample_recipes(make_study(space, sampler={"name": "tpe", "startup_trials": 5}), 40):
            family = recipe.model.family
            families.append(family)
            assert asked.keys() == {
                "model.family",
                "optimizer.learning_rate",
                *(f"{family}.{name}" for name in ("depth", "activation", "dropout")),
            }
            domains = make_study(space).space.domains(family)
            flat = recipe.to_flat_dict()
            assert all(domain_contains(flat[name], domain) for name, domain in domains.items())
    assert set(families) == {"cnn", "mlp"}


def test_integers_stay_integers() -> None:
    config = make_study(
        {
            "common": {
                "batch_size": {"low": 16, "high": 256, "log": True},
                "augmentation.shift": {"low": 0, "high": 3},
            },
            "cnn": {"depth": 2, "width_1": {"low": 8, "high": 64, "step": 8}, "hidden": [0, 32]},
        }
    )
    for asked, recipe in sample_recipes(config, 20):
        flat = recipe.to_flat_dict()
        for name, spec in recipe_hyperparameters(FAMILIES["cnn"]).items():
            assert type(flat[name]) is spec.kind, name
        assert all(type(value) is int for value in asked.values())


def test_floats_written_as_integers_are_floats() -> None:
    space = {"common": {"optimizer.learning_rate": {"low": 1, "high": 3}, "optimizer.momentum": [0, 0.5]}}
    for asked, recipe in sample_recipes(make_study(space), 10):
        assert all(type(value) is float for value in asked.values())
        assert type(recipe.optimizer.learning_rate) is float


def test_batch_size_fits_few_images() -> None:
    config = make_study({"common": {"batch_size": [16, 32]}}, data={"train_images": 100})
    ((_, recipe),) = sample_recipes(config, 1)
    assert recipe.batch_size in (16, 32)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "studies").glob("*.toml")), ids=lambda p: p.name)
def test_shipped_study_samples_networks_that_can_be_built(path: Path) -> None:
    for _, recipe in sample_recipes(StudyConfig.load(path), 30):
        check_size(recipe.model)


# ------------------------------------------------------------------------- what varies and what not


@settings(max_examples=25)
@given(space_tables(largest=200))
def test_a_name_is_either_searched_or_constant(space: dict[str, Any]) -> None:
    config = make_study(space, sampler="random")
    base = base_recipe(config, "float32")
    varying, fixed = varying_names(config.space), constant_values(config.space, base)
    assert len(varying) == len(set(varying))
    assert not fixed.keys() & set(varying)
    families = config.space.families
    names = {"model.family", *(name for family in families for name in recipe_hyperparameters(FAMILIES[family]))}
    of_all = {name for name in names if len(families) == 1 or not name.startswith("model.")}
    # Every trial has a seed of its own.
    assert of_all - {"seed"} <= fixed.keys() | set(varying) <= names - {"seed"}


DEFAULT_WIDTHS = {"cnn": {"depth": 2}}
DEPTH_ALONE = {"cnn": {"depth": [1, 2, 3, 4, 5]}}
DEPTH_OF_ONE = {"cnn": {"depth": [1]}}
WIDTH_OF_SOME = {"cnn": {"depth": [1, 2, 3, 4, 5], "width_3": 64}}
DEEPER_THAN_DEFAULT = {"common": {"family": ["convnet"]}, "convnet": {"depth": [3, 4]}}


@settings(max_examples=30)
@example(DEFAULT_WIDTHS)
@example(DEPTH_ALONE)
@example(DEPTH_OF_ONE)
@example(WIDTH_OF_SOME)
@example(DEEPER_THAN_DEFAULT)
@given(space_tables(largest=200))
def test_what_is_called_constant_is_the_same_in_every_trial(space: dict[str, Any]) -> None:
    config = make_study(space, sampler="random")
    fixed = constant_values(config.space, base_recipe(config, "float32"))
    for _, recipe in sample_recipes(config, 5):
        flat = recipe.to_flat_dict()
        assert {name: flat[name] for name in fixed} == fixed


@settings(max_examples=30)
@example(DEPTH_ALONE)
@example(WIDTH_OF_SOME)
@example(DEEPER_THAN_DEFAULT)
@given(space_tables(largest=200))
def test_what_is_not_called_searched_is_the_same_in_every_trial(space: dict[str, Any]) -> None:
    config = make_study(space, sampler="random")
    varying = {*varying_names(config.space), "seed"}
    seen: dict[str, Value] = {}
    for _, recipe in sample_recipes(config, 5):
        for name, value in recipe.to_flat_dict().items():
            # Of several families each has its own model; the family itself says which.
            if name not in varying and (len(config.space.families) == 1 or not name.startswith("model.")):
                assert seen.setdefault(name, value) == value, name


@settings(max_examples=30)
@example(DEPTH_ALONE, "cnn")
@example(WIDTH_OF_SOME, "cnn")
@example(DEEPER_THAN_DEFAULT, "mlp")
@given(space_tables(largest=200), st.sampled_from(["cnn", "convnet", "mlp"]))
def test_what_is_displayed_is_searched_or_outside_the_space(space: dict[str, Any], family: str) -> None:
    config = make_study(space, sampler="random")
    recipes = [recipe for _, recipe in sample_recipes(config, 5)]
    assert displayed_names(config, recipes) == varying_names(config.space)

    base = base_recipe(config, "float32").replace({"model.family": family})
    changed = base.replace({"label_smoothing": 0.37, "model.depth": 4})
    names = displayed_names(config, [*recipes, changed])
    outside = to_optuna_params(config.space, base, changed.to_flat_dict())[1]
    assert {line.split(" = ")[0] for line in outside} <= {*names}
    # What has no name in the table is the same in all of them.
    seen: dict[str, Value] = {}
    for recipe in (*recipes, changed):
        for name, value in recipe.to_flat_dict().items():
            if name not in (*names, "seed") and not name.startswith("model."):
                assert seen.setdefault(name, value) == value, name


def test_what_is_searched_comes_in_the_order_of_a_recipe() -> None:
    space = {
        "common": {"batch_size": [64, 128], "optimizer.learning_rate": [0.1, 0.2], "family": ["mlp", "cnn"]},
        "cnn": {"kernel_1": [3, 5], "depth": 2, "dropout": 0.5},
        "mlp": {"width": [8, 16], "depth": [1, 2]},
    }
    assert varying_names(make_study(space).space) == [
        "model.family",
        "model.depth",
        "model.width",
        "optimizer.learning_rate",
        "batch_size",
        "model.kernel_1",
    ]


# ------------------------------------------------------------------------------------------- seeds


def test_trials_have_different_seeds() -> None:
    seeds = {(study_seed, number): trial_seed(study_seed, number) for study_seed in range(5) for number in range(400)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds.values())


def test_seed_of_a_trial_never_changes() -> None:
    # Stored studies rely on it: with other seeds, their trials could not be repeated.
    assert [trial_seed(0, number) for number in range(3)] == [713683445, 1419524863, 1323506485]
