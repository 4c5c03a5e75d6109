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

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.config.toml_files import recipe_to_toml
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.results.study import EpochReport, State, TrialResult, TrialRow
from fmnist_search.search.study_store import Conditions, Ledger
from fmnist_search.search.suggest import base_recipe, sample, searchable
from tests.integration.conftest import Finished, Outcome, run
from tests.support.studies import space_tables, study

# ------------------------------------------------------------------------- starts, without training

RATE = {"low": 1e-3, "high": 1e-1, "log": True}
SPACE: dict[str, Any] = {
    "common": {"batch_size": [64, 128], "optimizer.learning_rate": RATE, "label_smoothing": {"low": 0.0, "high": 0.4}},
    "cnn": {"depth": [1, 2, 3], "width_1": [8, 16], "width_2": [16, 32], "width_3": [32, 64]},
}
INSIDE = {"batch_size": 64, "optimizer.learning_rate": 0.02, "model.depth": 2, "model.width_1": 16, "model.width_2": 32}
OUTSIDE = {**INSIDE, "batch_size": 100, "augmentation.shift": 2}


def configured(space: dict[str, Any] | None = None, *, outside: str = "refuse", **tables: Any) -> StudyConfig:
    return study(space or SPACE, start={"outside": outside}, **{"pruner": "none", **tables})


def opened(config: StudyConfig, stored: optuna.Study | None = None) -> Ledger:
    """The ledger of a study in memory, as after a restart where the study is given."""
    ledger = Ledger(stored or optuna.create_study(study_name="small", direction="maximize"), config)
    ledger.conditions = Conditions(Execution(), "float32")
    return ledger


def ended(ledger: Ledger, state: State = State.COMPLETED, *accuracies: float) -> TrialRow:
    """The next trial, ended so."""
    trial, _ = ledger.ask()
    reports = tuple(EpochReport(n, 1.0, 0.5, 1.0, a, 0.01, 1.0) for n, a in enumerate(accuracies or (0.5,), 1))
    for report in reports:
        if ledger.should_prune(trial, report):
            state, reports = State.PRUNED, reports[: report.epoch]
            break
    return ledger.tell(trial, TrialResult(state, reports, 1.0), "run")


def searched_values(recipe: Recipe) -> dict[str, Any]:
    return searchable(recipe.flat())


def test_a_whole_recipe_is_tried_first_with_what_the_study_decides_for_all() -> None:
    given_recipe = Recipe().replace({**INSIDE, "epochs": 50, "seed": 5, "data.seed": 9, "precision": "bfloat16"})
    ledger = opened(configured(budget={"trials": 5, "epochs": 3}))
    assert ledger.start_with("best.toml", given_recipe.flat()) == "best.toml is tried first"
    first, second = ended(ledger), ended(ledger)
    assert searched_values(first.recipe) == searched_values(given_recipe)
    assert (first.recipe.epochs, first.recipe.data.seed, first.recipe.precision) == (3, 0, "float32")
    assert first.recipe.seed not in (5, second.recipe.seed)
    assert first.recipe.key() != second.recipe.key()


def test_of_a_table_what_is_given_is_tried_and_the_rest_is_drawn() -> None:
    ledger = opened(configured())
    tables = [{"optimizer.learning_rate": rate} for rate in (0.01, 0.02, 0.03)]
    for number, table in enumerate(tables, 1):
        assert ledger.start_with(f"table {number}", table) == f"table {number} is tried first"
    recipes = [ended(ledger).recipe for _ in tables]
    assert [recipe.optimizer.learning_rate for recipe in recipes] == [0.01, 0.02, 0.03]
    assert len({recipe.label_smoothing for recipe in recipes}) == 3
    assert all(0 <= recipe.label_smoothing <= 0.4 for recipe in recipes)


@settings(max_examples=40)
@given(space_tables(largest=200), st.integers(0, 2**31))
def test_what_a_study_has_drawn_another_of_the_same_space_can_start_with(table: dict[str, Any], seed: int) -> None:
    config = configured(table)
    drawn = sample(
        optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask(),
        config.space,
        base_recipe(config, "float32"),
        seed,
    )
    ledger = opened(config)
    assert ledger.start_with("study:other", drawn.flat()) == "study:other is tried first"
    assert ended(ledger).recipe.key() == drawn.key()


def test_a_width_that_was_left_to_its_default_is_inside() -> None:
    # In a space 0 asks for the default of a block; the recipe says what that is.
    ledger = opened(configured({"cnn": {"width_1": [0, 64], "kernel_1": [0, 7]}}))
    ledger.start_with("study:other", Recipe().flat())
    model = ended(ledger).recipe.flat()
    assert (model["model.width_1"], model["model.kernel_1"]) == (32, 3)


def test_a_recipe_from_outside_is_refused_with_a_line_for_each_value_and_the_study_is_as_before() -> None:
    ledger = opened(configured())
    row = ended(ledger)
    with pytest.raises(UserError) as caught:
        ledger.start_with("best.toml", Recipe().replace(OUTSIDE).flat())
    remedy = "widen the space, or try it all the same with start.outside = 'try'"
    assert sorted(caught.value.lines) == [
        f"start.recipes: best.toml: augmentation.shift = 2, and the space has 0; {remedy}",
        f"start.recipes: best.toml: batch_size = 100, and the space has 64, 128; {remedy}",
    ]
    assert ledger.rows() == [row]
    assert searched_values(ended(ledger).recipe) != searched_values(Recipe().replace(OUTSIDE))


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "qmc"])
def test_a_recipe_from_outside_is_tried_as_it_is_where_the_study_says_so(sampler: str) -> None:
    config = configured(outside="try", sampler=sampler)
    stored = optuna.create_study(study_name="small", direction="maximize")
    ledger = opened(config, stored)
    wanted = Recipe().replace(OUTSIDE)
    said = ledger.start_with("best.toml", wanted.flat())
    assert said is not None
    assert said.startswith("best.toml is tried first, outside the space: ")
    assert "batch_size = 100, and the space has 64, 128" in said
    row = ended(ledger, State.COMPLETED, 0.6, 0.9)
    assert searched_values(row.recipe) == searched_values(wanted)
    assert (row.state, row.value, row.curve) == (State.COMPLETED, 0.9, (0.6, 0.9))
    # The search goes on in its space, whatever the sampler makes of such a trial.
    later = [ended(opened(config, stored), State.COMPLETED, 0.5 + n / 100) for n in range(14)]
    assert all(row.recipe.batch_size in (64, 128) for row in later)
    assert opened(config, stored).rows() == [row, *later]


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_a_search_goes_on_after_the_same_recipe_from_outside_was_given_under_two_names(sampler: str) -> None:
    ledger = opened(configured(outside="try", sampler={"name": sampler, "startup_trials": 2}))
    for name in ("one.toml", "other.toml"):
        ledger.start_with(name, Recipe().replace(OUTSIDE).flat())
    first = ended(ledger)
    trial, recipe = ledger.ask()
    assert recipe.key() == first.recipe.key()
    assert ledger.tell_duplicate(trial, first).duplicate_of == first.number
    assert {ended(ledger).recipe.batch_size for _ in range(8)} <= {64, 128}


def test_of_a_table_from_outside_the_rest_is_drawn_as_well() -> None:
    common = {**SPACE["common"], "optimizer.name": "sgd"}
    ledger = opened(configured({**SPACE, "common": common}, outside="try"))
    for number, rate in enumerate((1.0, 2.0, 3.0), 1):
        ledger.start_with(f"table {number}", {"optimizer.learning_rate": rate})
    recipes = [ended(ledger).recipe for _ in range(3)]
    assert [recipe.optimizer.learning_rate for recipe in recipes] == [1.0, 2.0, 3.0]
    assert {recipe.optimizer.name for recipe in recipes} == {"sgd"}
    assert len({recipe.label_smoothing for recipe in recipes}) == 3
    assert all(0 <= recipe.label_smoothing <= 0.4 for recipe in recipes)
    assert {recipe.batch_size for recipe in recipes} <= {64, 128}


def test_a_table_from_outside_is_of_the_family_that_is_searched() -> None:
    ledger = opened(configured({"mlp": {"width": [64, 128], "dropout": 0.1}}, outside="try"))
    ledger.start_with("table 1", {"model.width": 100})
    model = ended(ledger).recipe.flat()
    assert (model["model.family"], model["model.width"], model["model.dropout"]) == ("mlp", 100, 0.1)


@pytest.mark.parametrize("families", [["mlp", "cnn"], ["cnn", "mlp"]], ids=str)
def test_a_table_that_names_a_hyperparameter_of_a_family_is_of_that_family(families: list[str]) -> None:
    space = {"common": {"family": families}, "mlp": {"width": [64, 128], "depth": [1, 2]}, "cnn": {"depth": [1, 2]}}
    for seed in range(4):
        ledger = opened(configured(space, seed=seed))
        ledger.start_with("table 1", {"model.width": 64, "model.depth": 2})
        ledger.start_with("table 2", {"model.family": "cnn", "model.depth": 2})
        recipes = [ended(ledger).recipe for _ in range(2)]
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
        ledger = opened(configured(pins, seed=seed))
        ledger.start_with("table 1", table)
        flat = ended(ledger).recipe.flat()
        assert {name: flat[name] for name in table} == table


def test_a_table_that_contradicts_a_pin_is_outside() -> None:
    ledger = opened(configured({"cnn": {"depth": 2, "width_1": [8, 16]}}))
    with pytest.raises(UserError, match=r"table 1: model\.depth = 3, and the space has 2; widen the space"):
        ledger.start_with("table 1", {"model.depth": 3})


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
    ledger = opened(configured(outside=outside))
    with pytest.raises(UserError) as caught:
        ledger.start_with("table 1", table)
    (line,) = caught.value.lines
    assert line.startswith("start.recipes: table 1: ")
    assert all(text in line for text in texts)


@pytest.mark.parametrize("values", [INSIDE, OUTSIDE], ids=["inside", "outside"])
def test_a_study_that_goes_on_does_not_try_it_again(values: dict[str, Any]) -> None:
    config = configured(outside="try")
    stored = optuna.create_study(study_name="small", direction="maximize")
    flat = Recipe().replace(values).flat()
    assert opened(config, stored).start_with("best.toml", flat)
    # Neither while it waits, nor after it was tried.
    assert opened(config, stored).start_with("best.toml", flat) is None
    ended(opened(config, stored))
    assert opened(config, stored).start_with("best.toml", flat) is None
    assert ended(opened(config, stored)).recipe.key() != opened(config, stored).rows()[0].recipe.key()
    # What has changed is another recipe.
    assert opened(config, stored).start_with("best.toml", {**flat, "optimizer.learning_rate": 0.03})


@pytest.mark.parametrize("values", [INSIDE, OUTSIDE, {"batch_size": 100}], ids=["inside", "outside", "partly"])
def test_a_start_that_was_interrupted_comes_again_as_it_was(values: dict[str, Any]) -> None:
    config = configured(outside="try")
    stored = optuna.create_study(study_name="small", direction="maximize")
    opened(config, stored).start_with("best.toml", values)
    attempts = [ended(opened(config, stored), State.INTERRUPTED, 0.3) for _ in range(2)]
    last = ended(opened(config, stored), State.COMPLETED, 0.3, 0.4)
    assert last.recipe == attempts[0].recipe == attempts[1].recipe


@pytest.mark.parametrize("values", [INSIDE, OUTSIDE], ids=["inside", "outside"])
def test_a_start_that_is_the_best_candidate_of_one_epoch_is_trained_in_full(values: dict[str, Any]) -> None:
    tables: dict[str, Any] = {"budget": {"trials": 5, "epochs": 3}, "pruner": {"name": "one-epoch", "survivors": 1}}
    ledger = opened(configured(outside="try", **tables))
    ledger.start_with("best.toml", Recipe().replace(values).flat())
    first, *others = (ended(ledger, State.COMPLETED, 0.9 - n / 10, 0.95, 0.96) for n in range(5))
    survivor = others.pop()
    assert [(row.state, row.epochs) for row in (first, *others)] == [(State.PRUNED, 1)] * 4
    assert (survivor.state, survivor.epochs) == (State.COMPLETED, 3)
    assert survivor.recipe == first.recipe


def test_a_grid_takes_no_recipe_again_that_it_was_started_with() -> None:
    space = {"common": {"batch_size": [64, 128]}, "cnn": {"depth": [1, 2], "width_2": [16, 32]}}
    ledger = opened(configured(space, outside="try", sampler="grid"))
    ledger.start_with("a.toml", Recipe().replace({"batch_size": 64, "model.depth": 2, "model.width_2": 32}).flat())
    ledger.start_with("b.toml", Recipe().replace({"batch_size": 100}).flat())
    rows = []
    while not ledger.is_exhausted:
        rows.append(ended(ledger))
    assert [row.recipe.batch_size for row in rows[:2]] == [64, 100]
    assert len({row.recipe.key() for row in rows}) == len(rows) == 2 * 3 + 1
    assert [row.recipe.batch_size for row in rows].count(100) == 1


# ------------------------------------------------------------------- ranges that grow, without training


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One storage for many studies: Optuna takes a quarter of a second for its tables."""
    return f"sqlite:///{tmp_path_factory.mktemp('widened') / 'optuna.db'}"


def with_domain(name: str, domain: Any, study_name: str) -> StudyConfig:
    group = "cnn" if name in ("depth", "width_1") else "common"
    return configured({**SPACE, group: {**SPACE[group], name: domain}}, name=study_name)


WIDENED = [
    ("optimizer.learning_rate", RATE, {**RATE, "high": 1.0}),
    ("optimizer.learning_rate", RATE, {**RATE, "low": 1e-4}),
    ("label_smoothing", {"low": 0.1, "high": 0.2}, {"low": 0.0, "high": 0.4}),
    ("depth", {"low": 1, "high": 2}, {"low": 1, "high": 4}),
    ("width_1", {"low": 16, "high": 32, "step": 8}, {"low": 8, "high": 48, "step": 8}),
]


@pytest.mark.parametrize(("name", "before", "after"), WIDENED)
def test_a_range_may_be_widened_while_a_study_lives(
    url: str, tmp_path: Path, name: str, before: Any, after: Any
) -> None:
    old, new = (with_domain(name, domain, tmp_path.name) for domain in (before, after))
    ledger = Ledger.open(url, old)
    ledger.conditions = Conditions(Execution(), "float32")
    rows = [ended(ledger) for _ in range(3)]
    assert Ledger.open(url, old).widened == []

    ledger = Ledger.open(url, new)
    key = next(key for key in dict(new.domains()) if key.endswith(f".{name}"))
    (line,) = ledger.widened
    assert line == f"{key} is wider now: {dict(new.domains())[key]}; it was {dict(old.domains())[key]}"
    assert ledger.rows() == rows
    assert Ledger.find(url, new.name).config == new
    # It is said once: the study has the wider range now, and never gives it up.
    assert Ledger.open(url, new).widened == []
    with pytest.raises(UserError):
        Ledger.open(url, old)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        *((name, after, before) for name, before, after in WIDENED),
        ("optimizer.learning_rate", RATE, {"low": 1e-3, "high": 1e-1}),
        ("optimizer.learning_rate", RATE, {**RATE, "low": 1e-2, "high": 1.0}),
        ("optimizer.learning_rate", RATE, [1e-3, 1e-2, 1e-1]),
        ("optimizer.learning_rate", RATE, 1e-2),
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
    old, new = (with_domain(name, domain, tmp_path.name) for domain in (before, after))
    Ledger.open(url, old)
    with pytest.raises(UserError) as caught:
        Ledger.open(url, new)
    (line,) = caught.value.lines
    key, domain = next((key, domain) for key, domain in new.domains() if key.endswith(f".{name}"))
    assert line.startswith(
        f"{key}: is {domain} now and was {dict(old.domains())[key]} when the study {new.name!r} began"
    )
    assert ("a range may be widened" in line) == isinstance(before, Mapping)
    assert "--name" in line
    assert "--fresh" in line
    assert Ledger.find(url, old.name).config == old


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "qmc"])
def test_every_sampler_draws_from_a_range_that_was_widened(sampler: str) -> None:
    stored = optuna.create_study(study_name="small", direction="maximize")
    settings_of = {"name": sampler} | ({"startup_trials": 2} if sampler in ("tpe", "gp", "cmaes") else {})
    narrow = configured({"common": {"label_smoothing": {"low": 0.0, "high": 0.1}}}, sampler=settings_of)
    wide = configured({"common": {"label_smoothing": {"low": 0.0, "high": 0.8}}}, sampler=settings_of)

    def play(config: StudyConfig, count: int) -> list[float]:
        ledger = opened(config, stored)
        drawn = []
        for _ in range(count):
            trial, recipe = ledger.ask()
            drawn.append(recipe.label_smoothing)
            report = EpochReport(1, 1.0, 0.5, 1.0, recipe.label_smoothing, 0.01, 1.0)
            ledger.should_prune(trial, report)
            ledger.tell(trial, TrialResult(State.COMPLETED, (report,), 1.0), "")
        return drawn

    assert max(play(narrow, 6)) <= 0.1
    assert max(play(wide, 12)) > 0.1


# ------------------------------------------------------------------------- samplers exchanged in a file

TUNED = """
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


def tuned(tmp_path: Path, before: str = "", after: str = "") -> Path:
    path = tmp_path / "tuned.toml"
    path.write_text(TUNED.format(before=before, after=after))
    return path


NAMED = '[sampler]\nname = "tpe"\nstartup_trials = 5\ncandidates = 9\n'
UNNAMED = "[sampler]\nstartup_trials = 5\ncandidates = 9\n"


@pytest.mark.parametrize("table", [NAMED, UNNAMED], ids=["named", "by default"])
def test_another_sampler_says_which_settings_it_leaves_behind(tmp_path: Path, table: str) -> None:
    config = StudyConfig.load(tuned(tmp_path, after=table), {"sampler": "random"})
    assert config.sampler.name == "random"
    (line,) = config.remarks
    for text in ("sampler.startup_trials", "sampler.candidates", "'tpe'", "'random'"):
        assert text in line


@pytest.mark.parametrize("table", [NAMED, UNNAMED], ids=["named", "by default"])
def test_the_sampler_that_the_file_has_keeps_its_settings(tmp_path: Path, table: str) -> None:
    path = tuned(tmp_path, after=table)
    config = StudyConfig.load(path, {"sampler": "tpe"})
    assert config == StudyConfig.load(path)
    assert config.sampler.model_dump() == {"name": "tpe", "startup_trials": 5, "candidates": 9}
    assert config.remarks == ()


@pytest.mark.parametrize(
    ("before", "after", "overrides"),
    [
        ('sampler = "tpe"', "", {"sampler": "random"}),
        ("", "", {"sampler": "random"}),
        ("", '[sampler]\nname = "tpe"', {"sampler": "random"}),
        ("", NAMED, {}),
    ],
)
def test_where_nothing_is_left_behind_nothing_is_said(
    tmp_path: Path, before: str, after: str, overrides: dict[str, object]
) -> None:
    assert StudyConfig.load(tuned(tmp_path, before, after), overrides).remarks == ()


def test_another_pruner_says_so_too(tmp_path: Path) -> None:
    path = tuned(tmp_path, after="[pruner]\nmin_epochs = 2")
    (line,) = StudyConfig.load(path, {"pruner": "median"}).remarks
    for text in ("pruner.min_epochs", "'halving'", "'median'"):
        assert text in line


# ------------------------------------------------------------------------------- with real training

SMALL = """
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
RATES = "optimizer.learning_rate"


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs_of(folder: Path, study: str) -> tuple[Run, list[Run]]:
    """The run of a study and those of its trials, in their order."""
    client = client_of(folder)
    experiment = client.get_experiment_by_name("fmnist-search")
    assert experiment is not None
    found = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags.get("study") == study]
    (whole,) = (run for run in found if run.data.tags["kind"] == "study")
    trials = [run for run in found if run.data.tags["kind"] == "trial"]
    return whole, sorted(trials, key=lambda run: int(run.data.tags["trial"]))


def ledger_of(folder: Path, name: str = "small") -> Ledger:
    return Ledger.find(f"sqlite:///{folder / 'fmnist-search' / 'optuna.db'}", name)


def settings_as_options(**values: Any) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The small study with a champion."""
    folder = tmp_path_factory.mktemp("starts")
    (folder / "small.toml").write_text(SMALL)
    outcome = run(folder, "search", "small.toml", "--set", "finalists.recipes=1")
    assert outcome.code == 0, outcome.stderr
    return Finished(folder, outcome)


@dataclass(frozen=True)
class Own:
    """A study of a test's own in the folder of all, whose stores are made already."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.toml"

    @property
    def rows(self) -> list[TrialRow]:
        return ledger_of(self.folder, self.name).rows()

    def search(self, *options: object) -> Outcome:
        return run(self.folder, "search", self.path.name, *options)

    def said(self, *options: object) -> list[str]:
        """What a search says of the study, line by line."""
        outcome = self.search(*options)
        assert outcome.code == 0, outcome.stderr
        prefix = f"{self.name}: "
        return [line.removeprefix(prefix) for line in outcome.stderr.splitlines() if line.startswith(prefix)]


@pytest.fixture
def own(finished: Finished, tmp_path: Path) -> Own:
    made = Own(finished.folder, tmp_path.name)
    made.path.write_text(SMALL.replace('name = "small"', f'name = "{made.name}"', 1))
    return made


def write_follow_up(folder: Path, name: str, start: str) -> Path:
    """A study file in a folder of its own, like the small one but for its name and what it starts with."""
    plans = folder / "plans"
    plans.mkdir(exist_ok=True)
    path = plans / f"{name}.toml"
    path.write_text(SMALL.replace('name = "small"', f'name = "{name}"', 1) + start)
    return path


def test_a_study_starts_with_files_tables_studies_and_the_champion(finished: Finished) -> None:
    folder = finished.folder
    best, champion = ledger_of(folder), finished.run("status", "small", "--json").json["champion"]
    best_row = max(best.rows(), key=lambda row: row.value or 0.0)
    from_file = best_row.recipe.replace({"optimizer.learning_rate": 0.011, "batch_size": 100, "epochs": 7})
    start = '[start]\nrecipes = ["good.toml", { model.width = 20, batch_size = 50 }, "study:small", "champion"]\n'
    write_follow_up(folder, "next", start)
    (folder / "plans" / "good.toml").write_text(recipe_to_toml(from_file))

    outcome = finished.run("search", "plans/next.toml", "--trials", 4)
    assert outcome.code == 0, outcome.stderr
    said = outcome.stderr.splitlines()
    sources = ["plans/good.toml", "table 2", "the best of small", "champion"]
    for number, source in enumerate(sources):
        assert any(line.startswith("next: ") and line.endswith(f"{source} is tried first") for line in said), number

    rows = ledger_of(folder, "next").rows()
    assert searched_values(rows[0].recipe) == searched_values(from_file)
    assert rows[0].recipe.epochs == 1
    assert (rows[1].recipe.flat()["model.width"], rows[1].recipe.batch_size) == (20, 50)
    assert searched_values(rows[2].recipe) == searched_values(best_row.recipe)
    # The best one was the champion's recipe: it is answered and not trained again.
    assert champion["recipe"]["model.width"] == rows[2].recipe.flat()["model.width"]
    assert rows[3].duplicate_of == rows[2].number
    _, trials = runs_of(folder, "next")
    assert [trial.data.tags.get("start") for trial in trials] == [*sources[:3], None]

    again = finished.run("search", "plans/next.toml", "--trials", 5)
    assert again.code == 0
    assert "is tried first" not in again.stderr
    assert len(runs_of(folder, "next")[1]) == 5


def test_a_recipe_from_outside_is_refused_or_tried(finished: Finished) -> None:
    folder = finished.folder
    write_follow_up(folder, "further", "")
    assert finished.run("search", "plans/further.toml", "--trials", 1).code == 0
    before, (run_before, _) = ledger_of(folder, "further").rows(), runs_of(folder, "further")

    path = folder / "plans" / "large.toml"
    path.write_text(recipe_to_toml(before[0].recipe.replace({"model.width": 64})))
    refused = finished.run("search", "plans/further.toml", "--trials", 2, "--start", "plans/large.toml")
    assert refused.code == 2
    (line,) = refused.errors
    for text in ("start.recipes", "plans/large.toml", "model.width = 64", "16 to 32", "start.outside = 'try'"):
        assert text in line
    assert ledger_of(folder, "further").rows() == before
    assert runs_of(folder, "further")[0].info.status == run_before.info.status == "FINISHED"
    names = [row["study"] for row in finished.run("studies", "list", "plans", "--json").json]
    fresh = finished.run("search", "plans/further.toml", "--fresh", "--start", "plans/large.toml")
    assert fresh.errors == refused.errors
    assert [row["study"] for row in finished.run("studies", "list", "plans", "--json").json] == names

    tried = finished.run(
        "search", "plans/further.toml", "--trials", 2, "--start", "plans/large.toml", "--set", "start.outside=try"
    )
    assert tried.code == 0
    assert "plans/large.toml is tried first, outside the space: model.width = 64" in tried.stderr
    row = ledger_of(folder, "further").rows()[1]
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
    finished: Finished, given_start: str, texts: list[str]
) -> None:
    write_follow_up(finished.folder, "vain", "")
    nobody = ["--set", "finalists.model_name=nobody"]
    outcome = finished.run("search", "plans/vain.toml", "--start", given_start, *nobody)
    assert outcome.code == 2
    (line,) = outcome.errors
    assert all(text in line for text in texts)
    assert "does not exist here" in finished.run("status", "vain").stderr
    listed = {row["study"]: row["trials"] for row in finished.run("studies", "list", "plans", "--json").json}
    assert listed["vain"] is None


def test_a_table_cannot_say_what_the_study_decides(finished: Finished) -> None:
    write_follow_up(finished.folder, "decided", "[start]\nrecipes = [{ epochs = 5, model.depth = 1 }]\n")
    outcome = finished.run("search", "plans/decided.toml")
    assert outcome.code == 2
    (line,) = outcome.errors
    assert "start.recipes: table 1: epochs: is the same in all trials of a study; leave it out" in line


def test_a_study_begun_anew_may_start_with_the_best_of_the_one_that_is_put_aside(own: Own) -> None:
    own.said("--trials", 1)
    (old,) = own.rows
    said = own.said("--trials", 1, "--fresh", "--start", f"study:{own.name}")
    assert f"the best of {own.name} is tried first" in said
    (new,) = own.rows
    assert searched_values(new.recipe) == searched_values(old.recipe)


def test_promoting_starts_nothing(finished: Finished) -> None:
    write_follow_up(finished.folder, "gone", '[start]\nrecipes = ["brief.toml"]\n')
    brief = finished.folder / "plans" / "brief.toml"
    brief.write_text(recipe_to_toml(ledger_of(finished.folder).rows()[0].recipe))
    assert finished.run("search", "plans/gone.toml", "--trials", 1).code == 0
    brief.unlink()
    outcome = finished.run("promote", "gone", "--recipes", 1, "--seeds", 1, "--epochs", 1)
    assert outcome.code == 0, outcome.stderr
    assert "tried first" not in outcome.stderr


ENDS = [
    ({"budget__target": 0.05, "budget__trials": 4}, "target", "its target accuracy is reached"),
    (
        {"budget__patience": 2, "budget__trials": 40},
        "patience",
        "its patience is at an end: no better trial in a while",
    ),
    (
        {"budget__total_epochs": 3, "budget__epochs": 2, "budget__trials": 40},
        "epochs",
        "its budget of epochs is spent",
    ),
]


@pytest.mark.parametrize(("options", "tag", "words"), ENDS, ids=[tag for _, tag, _ in ENDS])
def test_what_ends_a_study_is_said_and_on_record(own: Own, options: dict[str, Any], tag: str, words: str) -> None:
    arguments = settings_as_options(**options)
    said = own.said(*arguments)
    rows = own.rows
    assert f"{len(rows)} new trials; {words}" in said
    assert words in run(own.folder, "status", own.name).stdout
    assert run(own.folder, "status", own.name, "--json").json["ended_by"] == tag
    assert runs_of(own.folder, own.name)[0].data.tags["ended_by"] == tag
    assert_ended_in_time(tag, rows)

    assert f"nothing left to do; {words}" in own.said(*arguments)
    assert own.rows == rows


def assert_ended_in_time(tag: str, rows: list[TrialRow]) -> None:
    """Not a trial later than it had to be, and not one earlier."""
    values = [row.value or 0.0 for row in rows if row.duplicate_of is None]
    if tag == "target":
        assert len(values) == 1
    elif tag == "patience":
        assert values.index(max(values)) == len(values) - 1 - 2
        for end in range(3, len(values)):
            assert values[:end].index(max(values[:end])) > end - 3
    else:
        assert [row.epochs for row in rows] == [2, 2]


def test_a_trial_whose_minutes_are_spent_is_pruned_and_says_so(own: Own) -> None:
    options = {"budget__trial_minutes": 1e-9, "budget__epochs": 3, "budget__trials": 1}
    outcome = own.search(*settings_as_options(**options))
    assert outcome.code == 3  # nothing has completed
    (row,) = own.rows
    assert (row.state, row.epochs) == (State.PRUNED, 1)
    assert row.reason == "its 1e-09 minutes were spent after epoch 1"
    whole, (trial,) = runs_of(own.folder, own.name)
    assert trial.data.tags["reason"] == row.reason
    assert whole.data.tags["ended_by"] == "trials"


def test_a_trial_that_ends_within_its_minutes_completes(own: Own) -> None:
    assert own.search(*settings_as_options(budget__trial_minutes=60.0, budget__trials=1)).code == 0
    assert [row.state for row in own.rows] == [State.COMPLETED]


def test_a_study_that_goes_on_takes_wider_ranges_and_other_samplers_and_says_so(own: Own) -> None:
    two = ("--trials", 2)
    own.said(*two)
    rows = own.rows
    wider = ("--set", f"{RATES}={{ low = 1e-3, high = 3e-2, log = true }}")
    line = f"space.common.{RATES} is wider now: 0.001 to 0.03, log; it was 0.003 to 0.03, log"
    assert line in own.said(*two, *wider)

    for domain in ("{ low = 3e-3, high = 3e-2, log = true }", "{ low = 1e-3, high = 2e-2, log = true }", "[0.01]"):
        refused = own.search(*two, "--set", f"{RATES}={domain}")
        assert_refused_by_key(refused, f"space.common.{RATES}: is ", "a range may be widened, nothing else")
    refused = own.search(*two, *wider, "--set", "batch_size=[50, 100, 200]")
    assert_refused_by_key(refused, "space.common.batch_size: is 50, 100, 200 now and was 50, 100")
    assert own.rows == rows

    left_behind = "sampler.startup_trials belongs to 'tpe' and does nothing for 'random'"
    assert left_behind in own.said(*two, *wider, "--sampler", "random")
    assert "cmaes leaves to chance: batch_size" in own.said(*two, *wider, "--sampler", "cmaes")
    # Every recipe of this space has everything, which is all that a Gaussian process asks for.
    assert not any("chance" in line for line in own.said(*two, *wider, "--sampler", "gp"))
    assert own.rows == rows


def assert_refused_by_key(outcome: Outcome, *texts: str) -> None:
    assert outcome.code == 2
    (line,) = outcome.errors
    assert all(text in line for text in texts)


def test_one_epoch_trains_the_best_candidates_in_full(own: Own) -> None:
    options = ["--trials", 5, "--set", "budget.epochs=3", "--pruner", "one-epoch", "--set", "pruner.survivors=2"]
    own.said(*options)
    rows = own.rows
    candidates, survivors = rows[:3], rows[3:]
    assert [(row.state, row.epochs) for row in candidates] == [(State.PRUNED, 1)] * 3
    assert [(row.state, row.epochs) for row in survivors] == [(State.COMPLETED, 3)] * 2
    best = sorted(candidates, key=lambda row: (-(row.value or 0.0), row.number))[:2]
    assert [row.recipe for row in survivors] == [row.recipe for row in best]
    # The same seed on the same thread: the first epoch is the candidate's own.
    assert [row.curve[0] for row in survivors] == [row.value for row in best]
    whole, trials = runs_of(own.folder, own.name)
    assert [trial.data.tags.get("survivor_of") for trial in trials[3:]] == [str(row.number) for row in best]
    assert whole.data.tags["ended_by"] == "trials"
    assert "nothing left to do; its budget of trials is spent" in own.said(*options)


def test_a_grid_is_searched_to_its_end_and_needs_no_other_budget(own: Own) -> None:
    steps = "low = 0.01, high = 0.02, step = 0.01"
    text = own.path.read_text().replace("low = 3e-3, high = 3e-2, log = true", steps).replace("trials = 3\n", "")
    own.path.write_text(text.replace("{ low = 16, high = 32 }", "16"))
    assert "4 new trials; its space is exhausted" in own.said("--sampler", "grid")
    rows = own.rows
    assert {(row.recipe.batch_size, row.recipe.optimizer.learning_rate) for row in rows} == {
        (size, rate) for size in (50, 100) for rate in (0.01, 0.02)
    }
    assert len(rows) == 4
    assert runs_of(own.folder, own.name)[0].data.tags["ended_by"] == "exhausted"
    assert "nothing left to do; its space is exhausted" in own.said("--sampler", "grid")
    # Without the grid nothing would end it.
    assert "budget: a study needs an end" in own.search("--sampler", "random").stderr
