"""How a study starts and what ends it: recipes that are tried first, budgets, ranges that grow, samplers exchanged."""

from __future__ import annotations

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
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from fmnist_search.search.study_store import StudyRuntime, StudyStore
from fmnist_search.search.suggest import base_recipe, suggest_recipe
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
    """The ledger of a study in memory, as after a restart where the study is given."""
    ledger = StudyStore(optuna_study or optuna.create_study(study_name="small", direction="maximize"), config)
    ledger.runtime = StudyRuntime(Execution(), "float32")
    return ledger


def run_next_trial(
    study_store: StudyStore, state: TrialState = TrialState.COMPLETED, *accuracies: float
) -> TrialRecord:
    """The next trial, ended so."""
    trial = study_store.ask()
    reports = tuple(EpochReport(n, 1.0, 0.5, 1.0, a, 0.01, 1.0) for n, a in enumerate(accuracies or (0.5,), 1))
    for report in reports:
        if study_store.should_prune(trial, report):
            state, reports = TrialState.PRUNED, reports[: report.epoch]
            break
    return study_store.tell(trial, TrialResult(state, reports, 1.0), "run")


def searched_values(recipe: Recipe) -> dict[str, Any]:
    return searchable_values(recipe.to_flat_dict())


def test_a_whole_recipe_is_tried_first_with_what_the_study_decides_for_all() -> None:
    given_recipe = Recipe().replace({**VALUES_INSIDE, "epochs": 50, "seed": 5, "data.seed": 9, "precision": "bfloat16"})
    ledger = open_store(make_config(budget={"trials": 5, "epochs": 3}))
    assert ledger.enqueue_start("best.toml", given_recipe.to_flat_dict()) == "best.toml is tried first"
    first, second = run_next_trial(ledger), run_next_trial(ledger)
    assert searched_values(first.recipe) == searched_values(given_recipe)
    assert (first.recipe.epochs, first.recipe.data.seed, first.recipe.precision) == (3, 0, "float32")
    assert first.recipe.seed not in (5, second.recipe.seed)
    assert first.recipe.seed_independent_key() != second.recipe.seed_independent_key()


def test_of_a_table_what_is_given_is_tried_and_the_rest_is_drawn() -> None:
    ledger = open_store(make_config())
    tables = [{"optimizer.learning_rate": rate} for rate in (0.01, 0.02, 0.03)]
    for number, table in enumerate(tables, 1):
        assert ledger.enqueue_start(f"table {number}", table) == f"table {number} is tried first"
    recipes = [run_next_trial(ledger).recipe for _ in tables]
    assert [recipe.optimizer.learning_rate for recipe in recipes] == [0.01, 0.02, 0.03]
    assert len({recipe.label_smoothing for recipe in recipes}) == 3
    assert all(0 <= recipe.label_smoothing <= 0.4 for recipe in recipes)


@settings(max_examples=40)
@given(space_tables(largest=200), st.integers(0, 2**31))
def test_what_a_study_has_drawn_another_of_the_same_space_can_start_with(table: dict[str, Any], seed: int) -> None:
    config = make_config(table)
    drawn = suggest_recipe(
        optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask(),
        config.space,
        base_recipe(config, "float32"),
        seed,
    )
    ledger = open_store(config)
    assert ledger.enqueue_start("study:other", drawn.to_flat_dict()) == "study:other is tried first"
    assert run_next_trial(ledger).recipe.seed_independent_key() == drawn.seed_independent_key()


def test_a_width_that_was_left_to_its_default_is_inside() -> None:
    # In a space 0 asks for the default of a block; the recipe says what that is.
    ledger = open_store(make_config({"cnn": {"width_1": [0, 64], "kernel_1": [0, 7]}}))
    ledger.enqueue_start("study:other", Recipe().to_flat_dict())
    model = run_next_trial(ledger).recipe.to_flat_dict()
    assert (model["model.width_1"], model["model.kernel_1"]) == (32, 3)


def test_a_recipe_from_outside_is_refused_with_a_line_for_each_value_and_the_study_is_as_before() -> None:
    ledger = open_store(make_config())
    row = run_next_trial(ledger)
    with pytest.raises(UserError) as caught:
        ledger.enqueue_start("best.toml", Recipe().replace(VALUES_OUTSIDE).to_flat_dict())
    remedy = "widen the space, or allow it with start.outside = 'try'"
    assert sorted(caught.value.lines) == [
        f"start.recipes: best.toml: augmentation.shift = 2, and the space has 0; {remedy}",
        f"start.recipes: best.toml: batch_size = 100, and the space has 64, 128; {remedy}",
    ]
    assert ledger.trial_records() == [row]
    assert searched_values(run_next_trial(ledger).recipe) != searched_values(Recipe().replace(VALUES_OUTSIDE))


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "qmc"])
def test_a_recipe_from_outside_is_tried_as_it_is_where_the_study_says_so(sampler: str) -> None:
    config = make_config(outside="try", sampler=sampler)
    stored = optuna.create_study(study_name="small", direction="maximize")
    ledger = open_store(config, stored)
    wanted = Recipe().replace(VALUES_OUTSIDE)
    said = ledger.enqueue_start("best.toml", wanted.to_flat_dict())
    assert said is not None
    assert said.startswith("best.toml is tried first, outside the space: ")
    assert "batch_size = 100, and the space has 64, 128" in said
    row = run_next_trial(ledger, TrialState.COMPLETED, 0.6, 0.9)
    assert searched_values(row.recipe) == searched_values(wanted)
    assert (row.state, row.value, row.curve) == (TrialState.COMPLETED, 0.9, (0.6, 0.9))
    # The search goes on in its space, whatever the sampler makes of such a trial.
    later = [run_next_trial(open_store(config, stored), TrialState.COMPLETED, 0.5 + n / 100) for n in range(14)]
    assert all(row.recipe.batch_size in (64, 128) for row in later)
    assert open_store(config, stored).trial_records() == [row, *later]


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_a_search_goes_on_after_the_same_recipe_from_outside_was_given_under_two_names(sampler: str) -> None:
    ledger = open_store(make_config(outside="try", sampler={"name": sampler, "startup_trials": 2}))
    for name in ("one.toml", "other.toml"):
        ledger.enqueue_start(name, Recipe().replace(VALUES_OUTSIDE).to_flat_dict())
    first = run_next_trial(ledger)
    trial = ledger.ask()
    assert trial.recipe.seed_independent_key() == first.recipe.seed_independent_key()
    assert ledger.tell_duplicate(trial, first).duplicate_of == first.number
    assert {run_next_trial(ledger).recipe.batch_size for _ in range(8)} <= {64, 128}


def test_of_a_table_from_outside_the_rest_is_drawn_as_well() -> None:
    common = {**SPACE["common"], "optimizer.name": "sgd"}
    ledger = open_store(make_config({**SPACE, "common": common}, outside="try"))
    for number, rate in enumerate((1.0, 2.0, 3.0), 1):
        ledger.enqueue_start(f"table {number}", {"optimizer.learning_rate": rate})
    recipes = [run_next_trial(ledger).recipe for _ in range(3)]
    assert [recipe.optimizer.learning_rate for recipe in recipes] == [1.0, 2.0, 3.0]
    assert {recipe.optimizer.name for recipe in recipes} == {"sgd"}
    assert len({recipe.label_smoothing for recipe in recipes}) == 3
    assert all(0 <= recipe.label_smoothing <= 0.4 for recipe in recipes)
    assert {recipe.batch_size for recipe in recipes} <= {64, 128}


def test_a_table_from_outside_is_of_the_family_that_is_searched() -> None:
    ledger = open_store(make_config({"mlp": {"width": [64, 128], "dropout": 0.1}}, outside="try"))
    ledger.enqueue_start("table 1", {"model.width": 100})
    model = run_next_trial(ledger).recipe.to_flat_dict()
    assert (model["model.family"], model["model.width"], model["model.dropout"]) == ("mlp", 100, 0.1)


@pytest.mark.parametrize("families", [["mlp", "cnn"], ["cnn", "mlp"]], ids=str)
def test_a_table_that_names_a_hyperparameter_of_a_family_is_of_that_family(families: list[str]) -> None:
    space = {"common": {"family": families}, "mlp": {"width": [64, 128], "depth": [1, 2]}, "cnn": {"depth": [1, 2]}}
    for seed in range(4):
        ledger = open_store(make_config(space, seed=seed))
        ledger.enqueue_start("table 1", {"model.width": 64, "model.depth": 2})
        ledger.enqueue_start("table 2", {"model.family": "cnn", "model.depth": 2})
        recipes = [run_next_trial(ledger).recipe for _ in range(2)]
        assert [(recipe.model.family, len(recipe.model.widths)) for recipe in recipes] == [("mlp", 2), ("cnn", 2)]


@pytest.mark.parametrize(
    ("pins", "table"),
    [
        ({"common": {"optimizer.name": "sgd", "optimizer.nesterov": [True, False]}}, {"optimizer.nesterov": False}),
        ({"cnn": {"depth": 4, "width_4": [16, 32, 64]}}, {"model.width_4": 64}),
    ],
    ids=["nesterov of a pinned sgd", "width at a pinned depth"],
)
def test_a_table_counts_with_what_the_study_pins(pins: dict[str, Any], table: dict[str, Any]) -> None:
    for seed in range(5):
        ledger = open_store(make_config(pins, seed=seed))
        ledger.enqueue_start("table 1", table)
        flat = run_next_trial(ledger).recipe.to_flat_dict()
        assert {name: flat[name] for name in table} == table


def test_a_table_that_contradicts_a_pin_is_outside() -> None:
    ledger = open_store(make_config({"cnn": {"depth": 2, "width_1": [8, 16]}}))
    with pytest.raises(UserError, match=r"table 1: model\.depth = 3, and the space has 2; widen the space"):
        ledger.enqueue_start("table 1", {"model.depth": 3})


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
def test_a_table_that_is_no_recipe_is_refused_whatever_the_study_says(
    outside: str, table: dict[str, Any], texts: list[str]
) -> None:
    ledger = open_store(make_config(outside=outside))
    with pytest.raises(UserError) as caught:
        ledger.enqueue_start("table 1", table)
    (line,) = caught.value.lines
    assert line.startswith("start.recipes: table 1: ")
    assert all(text in line for text in texts)


@pytest.mark.parametrize("values", [VALUES_INSIDE, VALUES_OUTSIDE], ids=["inside", "outside"])
def test_a_study_that_goes_on_does_not_try_it_again(values: dict[str, Any]) -> None:
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
def test_a_start_that_was_interrupted_comes_again_as_it_was(values: dict[str, Any]) -> None:
    config = make_config(outside="try")
    stored = optuna.create_study(study_name="small", direction="maximize")
    open_store(config, stored).enqueue_start("best.toml", values)
    attempts = [run_next_trial(open_store(config, stored), TrialState.INTERRUPTED, 0.3) for _ in range(2)]
    last = run_next_trial(open_store(config, stored), TrialState.COMPLETED, 0.3, 0.4)
    assert last.recipe == attempts[0].recipe == attempts[1].recipe


@pytest.mark.parametrize("values", [VALUES_INSIDE, VALUES_OUTSIDE], ids=["inside", "outside"])
def test_a_start_that_is_the_best_candidate_of_one_epoch_is_trained_in_full(values: dict[str, Any]) -> None:
    tables: dict[str, Any] = {"budget": {"trials": 5, "epochs": 3}, "pruner": {"name": "one-epoch", "survivors": 1}}
    ledger = open_store(make_config(outside="try", **tables))
    ledger.enqueue_start("best.toml", Recipe().replace(values).to_flat_dict())
    first, *others = (run_next_trial(ledger, TrialState.COMPLETED, 0.9 - n / 10, 0.95, 0.96) for n in range(5))
    survivor = others.pop()
    assert [(row.state, row.epochs) for row in (first, *others)] == [(TrialState.PRUNED, 1)] * 4
    assert (survivor.state, survivor.epochs) == (TrialState.COMPLETED, 3)
    assert survivor.recipe == first.recipe


def test_a_grid_takes_no_recipe_again_that_it_was_started_with() -> None:
    space = {"common": {"batch_size": [64, 128]}, "cnn": {"depth": [1, 2], "width_2": [16, 32]}}
    ledger = open_store(make_config(space, outside="try", sampler="grid"))
    ledger.enqueue_start(
        "a.toml", Recipe().replace({"batch_size": 64, "model.depth": 2, "model.width_2": 32}).to_flat_dict()
    )
    ledger.enqueue_start("b.toml", Recipe().replace({"batch_size": 100}).to_flat_dict())
    rows = []
    while not ledger.is_exhausted:
        rows.append(run_next_trial(ledger))
    assert [row.recipe.batch_size for row in rows[:2]] == [64, 100]
    assert len({row.recipe.seed_independent_key() for row in rows}) == len(rows) == 2 * 3 + 1
    assert [row.recipe.batch_size for row in rows].count(100) == 1


# ------------------------------------------------------------------- ranges that grow, without training


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
def test_a_range_may_be_widened_while_a_study_lives(
    url: str, tmp_path: Path, name: str, before: Any, after: Any
) -> None:
    old, new = (config_with_domain(name, domain, tmp_path.name) for domain in (before, after))
    ledger = StudyStore.open(url, old)
    ledger.runtime = StudyRuntime(Execution(), "float32")
    rows = [run_next_trial(ledger) for _ in range(3)]
    assert StudyStore.open(url, old).widened_ranges == []

    ledger = StudyStore.open(url, new)
    key = next(key for key in dict(new.domains()) if key.endswith(f".{name}"))
    (line,) = ledger.widened_ranges
    assert line == f"{key} is wider now: {dict(new.domains())[key]}; it was {dict(old.domains())[key]}"
    assert ledger.trial_records() == rows
    assert StudyStore.load(url, new.name).config == new
    # It is said once: the study has the wider range now, and never gives it up.
    assert StudyStore.open(url, new).widened_ranges == []
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
def test_any_other_change_of_a_domain_is_refused_by_its_key(
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
def test_every_sampler_draws_from_a_range_that_was_widened(sampler: str) -> None:
    stored = optuna.create_study(study_name="small", direction="maximize")
    settings_of = {"name": sampler} | ({"startup_trials": 2} if sampler in ("tpe", "gp", "cmaes") else {})
    narrow = make_config({"common": {"label_smoothing": {"low": 0.0, "high": 0.1}}}, sampler=settings_of)
    wide = make_config({"common": {"label_smoothing": {"low": 0.0, "high": 0.8}}}, sampler=settings_of)

    def play(config: StudyConfig, count: int) -> list[float]:
        ledger = open_store(config, stored)
        drawn = []
        for _ in range(count):
            trial = ledger.ask()
            drawn.append(trial.recipe.label_smoothing)
            report = EpochReport(1, 1.0, 0.5, 1.0, trial.recipe.label_smoothing, 0.01, 1.0)
            ledger.should_prune(trial, report)
            ledger.tell(trial, TrialResult(TrialState.COMPLETED, (report,), 1.0), "")
        return drawn

    assert max(play(narrow, 6)) <= 0.1
    assert max(play(wide, 12)) > 0.1


# ------------------------------------------------------------------------- samplers exchanged in a file

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
def test_another_sampler_says_which_settings_it_leaves_behind(tmp_path: Path, table: str) -> None:
    config = StudyConfig.load(write_study(tmp_path, after=table), {"sampler": "random"})
    assert config.sampler.name == "random"
    (line,) = config.warnings
    for text in ("sampler.startup_trials", "sampler.candidates", "'tpe'", "'random'"):
        assert text in line


@pytest.mark.parametrize("table", [NAMED_SAMPLER, UNNAMED_SAMPLER], ids=["named", "by default"])
def test_the_sampler_that_the_file_has_keeps_its_settings(tmp_path: Path, table: str) -> None:
    path = write_study(tmp_path, after=table)
    config = StudyConfig.load(path, {"sampler": "tpe"})
    assert config == StudyConfig.load(path)
    assert config.sampler.model_dump() == {"name": "tpe", "startup_trials": 5, "candidates": 9}
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
def test_where_nothing_is_left_behind_nothing_is_said(
    tmp_path: Path, before: str, after: str, overrides: dict[str, object]
) -> None:
    assert StudyConfig.load(write_study(tmp_path, before, after), overrides).warnings == ()


def test_another_pruner_says_so_too(tmp_path: Path) -> None:
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
    (whole,) = (run for run in found if run.data.tags["kind"] == "study")
    trials = [run for run in found if run.data.tags["kind"] == "trial"]
    return whole, sorted(trials, key=lambda run: int(run.data.tags["trial"]))


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
    """A study of a test's own in the folder of all, whose stores are made already."""

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
        """What a search says of the study, line by line."""
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
    """A study file in a folder of its own, like the small one but for its name and what it starts with."""
    plans = folder / "plans"
    plans.mkdir(exist_ok=True)
    path = plans / f"{name}.toml"
    path.write_text(SMALL_STUDY.replace('name = "small"', f'name = "{name}"', 1) + start)
    return path


def test_a_study_starts_with_files_tables_studies_and_the_champion(finished: FinishedStudy) -> None:
    folder = finished.folder
    best, champion = load_store(folder), finished.run("status", "small", "--json").json["champion"]
    best_row = max(best.trial_records(), key=lambda row: row.value or 0.0)
    from_file = best_row.recipe.replace({"optimizer.learning_rate": 0.011, "batch_size": 100, "epochs": 7})
    start = '[start]\nrecipes = ["good.toml", { model.width = 20, batch_size = 50 }, "study:small", "champion"]\n'
    write_follow_up(folder, "next", start)
    (folder / "plans" / "good.toml").write_text(recipe_to_toml(from_file))

    outcome = finished.run("search", "plans/next.toml", "--trials", 4)
    assert outcome.exit_code == 0, outcome.stderr
    said = outcome.stderr.splitlines()
    sources = ["plans/good.toml", "table 2", "the best of small", "champion"]
    for number, source in enumerate(sources):
        assert any(line.startswith("next: ") and line.endswith(f"{source} is tried first") for line in said), number

    rows = load_store(folder, "next").trial_records()
    assert searched_values(rows[0].recipe) == searched_values(from_file)
    assert rows[0].recipe.epochs == 1
    assert (rows[1].recipe.to_flat_dict()["model.width"], rows[1].recipe.batch_size) == (20, 50)
    assert searched_values(rows[2].recipe) == searched_values(best_row.recipe)
    # The best one was the champion's recipe: it is answered and not trained again.
    assert champion["recipe"]["model.width"] == rows[2].recipe.to_flat_dict()["model.width"]
    assert rows[3].duplicate_of == rows[2].number
    _, trials = study_and_trial_runs(folder, "next")
    assert [trial.data.tags.get("start") for trial in trials] == [*sources[:3], None]

    again = finished.run("search", "plans/next.toml", "--trials", 5)
    assert again.exit_code == 0
    assert "is tried first" not in again.stderr
    assert len(study_and_trial_runs(folder, "next")[1]) == 5


def test_a_recipe_from_outside_is_refused_or_tried(finished: FinishedStudy) -> None:
    folder = finished.folder
    write_follow_up(folder, "further", "")
    assert finished.run("search", "plans/further.toml", "--trials", 1).exit_code == 0
    before, (run_before, _) = load_store(folder, "further").trial_records(), study_and_trial_runs(folder, "further")

    path = folder / "plans" / "large.toml"
    path.write_text(recipe_to_toml(before[0].recipe.replace({"model.width": 64})))
    refused = finished.run("search", "plans/further.toml", "--trials", 2, "--start", "plans/large.toml")
    assert refused.exit_code == 2
    (line,) = refused.errors
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
    row = load_store(folder, "further").trial_records()[1]
    assert searched_values(row.recipe) == searched_values(before[0].recipe.replace({"model.width": 64}))
    board = finished.run("leaderboard", "further").stdout
    assert "mlp 64" in board
    found = {entry["number"]: entry for entry in finished.run("leaderboard", "further", "--json").json}
    assert found[1]["recipe"]["model.width"] == 64
    assert found[1]["value"] == row.value


@pytest.mark.parametrize(
    ("given_start", "texts"),
    [
        ("nowhere.toml", ["nowhere.toml: no such file"]),
        ("study:samll", ["samll", "did you mean 'small'"]),
        ("preset:lenett", ["'lenett'", "did you mean 'lenet'"]),
        ("champion", ["'nobody' has no champion yet"]),
    ],
)
def test_a_start_that_is_not_there_is_named_and_no_study_begun(
    finished: FinishedStudy, given_start: str, texts: list[str]
) -> None:
    write_follow_up(finished.folder, "vain", "")
    nobody = ["--set", "finalists.model_name=nobody"]
    outcome = finished.run("search", "plans/vain.toml", "--start", given_start, *nobody)
    assert outcome.exit_code == 2
    (line,) = outcome.errors
    assert all(text in line for text in texts)
    assert "does not exist here" in finished.run("status", "vain").stderr
    listed = {row["study"]: row["trials"] for row in finished.run("studies", "list", "plans", "--json").json}
    assert listed["vain"] is None


def test_a_table_cannot_say_what_the_study_decides(finished: FinishedStudy) -> None:
    write_follow_up(finished.folder, "decided", "[start]\nrecipes = [{ epochs = 5, model.depth = 1 }]\n")
    outcome = finished.run("search", "plans/decided.toml")
    assert outcome.exit_code == 2
    (line,) = outcome.errors
    assert "start.recipes: table 1: epochs: is the same in all trials of a study; leave it out" in line


def test_a_study_begun_anew_may_start_with_the_best_of_the_one_that_is_put_aside(own: OwnStudy) -> None:
    own.messages("--trials", 1)
    (old,) = own.trials
    said = own.messages("--trials", 1, "--fresh", "--start", f"study:{own.name}")
    assert f"the best of {own.name} is tried first" in said
    (new,) = own.trials
    assert searched_values(new.recipe) == searched_values(old.recipe)


def test_promoting_starts_nothing(finished: FinishedStudy) -> None:
    study = write_follow_up(finished.folder, "gone", '[start]\nrecipes = ["brief.toml"]\n')
    study.write_text(study.read_text().replace('refit = "none"', 'refit = "everything"'))
    brief = finished.folder / "plans" / "brief.toml"
    brief.write_text(recipe_to_toml(load_store(finished.folder).trial_records()[0].recipe))
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
def test_what_ends_a_study_is_said_and_on_record(own: OwnStudy, options: dict[str, Any], tag: str, words: str) -> None:
    arguments = set_options(**options)
    said = own.messages(*arguments)
    rows = own.trials
    assert f"{len(rows)} new trials; {words}" in said
    assert words in run_command(own.folder, "status", own.name).stdout
    assert run_command(own.folder, "status", own.name, "--json").json["ended_by"] == tag
    assert study_and_trial_runs(own.folder, own.name)[0].data.tags["ended_by"] == tag
    assert_stopped_on_time(tag, rows)

    assert f"nothing left to do; {words}" in own.messages(*arguments)
    assert own.trials == rows


def assert_stopped_on_time(tag: str, rows: list[TrialRecord]) -> None:
    """Assert that the study ended with the trial that reached the limit; test_stopping.py has all limits."""
    if tag == "target":
        assert [row.state for row in rows] == [TrialState.COMPLETED]
    else:
        assert [row.epochs for row in rows] == [2, 2]


def test_a_trial_whose_minutes_are_spent_is_pruned_and_says_so(own: OwnStudy) -> None:
    options = {"budget__trial_minutes": 1e-9, "budget__epochs": 3, "budget__trials": 1}
    outcome = own.search(*set_options(**options))
    assert outcome.exit_code == 3  # nothing has completed
    (row,) = own.trials
    assert (row.state, row.epochs) == (TrialState.PRUNED, 1)
    assert row.reason == "its 1e-09 minutes were spent after epoch 1"
    whole, (trial,) = study_and_trial_runs(own.folder, own.name)
    assert trial.data.tags["reason"] == row.reason
    assert whole.data.tags["ended_by"] == "trials"


def test_a_study_that_goes_on_takes_wider_ranges_and_other_samplers_and_says_so(own: OwnStudy) -> None:
    two = ("--trials", 2)
    own.messages(*two)
    rows = own.trials
    wider = ("--set", f"{LEARNING_RATE}={{ low = 1e-3, high = 3e-2, log = true }}")
    line = f"space.common.{LEARNING_RATE} is wider now: 0.001 to 0.03, log; it was 0.003 to 0.03, log"
    assert line in own.messages(*two, *wider)

    for domain in ("{ low = 3e-3, high = 3e-2, log = true }", "{ low = 1e-3, high = 2e-2, log = true }", "[0.01]"):
        refused = own.search(*two, "--set", f"{LEARNING_RATE}={domain}")
        assert_single_error(refused, f"space.common.{LEARNING_RATE}: is ", "a range may be widened, nothing else")
    refused = own.search(*two, *wider, "--set", "batch_size=[50, 100, 200]")
    assert_single_error(refused, "space.common.batch_size: is 50, 100, 200 now and was 50, 100")
    assert own.trials == rows

    left_behind = "sampler.startup_trials belongs to 'tpe' and does nothing for 'random'"
    assert left_behind in own.messages(*two, *wider, "--sampler", "random")
    assert "cmaes samples independently: batch_size" in own.messages(*two, *wider, "--sampler", "cmaes")
    # Every recipe of this space has everything, which is all that a Gaussian process asks for.
    assert not any("samples independently" in line for line in own.messages(*two, *wider, "--sampler", "gp"))
    assert own.trials == rows


def assert_single_error(outcome: CommandResult, *texts: str) -> None:
    assert outcome.exit_code == 2
    (line,) = outcome.errors
    assert all(text in line for text in texts)


def test_one_epoch_trains_the_best_candidates_in_full(own: OwnStudy) -> None:
    options = ["--trials", 5, "--set", "budget.epochs=3", "--pruner", "one-epoch", "--set", "pruner.survivors=2"]
    own.messages(*options)
    rows = own.trials
    candidates, survivors = rows[:3], rows[3:]
    assert [(row.state, row.epochs) for row in candidates] == [(TrialState.PRUNED, 1)] * 3
    assert [(row.state, row.epochs) for row in survivors] == [(TrialState.COMPLETED, 3)] * 2
    best = sorted(candidates, key=lambda row: (-(row.value or 0.0), row.number))[:2]
    assert [row.recipe for row in survivors] == [row.recipe for row in best]
    # The same seed on the same thread: the first epoch is the candidate's own.
    assert [row.curve[0] for row in survivors] == [row.value for row in best]
    whole, trials = study_and_trial_runs(own.folder, own.name)
    assert [trial.data.tags.get("survivor_of") for trial in trials[3:]] == [str(row.number) for row in best]
    assert whole.data.tags["ended_by"] == "trials"
    assert "nothing left to do; its budget of trials is spent" in own.messages(*options)


def test_a_grid_is_searched_to_its_end_and_needs_no_other_budget(own: OwnStudy) -> None:
    steps = "low = 0.01, high = 0.02, step = 0.01"
    text = own.path.read_text().replace("low = 3e-3, high = 3e-2, log = true", steps).replace("trials = 3\n", "")
    own.path.write_text(text.replace("{ low = 16, high = 32 }", "16"))
    assert "4 new trials; its space is exhausted" in own.messages("--sampler", "grid")
    rows = own.trials
    assert {(row.recipe.batch_size, row.recipe.optimizer.learning_rate) for row in rows} == {
        (size, rate) for size in (50, 100) for rate in (0.01, 0.02)
    }
    assert len(rows) == 4
    assert study_and_trial_runs(own.folder, own.name)[0].data.tags["ended_by"] == "exhausted"
    assert "nothing left to do; its space is exhausted" in own.messages("--sampler", "grid")
    # Without the grid nothing would end it.
    assert "budget: a study needs an end" in own.search("--sampler", "random").stderr
