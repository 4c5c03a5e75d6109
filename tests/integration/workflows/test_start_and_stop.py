"""How a study starts and what ends it: recipes that are tried first, budgets, widened ranges, other samplers."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run

from fmnist_search.config.conditional_space import searchable_values
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import base_recipe, suggest_recipe
from fmnist_search.tracking.ui import VIEW_TAG
from tests.integration.conftest import CommandResult, FinishedStudy, run_command
from tests.support.studies import make_study, space_tables

# ------------------------------------------------------------------------- starts, without training

LEARNING_RATE_RANGE = {"low": 1e-3, "high": 1e-1, "log": True}
SPACE: dict[str, Any] = {
    "common": {
        "batch_size": [64, 128],
        "optimizer.learning_rate": LEARNING_RATE_RANGE,
        "label_smoothing": {"low": 0.0, "high": 0.4},
    },
    "cnn": {"depth": [1, 2, 3], "width_1": [8, 16], "width_2": [16, 32], "width_3": [32, 64]},
}
VALUES_INSIDE = {
    "batch_size": 64,
    "optimizer.learning_rate": 0.02,
    "model.depth": 2,
    "model.width_1": 16,
    "model.width_2": 32,
}
VALUES_OUTSIDE = {**VALUES_INSIDE, "batch_size": 100, "augmentation.shift": 2}


def make_config(space: dict[str, Any] | None = None, *, outside: str = "refuse", **tables: Any) -> StudyConfig:
    return make_study(space or SPACE, start={"outside": outside}, **{"pruner": "none", **tables})


def open_store(config: StudyConfig, optuna_study: optuna.Study | None = None) -> StudyStore:
    """Return the store of a new study in memory, or of the given study, as after a restart."""
    store = StudyStore(optuna_study or optuna.create_study(study_name="small", direction="maximize"), config)
    store.runtime = StudyRuntime(Execution(), "float32")
    return store


def run_next_trial(
    study_store: StudyStore, state: TrialState = TrialState.COMPLETED, *accuracies: float
) -> TrialRecord:
    """Ask for a trial, report these accuracies, and tell its result."""
    trial = study_store.ask()
    reports = tuple(EpochReport(n, 1.0, 0.5, 1.0, a, 0.01, 1.0) for n, a in enumerate(accuracies or (0.5,), 1))
    for report in reports:
        if study_store.decide(trial, report) is Decision.PRUNE:
            state, reports = TrialState.PRUNED, reports[: report.epoch]
            break
    return study_store.tell(trial, TrialResult(state, reports, 1.0), "run")


def searched_values(recipe: Recipe) -> dict[str, Any]:
    return searchable_values(recipe.to_flat_dict())


def test_a_complete_recipe_is_tried_first_with_the_constant_values_of_the_study() -> None:
    given_recipe = Recipe().replace({**VALUES_INSIDE, "epochs": 50, "seed": 5, "data.seed": 9, "precision": "bfloat16"})
    store = open_store(make_config(budget={"trials": 5, "epochs": 3}))
    assert store.enqueue_start("best.toml", given_recipe.to_flat_dict()) == "best.toml is tried first"
    first, second = run_next_trial(store), run_next_trial(store)
    assert searched_values(first.recipe) == searched_values(given_recipe)
    assert (first.recipe.epochs, first.recipe.data.seed, first.recipe.precision) == (3, 0, "float32")
    assert first.recipe.seed not in (5, second.recipe.seed)
    assert first.recipe.seed_independent_key() != second.recipe.seed_independent_key()


def test_values_that_a_table_leaves_out_are_sampled() -> None:
    store = open_store(make_config())
    tables = [{"optimizer.learning_rate": rate} for rate in (0.01, 0.02, 0.03)]
    for number, table in enumerate(tables, 1):
        assert store.enqueue_start(f"table {number}", table) == f"table {number} is tried first"
    recipes = [run_next_trial(store).recipe for _ in tables]
    assert [recipe.optimizer.learning_rate for recipe in recipes] == [0.01, 0.02, 0.03]
    assert len({recipe.label_smoothing for recipe in recipes}) == 3
    assert all(0 <= recipe.label_smoothing <= 0.4 for recipe in recipes)


@settings(max_examples=25)
@given(space_tables(largest=200), st.integers(0, 2**31))
def test_a_recipe_of_one_study_can_start_another_with_the_same_space(table: dict[str, Any], seed: int) -> None:
    config = make_config(table)
    drawn = suggest_recipe(
        optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask(),
        config.space,
        base_recipe(config, "float32"),
        seed,
    )
    store = open_store(config)
    assert store.enqueue_start("study:other", drawn.to_flat_dict()) == "study:other is tried first"
    assert run_next_trial(store).recipe.seed_independent_key() == drawn.seed_independent_key()


def test_a_default_width_is_inside_a_space_that_contains_zero() -> None:
    # In a space, 0 stands for the default of a block, and the recipe has its value.
    store = open_store(make_config({"cnn": {"width_1": [0, 64], "kernel_1": [0, 7]}}))
    store.enqueue_start("study:other", Recipe().to_flat_dict())
    model = run_next_trial(store).recipe.to_flat_dict()
    assert (model["model.width_1"], model["model.kernel_1"]) == (32, 3)


def test_a_recipe_outside_the_space_is_refused_with_a_line_for_each_value_and_nothing_changes() -> None:
    store = open_store(make_config())
    record = run_next_trial(store)
    with pytest.raises(UserError) as caught:
        store.enqueue_start("best.toml", Recipe().replace(VALUES_OUTSIDE).to_flat_dict())
    remedy = "widen the space, or allow it with start.outside = 'try'"
    assert sorted(caught.value.lines) == [
        f"start.recipes: best.toml: augmentation.shift = 2, and the space has 0; {remedy}",
        f"start.recipes: best.toml: batch_size = 100, and the space has 64, 128; {remedy}",
    ]
    assert store.trial_records() == [record]
    assert searched_values(run_next_trial(store).recipe) != searched_values(Recipe().replace(VALUES_OUTSIDE))


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "qmc"])
def test_a_recipe_outside_the_space_is_tried_unchanged_if_the_study_allows_it(sampler: str) -> None:
    config = make_config(outside="try", sampler=sampler)
    stored = optuna.create_study(study_name="small", direction="maximize")
    store = open_store(config, stored)
    wanted = Recipe().replace(VALUES_OUTSIDE)
    message = store.enqueue_start("best.toml", wanted.to_flat_dict())
    assert message is not None
    assert message.startswith("best.toml is tried first, outside the space: ")
    assert "batch_size = 100, and the space has 64, 128" in message
    record = run_next_trial(store, TrialState.COMPLETED, 0.6, 0.9)
    assert searched_values(record.recipe) == searched_values(wanted)
    assert (record.state, record.value, record.curve) == (TrialState.COMPLETED, 0.9, (0.6, 0.9))
    # The search continues within its space, whatever the sampler does with such a trial.
    later = [run_next_trial(open_store(config, stored), TrialState.COMPLETED, 0.5 + n / 100) for n in range(14)]
    assert all(record.recipe.batch_size in (64, 128) for record in later)
    assert open_store(config, stored).trial_records() == [record, *later]


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_a_search_continues_after_the_same_recipe_outside_the_space_was_given_twice(sampler: str) -> None:
    store = open_store(make_config(outside="try", sampler={"name": sampler, "startup_trials": 2}))
    for name in ("one.toml", "other.toml"):
        store.enqueue_start(name, Recipe().replace(VALUES_OUTSIDE).to_flat_dict())
    first = run_next_trial(store)
    trial = store.ask()
    assert trial.recipe.seed_independent_key() == first.recipe.seed_independent_key()
    assert store.tell_duplicate(trial, first).duplicate_of == first.number
    assert {run_next_trial(store).recipe.batch_size for _ in range(8)} <= {64, 128}


def test_values_that_a_table_outside_the_space_leaves_out_are_sampled() -> None:
    common = {**SPACE["common"], "optimizer.name": "sgd"}
    store = open_store(make_config({**SPACE, "common": common}, outside="try"))
    for number, rate in enumerate((1.0, 2.0, 3.0), 1):
        store.enqueue_start(f"table {number}", {"optimizer.learning_rate": rate})
    recipes = [run_next_trial(store).recipe for _ in range(3)]
    assert [recipe.optimizer.learning_rate for recipe in recipes] == [1.0, 2.0, 3.0]
    assert {recipe.optimizer.name for recipe in recipes} == {"sgd"}
    assert len({recipe.label_smoothing for recipe in recipes}) == 3
    assert all(0 <= recipe.label_smoothing <= 0.4 for recipe in recipes)
    assert {recipe.batch_size for recipe in recipes} <= {64, 128}


def test_a_table_outside_the_space_has_the_family_of_the_search() -> None:
    store = open_store(make_config({"mlp": {"width": [64, 128], "dropout": 0.1}}, outside="try"))
    store.enqueue_start("table 1", {"model.width": 100})
    model = run_next_trial(store).recipe.to_flat_dict()
    assert (model["model.family"], model["model.width"], model["model.dropout"]) == ("mlp", 100, 0.1)


@pytest.mark.parametrize("families", [["mlp", "cnn"], ["cnn", "mlp"]], ids=str)
def test_a_table_with_a_hyperparameter_of_one_family_has_that_family(families: list[str]) -> None:
    space = {"common": {"family": families}, "mlp": {"width": [64, 128], "depth": [1, 2]}, "cnn": {"depth": [1, 2]}}
    for seed in range(4):
        store = open_store(make_config(space, seed=seed))
        store.enqueue_start("table 1", {"model.width": 64, "model.depth": 2})
        store.enqueue_start("table 2", {"model.family": "cnn", "model.depth": 2})
        recipes = [run_next_trial(store).recipe for _ in range(2)]
        assert [(recipe.model.family, len(recipe.model.widths)) for recipe in recipes] == [("mlp", 2), ("cnn", 2)]


@pytest.mark.parametrize(
    ("space", "table"),
    [
        ({"common": {"optimizer.name": "sgd", "optimizer.nesterov": [True, False]}}, {"optimizer.nesterov": False}),
        ({"cnn": {"depth": 4, "width_4": [16, 32, 64]}}, {"model.width_4": 64}),
    ],
    ids=["nesterov of a fixed sgd", "width at a fixed depth"],
)
def test_a_table_is_completed_with_the_fixed_values_of_the_study(space: dict[str, Any], table: dict[str, Any]) -> None:
    for seed in range(5):
        store = open_store(make_config(space, seed=seed))
        store.enqueue_start("table 1", table)
        flat = run_next_trial(store).recipe.to_flat_dict()
        assert {name: flat[name] for name in table} == table


def test_a_table_that_contradicts_a_fixed_value_is_outside_the_space() -> None:
    store = open_store(make_config({"cnn": {"depth": 2, "width_1": [8, 16]}}))
    with pytest.raises(UserError, match=r"table 1: model\.depth = 3, and the space has 2; widen the space"):
        store.enqueue_start("table 1", {"model.depth": 3})


@pytest.mark.parametrize(
    ("table", "texts"),
    [
        ({"optimizer.learning_rat": 0.1}, ["optimizer.learning_rat", "did you mean 'optimizer.learning_rate'"]),
        ({"batch_size": "64"}, ["batch_size: '64' is not a whole number"]),
        ({"model.depth": 9}, ["model.depth: 9 is out of bounds", "at most 5"]),
        ({"model.family": "rnn"}, ["model.family", "rnn", "cnn"]),
    ],
)
@pytest.mark.parametrize("outside", ["refuse", "try"])
def test_an_invalid_table_is_refused_even_if_recipes_outside_the_space_are_allowed(
    outside: str, table: dict[str, Any], texts: list[str]
) -> None:
    store = open_store(make_config(outside=outside))
    with pytest.raises(UserError) as caught:
        store.enqueue_start("table 1", table)
    (line,) = caught.value.lines
    assert line.startswith("start.recipes: table 1: ")
    assert all(text in line for text in texts)


@pytest.mark.parametrize("values", [VALUES_INSIDE, VALUES_OUTSIDE], ids=["inside", "outside"])
def test_a_continued_study_does_not_try_a_start_again(values: dict[str, Any]) -> None:
    config = make_config(outside="try")
    stored = optuna.create_study(study_name="small", direction="maximize")
    flat = Recipe().replace(values).to_flat_dict()
    assert open_store(config, stored).enqueue_start("best.toml", flat)
    # Neither while it waits, nor after it was tried.
    assert open_store(config, stored).enqueue_start("best.toml", flat) is None
    run_next_trial(open_store(config, stored))
    assert open_store(config, stored).enqueue_start("best.toml", flat) is None
    assert (
        run_next_trial(open_store(config, stored)).recipe.seed_independent_key()
        != open_store(config, stored).trial_records()[0].recipe.seed_independent_key()
    )
    # What has changed is another recipe.
    assert open_store(config, stored).enqueue_start("best.toml", {**flat, "optimizer.learning_rate": 0.03})


@pytest.mark.parametrize(
    "values", [VALUES_INSIDE, VALUES_OUTSIDE, {"batch_size": 100}], ids=["inside", "outside", "partly"]
)
def test_an_interrupted_start_is_tried_again_with_the_same_recipe(values: dict[str, Any]) -> None:
    config = make_config(outside="try")
    stored = optuna.create_study(study_name="small", direction="maximize")
    open_store(config, stored).enqueue_start("best.toml", values)
    attempts = [run_next_trial(open_store(config, stored), TrialState.INTERRUPTED, 0.3) for _ in range(2)]
    last = run_next_trial(open_store(config, stored), TrialState.COMPLETED, 0.3, 0.4)
    assert last.recipe == attempts[0].recipe == attempts[1].recipe


@pytest.mark.parametrize("values", [VALUES_INSIDE, VALUES_OUTSIDE], ids=["inside", "outside"])
def test_a_start_that_is_the_best_candidate_of_one_epoch_is_trained_in_full(values: dict[str, Any]) -> None:
    tables: dict[str, Any] = {"budget": {"trials": 5, "epochs": 3}, "pruner": {"name": "one-epoch", "survivors": 1}}
    store = open_store(make_config(outside="try", **tables))
    store.enqueue_start("best.toml", Recipe().replace(values).to_flat_dict())
    first, *others = (run_next_trial(store, TrialState.COMPLETED, 0.9 - n / 10, 0.95, 0.96) for n in range(5))
    survivor = others.pop()
    assert [(record.state, record.epochs) for record in (first, *others)] == [(TrialState.PRUNED, 1)] * 4
    assert (survivor.state, survivor.epochs) == (TrialState.COMPLETED, 3)
    assert survivor.recipe == first.recipe


def test_a_grid_search_does_not_repeat_its_starts() -> None:
    space = {"common": {"batch_size": [64, 128]}, "cnn": {"depth": [1, 2], "width_2": [16, 32]}}
    store = open_store(make_config(space, outside="try", sampler="grid"))
    store.enqueue_start(
        "a.toml", Recipe().replace({"batch_size": 64, "model.depth": 2, "model.width_2": 32}).to_flat_dict()
    )
    store.enqueue_start("b.toml", Recipe().replace({"batch_size": 100}).to_flat_dict())
    records = []
    while not store.is_exhausted:
        records.append(run_next_trial(store))
    assert [record.recipe.batch_size for record in records[:2]] == [64, 100]
    assert len({record.recipe.seed_independent_key() for record in records}) == len(records) == 2 * 3 + 1
    assert [record.recipe.batch_size for record in records].count(100) == 1


# ------------------------------------------------------------------- widened ranges, without training


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One storage for many studies: Optuna takes a quarter of a second for its tables."""
    return f"sqlite:///{tmp_path_factory.mktemp('widened') / 'optuna.db'}"


def config_with_domain(name: str, domain: Any, study_name: str) -> StudyConfig:
    group = "cnn" if name in ("depth", "width_1") else "common"
    return make_config({**SPACE, group: {**SPACE[group], name: domain}}, name=study_name)


WIDENED_DOMAINS = [
    ("optimizer.learning_rate", LEARNING_RATE_RANGE, {**LEARNING_RATE_RANGE, "high": 1.0}),
    ("optimizer.learning_rate", LEARNING_RATE_RANGE, {**LEARNING_RATE_RANGE, "low": 1e-4}),
    ("label_smoothing", {"low": 0.1, "high": 0.2}, {"low": 0.0, "high": 0.4}),
    ("depth", {"low": 1, "high": 2}, {"low": 1, "high": 4}),
    ("width_1", {"low": 16, "high": 32, "step": 8}, {"low": 8, "high": 48, "step": 8}),
]


@pytest.mark.parametrize(("name", "before", "after"), WIDENED_DOMAINS)
def test_the_range_of_an_existing_study_may_be_widened(
    url: str, tmp_path: Path, name: str, before: Any, after: Any
) -> None:
    old, new = (config_with_domain(name, domain, tmp_path.name) for domain in (before, after))
    store = StudyStore.open(url, old)
    store.runtime = StudyRuntime(Execution(), "float32")
    records = [run_next_trial(store) for _ in range(3)]
    assert StudyStore.open(url, old).changes == []

    store = StudyStore.open(url, new)
    key = next(key for key in dict(new.domains()) if key.endswith(f".{name}"))
    (line,) = store.changes
    assert line == f"{key} is wider now: {dict(new.domains())[key]}; it was {dict(old.domains())[key]}"
    assert store.trial_records() == records
    assert StudyStore.load(url, new.name).config == new
    # It is reported once: the study has the wider range now, and it cannot be narrowed.
    assert StudyStore.open(url, new).changes == []
    with pytest.raises(UserError):
        StudyStore.open(url, old)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        *((name, after, before) for name, before, after in WIDENED_DOMAINS),
        ("optimizer.learning_rate", LEARNING_RATE_RANGE, {"low": 1e-3, "high": 1e-1}),
        ("optimizer.learning_rate", LEARNING_RATE_RANGE, {**LEARNING_RATE_RANGE, "low": 1e-2, "high": 1.0}),
        ("optimizer.learning_rate", LEARNING_RATE_RANGE, [1e-3, 1e-2, 1e-1]),
        ("optimizer.learning_rate", LEARNING_RATE_RANGE, 1e-2),
        ("width_1", {"low": 16, "high": 32, "step": 8}, {"low": 12, "high": 36, "step": 8}),
        ("width_1", {"low": 16, "high": 32, "step": 8}, {"low": 16, "high": 32, "step": 4}),
        ("width_1", [8, 16], [8, 16, 32]),
        ("width_1", [8, 16], {"low": 8, "high": 16}),
        ("width_1", 8, [8, 16]),
    ],
)
def test_any_other_change_of_a_domain_is_refused_with_its_key(
    url: str, tmp_path: Path, name: str, before: Any, after: Any
) -> None:
    old, new = (config_with_domain(name, domain, tmp_path.name) for domain in (before, after))
    StudyStore.open(url, old)
    with pytest.raises(UserError) as caught:
        StudyStore.open(url, new)
    (line,) = caught.value.lines
    key, domain = next((key, domain) for key, domain in new.domains() if key.endswith(f".{name}"))
    assert line.startswith(
        f"{key}: is {domain} now and was {dict(old.domains())[key]} when the study {new.name!r} was created"
    )
    assert ("a range may be widened" in line) == isinstance(before, Mapping)
    assert "--name" in line
    assert "--fresh" in line
    assert StudyStore.load(url, old.name).config == old


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "qmc"])
def test_every_sampler_samples_from_a_widened_range(sampler: str) -> None:
    stored = optuna.create_study(study_name="small", direction="maximize")
    settings_of = {"name": sampler} | ({"startup_trials": 2} if sampler in ("tpe", "gp", "cmaes") else {})
    narrow = make_config({"common": {"label_smoothing": {"low": 0.0, "high": 0.1}}}, sampler=settings_of)
    wide = make_config({"common": {"label_smoothing": {"low": 0.0, "high": 0.8}}}, sampler=settings_of)

    def sampled_values(config: StudyConfig, count: int) -> list[float]:
        store = open_store(config, stored)
        values = []
        for _ in range(count):
            trial = store.ask()
            values.append(trial.recipe.label_smoothing)
            report = EpochReport(1, 1.0, 0.5, 1.0, trial.recipe.label_smoothing, 0.01, 1.0)
            store.decide(trial, report)
            store.tell(trial, TrialResult(TrialState.COMPLETED, (report,), 1.0), "")
        return values

    assert max(sampled_values(narrow, 6)) <= 0.1
    assert max(sampled_values(wide, 12)) > 0.1


# ------------------------------------------------------------------------- other samplers

STUDY_TEMPLATE = """
name = "tuned"
{before}
[budget]
trials = 5
[space.common]
optimizer.learning_rate = {{ low = 1e-3, high = 1e-1 }}
[space.cnn]
depth = [1, 2]
{after}
"""


def write_study(tmp_path: Path, before: str = "", after: str = "") -> Path:
    path = tmp_path / "tuned.toml"
    path.write_text(STUDY_TEMPLATE.format(before=before, after=after))
    return path


NAMED_SAMPLER = '[sampler]\nname = "tpe"\nstartup_trials = 5\ncandidates = 9\n'
UNNAMED_SAMPLER = "[sampler]\nstartup_trials = 5\ncandidates = 9\n"


@pytest.mark.parametrize("table", [NAMED_SAMPLER, UNNAMED_SAMPLER], ids=["named", "by default"])
def test_another_sampler_gives_a_warning_with_the_settings_that_it_ignores(tmp_path: Path, table: str) -> None:
    config = StudyConfig.load(write_study(tmp_path, after=table), {"sampler": "random"})
    assert config.sampler.name == "random"
    (line,) = config.warnings
    for text in ("sampler.startup_trials", "sampler.candidates", "'tpe'", "'random'"):
        assert text in line


@pytest.mark.parametrize("table", [NAMED_SAMPLER, UNNAMED_SAMPLER], ids=["named", "by default"])
def test_naming_the_sampler_of_the_file_keeps_its_settings(tmp_path: Path, table: str) -> None:
    path = write_study(tmp_path, after=table)
    config = StudyConfig.load(path, {"sampler": "tpe"})
    unchanged = StudyConfig.load(path)
    assert config.sampler == unchanged.sampler
    assert bool(unchanged.warnings) == (table == UNNAMED_SAMPLER)
    assert config.sampler.model_dump() == {"name": "tpe", "startup_trials": 5, "candidates": 9, "window": 300}
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("before", "after", "overrides"),
    [
        ('sampler = "tpe"', "", {"sampler": "random"}),
        ("", "", {"sampler": "random"}),
        ("", '[sampler]\nname = "tpe"', {"sampler": "random"}),
        ("", NAMED_SAMPLER, {}),
    ],
)
def test_a_sampler_that_ignores_no_setting_gives_no_warning(
    tmp_path: Path, before: str, after: str, overrides: dict[str, object]
) -> None:
    assert StudyConfig.load(write_study(tmp_path, before, after), overrides).warnings == ()


def test_another_pruner_gives_a_warning_with_the_settings_that_it_ignores(tmp_path: Path) -> None:
    path = write_study(tmp_path, after="[pruner]\nmin_epochs = 2")
    (line,) = StudyConfig.load(path, {"pruner": "median"}).warnings
    for text in ("pruner.min_epochs", "'halving'", "'median'"):
        assert text in line


# ------------------------------------------------------------------------------- with real training

SMALL_STUDY = """
name = "small"

[data]
train_images = 600
validation = 500

[budget]
trials = 3
epochs = 1

[sampler]
name = "tpe"
startup_trials = 2

[pruner]
name = "none"

[space.common]
batch_size = [50, 100]
optimizer.learning_rate = { low = 3e-3, high = 3e-2, log = true }

[space.mlp]
depth = 1
width = { low = 16, high = 32 }

[finalists]
recipes = 0
seeds = 1
epochs = 1
images = "slice"
refit = "none"

[execution]
workers = 1
threads = 1
precision = "float32"
"""
LEARNING_RATE = "optimizer.learning_rate"


def make_client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def study_and_trial_runs(folder: Path, study: str) -> tuple[Run, list[Run]]:
    """The run of a study and those of its trials, in their order."""
    client = make_client(folder)
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    found = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags.get("study") == study]
    (study_run,) = (run for run in found if run.data.tags["kind"] == "study")
    trials = [run for run in found if run.data.tags["kind"] == "trial"]
    return study_run, sorted(trials, key=lambda run: int(run.data.tags["trial"]))


def load_store(folder: Path, name: str = "small") -> StudyStore:
    return StudyStore.load(f"sqlite:///{folder / 'fmnist-search' / 'optuna.db'}", name)


def set_options(**values: Any) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """The small study with a champion."""
    folder = tmp_path_factory.mktemp("starts")
    (folder / "small.toml").write_text(SMALL_STUDY)
    outcome = run_command(folder, "search", "small.toml", "--set", "finalists.recipes=1")
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)


@dataclass(frozen=True)
class OwnStudy:
    """A study that one test uses, in the shared folder, whose stores exist already."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.toml"

    @property
    def trials(self) -> list[TrialRecord]:
        return load_store(self.folder, self.name).trial_records()

    def search(self, *options: object) -> CommandResult:
        return run_command(self.folder, "search", self.path.name, *options)

    def messages(self, *options: object) -> list[str]:
        """Run a search, and return its messages about the study, line by line."""
        outcome = self.search(*options)
        assert outcome.exit_code == 0, outcome.stderr
        prefix = f"{self.name}: "
        return [line.removeprefix(prefix) for line in outcome.stderr.splitlines() if line.startswith(prefix)]


@pytest.fixture
def own(finished: FinishedStudy, tmp_path: Path) -> OwnStudy:
    made = OwnStudy(finished.folder, tmp_path.name)
    made.path.write_text(SMALL_STUDY.replace('name = "small"', f'name = "{made.name}"', 1))
    return made


def write_follow_up(folder: Path, name: str, start: str) -> Path:
    """Write a study file in a folder of its own, like the small one except for its name and its starts."""
    plans = folder / "plans"
    plans.mkdir(exist_ok=True)
    path = plans / f"{name}.toml"
    path.write_text(SMALL_STUDY.replace('name = "small"', f'name = "{name}"', 1) + start)
    return path


def test_a_study_starts_with_files_tables_studies_and_the_champion(finished: FinishedStudy) -> None:
    folder = finished.folder
    best, champion = load_store(folder), finished.run("status", "small", "--json").json["champion"]
    best_record = max(best.trial_records(), key=lambda record: record.value or 0.0)
    from_file = best_record.recipe.replace({"optimizer.learning_rate": 0.011, "batch_size": 100, "epochs": 7})
    start = '[start]\nrecipes = ["good.toml", { model.width = 20, batch_size = 50 }, "study:small", "champion"]\n'
    write_follow_up(folder, "next", start)
    (folder / "plans" / "good.toml").write_text(recipe_to_toml(from_file))

    outcome = finished.run("search", "plans/next.toml", "--trials", 4)
    assert outcome.exit_code == 0, outcome.stderr
    messages = outcome.stderr.splitlines()
    sources = ["plans/good.toml", "table 2", "the best of small", "champion"]
    for number, source in enumerate(sources):
        assert any(line.startswith("next: ") and line.endswith(f"{source} is tried first") for line in messages), number

    records = load_store(folder, "next").trial_records()
    assert searched_values(records[0].recipe) == searched_values(from_file)
    assert records[0].recipe.epochs == 1
    assert (records[1].recipe.to_flat_dict()["model.width"], records[1].recipe.batch_size) == (20, 50)
    assert searched_values(records[2].recipe) == searched_values(best_record.recipe)
    # The best recipe was the champion's: it is a duplicate and not trained again.
    assert champion["recipe"]["model.width"] == records[2].recipe.to_flat_dict()["model.width"]
    assert records[3].duplicate_of == records[2].number
    _, trials = study_and_trial_runs(folder, "next")
    assert [trial.data.tags.get("start") for trial in trials] == [*sources[:3], None]

    again = finished.run("search", "plans/next.toml", "--trials", 5)
    assert again.exit_code == 0
    assert "is tried first" not in again.stderr
    assert len(study_and_trial_runs(folder, "next")[1]) == 5


def test_a_start_outside_the_space_is_refused_or_tried_as_the_study_says(finished: FinishedStudy) -> None:
    folder = finished.folder
    write_follow_up(folder, "further", "")
    assert finished.run("search", "plans/further.toml", "--trials", 1).exit_code == 0
    before, (run_before, _) = load_store(folder, "further").trial_records(), study_and_trial_runs(folder, "further")

    path = folder / "plans" / "large.toml"
    changes = {"model.width": 64, "label_smoothing": 0.2}  # the space has other widths, and no label smoothing
    path.write_text(recipe_to_toml(before[0].recipe.replace(changes)))
    refused = finished.run("search", "plans/further.toml", "--trials", 2, "--start", "plans/large.toml")
    assert refused.exit_code == 2
    assert len(refused.errors) == len(changes)
    (line,) = (line for line in refused.errors if "model.width" in line)
    for text in ("start.recipes", "plans/large.toml", "model.width = 64", "16 to 32", "start.outside = 'try'"):
        assert text in line
    assert load_store(folder, "further").trial_records() == before
    assert study_and_trial_runs(folder, "further")[0].info.status == run_before.info.status == "FINISHED"
    names = [row["study"] for row in finished.run("studies", "list", "plans", "--json").json]
    fresh = finished.run("search", "plans/further.toml", "--fresh", "--start", "plans/large.toml")
    assert fresh.errors == refused.errors
    assert [row["study"] for row in finished.run("studies", "list", "plans", "--json").json] == names

    tried = finished.run(
        "search", "plans/further.toml", "--trials", 2, "--start", "plans/large.toml", "--set", "start.outside=try"
    )
    assert tried.exit_code == 0
    assert "plans/large.toml is tried first, outside the space: model.width = 64" in tried.stderr
    record = load_store(folder, "further").trial_records()[1]
    assert searched_values(record.recipe) == searched_values(before[0].recipe.replace(changes))
    board = finished.run("leaderboard", "further").stdout
    assert "mlp 64" in board
    _assert_label_smoothing_is_shown(finished, "further")
    assert finished.run("search", "plans/further.toml", "--trials", 2).exit_code == 0  # without the start recipe
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment(study_and_trial_runs(folder, "further")[0].info.experiment_id)
    assert "params.`label_smoothing`" in experiment.tags[VIEW_TAG]
    found = {entry["number"]: entry for entry in finished.run("leaderboard", "further", "--json").json}
    assert found[1]["recipe"]["model.width"] == 64
    assert found[1]["value"] == record.value


def _assert_label_smoothing_is_shown(finished: FinishedStudy, study: str) -> None:
    """Assert that every view of a study shows what tells trial 1 from trial 0, which the space does not let vary."""
    header, *rows = finished.run("leaderboard", study).stdout.splitlines()
    assert header.split()[-1] == "label_smoothing"
    assert sorted(row.split()[-1] for row in rows) == ["0", "0.2"]
    for number, value in (("0", "0.0"), ("1", "0.2")):
        lines = finished.run("show", number, "--study", study).stdout.splitlines()
        assert ["label_smoothing", value] in [line.split() for line in lines]
    assert finished.run("studies", "export", study, "--output", "shown").exit_code == 0
    trials = list(csv.DictReader((finished.folder / "shown" / "trials.csv").read_text().splitlines()))
    assert [float(trial["label_smoothing"]) for trial in sorted(trials, key=lambda trial: trial["trial"])] == [0.0, 0.2]
    assert "label_smoothing" in (finished.folder / "shown" / "note.md").read_text()
    run, trial_runs = study_and_trial_runs(finished.folder, study)
    assert trial_runs[1].data.params["label_smoothing"] == "0.2"
    assert "| label_smoothing |" in run.data.tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("given_start", "texts"),
    [
        ("nowhere.toml", ["nowhere.toml: no such file"]),
        ("study:samll", ["samll", "did you mean 'small'"]),
        ("preset:lenett", ["'lenett'", "did you mean 'lenet'"]),
        ("champion", ["'missing_model' has no champion yet"]),
    ],
)
def test_a_missing_start_is_named_and_no_study_is_created(
    finished: FinishedStudy, given_start: str, texts: list[str]
) -> None:
    write_follow_up(finished.folder, "missing", "")
    missing_model = ["--set", "finalists.model_name=missing_model"]
    outcome = finished.run("search", "plans/missing.toml", "--start", given_start, *missing_model)
    assert outcome.exit_code == 2
    (line,) = outcome.errors
    assert all(text in line for text in texts)
    assert "does not exist here" in finished.run("status", "missing").stderr
    listed = {row["study"]: row["trials"] for row in finished.run("studies", "list", "plans", "--json").json}
    assert listed["missing"] is None


def test_a_table_cannot_have_values_that_are_constant_in_a_study(finished: FinishedStudy) -> None:
    write_follow_up(finished.folder, "decided", "[start]\nrecipes = [{ epochs = 5, model.depth = 1 }]\n")
    outcome = finished.run("search", "plans/decided.toml")
    assert outcome.exit_code == 2
    (line,) = outcome.errors
    assert "start.recipes: table 1: epochs: is the same in all trials of a study; leave it out" in line


def test_a_fresh_study_may_start_with_the_best_recipe_of_the_archived_one(own: OwnStudy) -> None:
    own.messages("--trials", 1)
    (old,) = own.trials
    messages = own.messages("--trials", 1, "--fresh", "--start", f"study:{own.name}")
    assert f"the best of {own.name} is tried first" in messages
    (new,) = own.trials
    assert searched_values(new.recipe) == searched_values(old.recipe)


def test_a_promotion_ignores_starts_and_refits_on_all_images(finished: FinishedStudy) -> None:
    study = write_follow_up(finished.folder, "gone", '[start]\nrecipes = ["brief.toml"]\n')
    large_batches = study.read_text().replace("batch_size = [50, 100]", "batch_size = 600")
    study.write_text(large_batches.replace('refit = "none"', 'refit = "everything"'))
    brief = finished.folder / "plans" / "brief.toml"
    first = load_store(finished.folder).trial_records()[0].recipe
    brief.write_text(recipe_to_toml(first.replace({"batch_size": 600})))
    assert finished.run("search", "plans/gone.toml", "--trials", 1).exit_code == 0
    brief.unlink()
    outcome = finished.run("promote", "gone", "--recipes", 1, "--seeds", 1, "--epochs", 1)
    assert outcome.exit_code == 0, outcome.stderr
    assert "tried first" not in outcome.stderr
    client = make_client(finished.folder)
    newest = max(client.search_model_versions("name='fmnist-search'"), key=lambda version: int(version.version))
    assert client.get_run(newest.run_id).data.params["data.validation"] == "0"  # refitted on all images


STOP_CASES = [
    (
        {"budget__target": 0.05, "budget__trials": 4, "budget__trial_minutes": 60.0},
        "target",
        "its target accuracy is reached",
    ),
    (
        {"budget__total_epochs": 3, "budget__epochs": 2, "budget__trials": 40},
        "epochs",
        "its budget of epochs is spent",
    ),
]


@pytest.mark.parametrize(("options", "tag", "words"), STOP_CASES, ids=[tag for _, tag, _ in STOP_CASES])
def test_the_limit_that_ends_a_study_is_reported_and_stored(
    own: OwnStudy, options: dict[str, Any], tag: str, words: str
) -> None:
    arguments = set_options(**options)
    messages = own.messages(*arguments)
    records = own.trials
    assert f"{len(records)} new trials; {words}" in messages
    assert words in run_command(own.folder, "status", own.name).stdout
    assert run_command(own.folder, "status", own.name, "--json").json["ended_by"] == tag
    assert study_and_trial_runs(own.folder, own.name)[0].data.tags["ended_by"] == tag
    assert_stopped_on_time(tag, records)

    assert f"nothing left to do; {words}" in own.messages(*arguments)
    assert own.trials == records


def assert_stopped_on_time(tag: str, records: list[TrialRecord]) -> None:
    """Assert that the study ended with the trial that reached the limit; test_stopping.py has all limits."""
    if tag == "target":
        assert [record.state for record in records] == [TrialState.COMPLETED]
    else:
        assert [record.epochs for record in records] == [2, 2]


def test_a_trial_that_has_used_its_minutes_is_pruned_with_that_reason(own: OwnStudy) -> None:
    options = {"budget__trial_minutes": 1e-9, "budget__epochs": 3, "budget__trials": 1}
    outcome = own.search(*set_options(**options))
    assert outcome.exit_code == 3  # nothing has completed
    (record,) = own.trials
    assert (record.state, record.epochs) == (TrialState.PRUNED, 1)
    assert record.reason == "its 1e-09 minutes were spent after epoch 1"
    study_run, (trial,) = study_and_trial_runs(own.folder, own.name)
    assert trial.data.tags["reason"] == record.reason
    assert study_run.data.tags["ended_by"] == "trials"


@pytest.mark.slow
def test_a_continued_study_takes_wider_ranges_and_other_samplers_and_reports_them(own: OwnStudy) -> None:
    two = ("--trials", 2)
    own.messages(*two)
    records = own.trials
    wider = ("--set", f"{LEARNING_RATE}={{ low = 1e-3, high = 3e-2, log = true }}")
    line = f"space.common.{LEARNING_RATE} is wider now: 0.001 to 0.03, log; it was 0.003 to 0.03, log"
    assert line in own.messages(*two, *wider)

    for domain in ("{ low = 3e-3, high = 3e-2, log = true }", "{ low = 1e-3, high = 2e-2, log = true }", "[0.01]"):
        refused = own.search(*two, "--set", f"{LEARNING_RATE}={domain}")
        assert_single_error(refused, f"space.common.{LEARNING_RATE}: is ", "a range may be widened, nothing else")
    refused = own.search(*two, *wider, "--set", "batch_size=[50, 100, 200]")
    assert_single_error(refused, "space.common.batch_size: is 50, 100, 200 now and was 50, 100")
    assert own.trials == records

    ignored = "sampler.startup_trials belongs to 'tpe' and does nothing for 'random'"
    assert ignored in own.messages(*two, *wider, "--sampler", "random")
    assert "cmaes samples independently: batch_size" in own.messages(*two, *wider, "--sampler", "cmaes")
    # No hyperparameter of this space is conditional, so the Gaussian process samples all of them.
    assert not any("samples independently" in line for line in own.messages(*two, *wider, "--sampler", "gp"))
    assert own.trials == records


def assert_single_error(outcome: CommandResult, *texts: str) -> None:
    assert outcome.exit_code == 2
    (line,) = outcome.errors
    assert all(text in line for text in texts)


def test_one_epoch_trains_the_best_candidates_in_full(own: OwnStudy) -> None:
    options = ["--trials", 5, "--set", "budget.epochs=3", "--pruner", "one-epoch", "--set", "pruner.survivors=2"]
    own.messages(*options)
    records = own.trials
    candidates, survivors = records[:3], records[3:]
    assert [(record.state, record.epochs) for record in candidates] == [(TrialState.PRUNED, 1)] * 3
    assert [(record.state, record.epochs) for record in survivors] == [(TrialState.COMPLETED, 3)] * 2
    best = sorted(candidates, key=lambda record: (-(record.value or 0.0), record.number))[:2]
    assert [record.recipe for record in survivors] == [record.recipe for record in best]
    # The same seed on the same thread: the first epoch is the candidate's own.
    assert [record.curve[0] for record in survivors] == [record.value for record in best]
    study_run, trials = study_and_trial_runs(own.folder, own.name)
    assert [trial.data.tags.get("survivor_of") for trial in trials[3:]] == [str(record.number) for record in best]
    assert study_run.data.tags["ended_by"] == "trials"
    assert "nothing left to do; its budget of trials is spent" in own.messages(*options)


def test_a_grid_search_ends_by_itself_and_needs_no_budget(own: OwnStudy) -> None:
    steps = "low = 0.01, high = 0.02, step = 0.01"
    text = own.path.read_text().replace("low = 3e-3, high = 3e-2, log = true", steps).replace("trials = 3\n", "")
    own.path.write_text(text.replace("{ low = 16, high = 32 }", "16"))
    assert "4 new trials; its space is exhausted" in own.messages("--sampler", "grid")
    records = own.trials
    assert {(record.recipe.batch_size, record.recipe.optimizer.learning_rate) for record in records} == {
        (size, rate) for size in (50, 100) for rate in (0.01, 0.02)
    }
    assert len(records) == 4
    assert study_and_trial_runs(own.folder, own.name)[0].data.tags["ended_by"] == "exhausted"
    assert "nothing left to do; its space is exhausted" in own.messages("--sampler", "grid")
    # Another sampler needs a limit.
    assert "budget: a study needs an end" in own.search("--sampler", "random").stderr
