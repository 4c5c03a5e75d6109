"""The ledger keeps a study: what went in comes out, what was interrupted comes again, and nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.champion import Champion, ConfirmedScore
from fmnist_search.results.statistics import wilson
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_store import StudyRuntime, StudyStore
from tests.support.studies import SMALL_SPACE, make_study

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

RUNTIME = StudyRuntime(Execution(device="cpu", threads=1), "float32")
TWO_FAMILY_SPACE: dict[str, Any] = {
    "common": {"family": ["cnn", "mlp"], "optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
    "cnn": {"depth": [1, 2, 3], "width_3": [8, 16], "dropout": {"low": 0.1, "high": 0.5}},
    "mlp": {"depth": {"low": 1, "high": 4}, "dropout": [0.1, 0.2]},
}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage without studies, made once: Optuna takes a quarter of a second for its tables."""
    path = tmp_path_factory.mktemp("empty") / "optuna.db"
    open_storage(f"sqlite:///{path}")
    return path


@pytest.fixture
def url(empty: Path, tmp_path: Path) -> str:
    # A copy by SQLite itself: a part of the database may still stand in its log.
    with closing(sqlite3.connect(empty)) as template, closing(sqlite3.connect(tmp_path / "optuna.db")) as copy:
        template.backup(copy)
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def open_store(url: str, config: StudyConfig, **options: Any) -> StudyStore:
    ledger = StudyStore.open(url, config, **options)
    ledger.runtime = RUNTIME
    return ledger


def make_result(state: TrialState, *accuracies: float, reason: str | None = None) -> TrialResult:
    """What a trial of so many epochs leaves."""
    epochs = tuple(EpochReport(n, 1.0, 0.5, 1.0, value, 0.1, 0.25) for n, value in enumerate(accuracies, 1))
    return TrialResult(state, epochs, seconds=0.25 * len(epochs), reason=reason)


def run_trial(study_store: StudyStore, state: TrialState, *accuracies: float, reason: str | None = None) -> TrialRecord:
    """One trial that reports its epochs and ends so."""
    asked = study_store.ask()
    result = make_result(state, *accuracies, reason=reason)
    for report in result.epochs:
        study_store.should_prune(asked, report)
    return study_store.tell(asked, result, f"run-{asked.number}")


def run_one_of_each_state(study_store: StudyStore) -> list[TrialRecord]:
    """A trial of every kind."""
    completed = run_trial(study_store, TrialState.COMPLETED, 0.5, 0.6, 0.55)
    pruned = run_trial(study_store, TrialState.PRUNED, 0.3, 0.2, reason="pruned after epoch 2")
    failed = run_trial(study_store, TrialState.FAILED, 0.3, reason="diverged: the loss of epoch 2 is not finite")
    hopeless = run_trial(study_store, TrialState.FAILED, reason="out of memory")
    asked = study_store.ask()
    duplicate = study_store.tell_duplicate(asked, completed)
    interrupted = run_trial(study_store, TrialState.INTERRUPTED, 0.4, reason="interrupted after epoch 1")
    return [completed, pruned, failed, hopeless, duplicate, interrupted]


# --------------------------------------------------------------------------------- rows and reloads


def test_every_trial_is_a_row_that_says_how_it_ended(url: str) -> None:
    ledger = open_store(url, make_study())
    rows = run_one_of_each_state(ledger)
    assert ledger.trial_records() == rows
    assert [(row.number, row.state, row.value, row.epochs) for row in rows] == [
        (0, TrialState.COMPLETED, 0.55, 3),
        (1, TrialState.PRUNED, 0.2, 2),
        (2, TrialState.FAILED, 0.3, 1),
        (3, TrialState.FAILED, None, 0),
        (4, TrialState.COMPLETED, 0.55, 3),
        (5, TrialState.INTERRUPTED, 0.4, 1),
    ]
    assert [row.reason for row in rows[:4]] == [
        None,
        "pruned after epoch 2",
        "diverged: the loss of epoch 2 is not finite",
        "out of memory",
    ]
    assert [row.seconds for row in rows] == [0.75, 0.5, 0.25, 0.0, 0.0, 0.25]
    assert [row.run_id for row in rows] == ["run-0", "run-1", "run-2", "run-3", "run-0", "run-5"]


def test_a_row_says_how_large_its_network_was_and_when_it_ran(url: str) -> None:
    ledger = open_store(url, make_study())
    before = time.time()
    asked = ledger.ask()
    result = dataclasses.replace(make_result(TrialState.COMPLETED, 0.5), parameters=12_345)
    for report in result.epochs:
        ledger.should_prune(asked, report)
    row = ledger.tell(asked, result, "run-0")
    assert row.started_at is not None
    assert row.ended_at is not None
    assert before - 1 < row.started_at <= row.ended_at < time.time() + 1
    (again,) = StudyStore.load(url, "small").trial_records()
    assert (again.parameters, again.started_at, again.ended_at) == (12_345, row.started_at, row.ended_at)
    answered = ledger.tell_duplicate(ledger.ask(), row)
    assert (answered.parameters, answered.seconds) == (12_345, 0.0)
    assert answered.ended_at is not None


def test_a_study_from_before_networks_were_counted_still_reads(url: str) -> None:
    ledger = open_store(url, make_study())
    run_trial(ledger, TrialState.COMPLETED, 0.5)
    stored = optuna.load_study(study_name="small", storage=open_storage(url))
    outcome = dict(stored.trials[0].user_attrs["outcome"])
    del outcome["parameters"]
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:  # Optuna changes no finished trial
        database.execute(
            "update trial_user_attributes set value_json = ? where key = 'outcome'", (json.dumps(outcome),)
        )
        database.commit()
    (row,) = StudyStore.load(url, "small").trial_records()
    assert (row.parameters, row.value) == (0, 0.5)


@pytest.mark.parametrize("space", [SMALL_SPACE, TWO_FAMILY_SPACE], ids=["one family", "two families"])
def test_rows_survive_a_reload(space: dict[str, Any], url: str) -> None:
    rows = run_one_of_each_state(open_store(url, make_study(space)))
    found = StudyStore.load(url, "small")
    assert found.trial_records() == rows
    assert found.config == make_study(space)
    assert found.runtime == RUNTIME


@pytest.mark.parametrize("fresh", [False, True])
def test_a_study_whose_search_was_killed_as_it_made_it_is_said_and_searched_again(url: str, fresh: bool) -> None:
    optuna.create_study(storage=open_storage(url), study_name="small", direction="maximize")
    with pytest.raises(UserError, match=r"'small': has only just been created; .* search it again"):
        StudyStore.load(url, "small")
    rows = run_one_of_each_state(open_store(url, make_study(), fresh=fresh))
    assert StudyStore.load(url, "small").trial_records() == rows


def test_a_study_goes_on_where_it_stopped(url: str) -> None:
    rows = run_one_of_each_state(open_store(url, make_study()))
    again = open_store(url, make_study())
    assert again.trial_records() == rows
    # The interrupted trial comes first.
    assert run_trial(again, TrialState.COMPLETED, 0.7).number == len(rows)
    assert again.trial_records()[:-1] == rows


def test_the_same_study_draws_the_same_trials_in_another_storage(url: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    here, there = (run_one_of_each_state(open_store(place, make_study(seed=5))) for place in (url, other))
    assert here == there


def test_a_trial_that_was_never_told_is_no_row_and_is_in_nobodys_way(url: str) -> None:
    # Its process died.
    open_store(url, make_study()).ask()
    ledger = open_store(url, make_study())
    assert ledger.trial_records() == []
    assert run_trial(ledger, TrialState.COMPLETED, 0.5).number == 1


def test_every_trial_has_a_recipe_of_its_own_seed_and_of_the_studys_settings(url: str) -> None:
    ledger = open_store(url, make_study(data={"train_images": 500}, budget={"trials": 9, "epochs": 4}))
    ledger.runtime = StudyRuntime(Execution(), "bfloat16")
    recipes = [ledger.ask().recipe for _ in range(3)]
    assert len({recipe.seed for recipe in recipes}) == 3
    assert {(r.epochs, r.data.train_images, r.precision) for r in recipes} == {(4, 500, "bfloat16")}


def test_a_new_study_has_no_run_no_champion_and_no_conditions_yet(url: str) -> None:
    ledger = StudyStore.open(url, make_study())
    assert (ledger.run_id, ledger.champion, ledger.runtime, ledger.trial_records()) == (None, None, None, [])
    ledger.run_id = "abc"
    assert StudyStore.load(url, "small").run_id == "abc"


def test_a_champion_is_remembered_with_what_it_was_chosen_from(url: str) -> None:
    recipe = Recipe().replace({"model.family": "mlp", "optimizer.learning_rate": 0.1 + 0.2, "epochs": 18})
    champion = Champion(
        confirmed_score=ConfirmedScore(7, recipe, (0.91, 0.9100000000000001, 0.1 + 0.7)),
        recipe=recipe.replace({"seed": 3, "data.validation": 0}),
        test=wilson(9_123, 10_000),
        model="fmnist-search",
        version="4",
        alias="challenger",
    )
    open_store(url, make_study()).save_champion("fingerprint", champion)
    assert StudyStore.load(url, "small").champion == ("fingerprint", champion)


# --------------------------------------------------------------------- what must not change meanwhile


@pytest.mark.parametrize(
    ("change", "key", "now", "before"),
    [
        ({"seed": 1}, "seed", "1", "0"),
        ({"budget": {"trials": 20, "epochs": 5}}, "budget.epochs", "5", "3"),
        ({"data": {"train_images": 900}}, "data.train_images", "900", "0"),
        ({"space": {**SMALL_SPACE, "cnn": {"depth": [1, 2]}}}, "space.cnn.depth", "1, 2", "1, 2, 3"),
        ({"space": {**SMALL_SPACE, "cnn": {}}}, "space.cnn.width_1", "not given", "8, 16"),
        (
            {"space": {**SMALL_SPACE, "cnn": {**SMALL_SPACE["cnn"], "norm": "none"}}},
            "space.cnn.norm",
            "none",
            "not given",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_study_that_searches_something_else_is_refused_with_the_key(
    change: dict[str, Any], key: str, now: str, before: str, url: str
) -> None:
    row = run_trial(open_store(url, make_study()), TrialState.COMPLETED, 0.5)
    with pytest.raises(UserError) as caught:
        StudyStore.open(url, make_study(**change))
    (line,) = [line for line in caught.value.lines if line.startswith(f"{key}: ")]
    assert f"is {now} now and was {before} when the study 'small' was created" in line
    assert "--name" in line
    assert "--fresh" in line
    # Nothing has happened to the study.
    assert StudyStore.load(url, "small").config == make_study()
    assert StudyStore.load(url, "small").trial_records() == [row]


def test_every_key_that_differs_has_a_line_and_no_other(url: str) -> None:
    open_store(url, make_study())
    with pytest.raises(UserError) as caught:
        StudyStore.open(url, make_study(seed=1, data={"seed": 2, "train_images": 900}))
    keys = {line.partition(":")[0] for line in caught.value.lines}
    assert keys == {"seed", "data.seed", "data.train_images"}


def test_budget_sampler_and_finalists_may_change_and_are_remembered(url: str) -> None:
    open_store(url, make_study())
    changed = make_study(budget={"minutes": 9, "epochs": 3}, sampler="random", pruner="none", finalists={"recipes": 0})
    open_store(url, changed)
    assert StudyStore.load(url, "small").config == changed


# ------------------------------------------------------------------------------------- begun anew


def test_a_study_begun_anew_puts_the_old_one_aside_and_loses_nothing(url: str) -> None:
    old = open_store(url, make_study())
    rows = run_one_of_each_state(old)
    old.run_id = "abc"
    new = open_store(url, make_study(seed=1), fresh=True)
    assert (new.trial_records(), new.run_id, new.config.seed) == ([], None, 1)
    aside, name = StudyStore.study_names(url)
    assert name == "small"
    assert aside.startswith("small until ")
    kept = StudyStore.load(url, aside)
    assert (kept.trial_records(), kept.run_id, kept.config.seed) == (rows, "abc", 0)
    # What was interrupted there is no business of the new one.
    assert new.ask().recipe.seed != rows[-1].recipe.seed


def test_a_study_put_aside_is_found_under_its_new_name(url: str) -> None:
    open_store(url, make_study())
    open_store(url, make_study(), fresh=True)
    aside, _ = StudyStore.study_names(url)
    assert StudyStore.load(url, aside).config.name == aside


def test_a_study_with_the_longest_name_can_begin_anew(url: str) -> None:
    config = make_study(name="x" * 100)
    row = run_trial(open_store(url, config), TrialState.COMPLETED, 0.5)
    open_store(url, config, fresh=True)
    aside = next(name for name in StudyStore.study_names(url) if name != config.name)
    assert StudyStore.load(url, aside).trial_records() == [row]


def test_a_study_can_begin_anew_several_times_in_a_second(url: str) -> None:
    rows = [
        run_trial(open_store(url, make_study(seed=seed), fresh=True), TrialState.COMPLETED, seed / 10)
        for seed in range(4)
    ]
    assert open_store(url, make_study(seed=4), fresh=True).trial_records() == []
    kept = [StudyStore.load(url, name).trial_records() for name in StudyStore.study_names(url) if name != "small"]
    assert kept == [[row] for row in rows]


def test_a_study_that_is_not_there_yet_begins_with_fresh_as_without(url: str) -> None:
    assert open_store(url, make_study(), fresh=True).trial_records() == []
    assert StudyStore.study_names(url) == ["small"]


# ------------------------------------------------------------------- duplicates and interruptions


def test_a_duplicate_is_told_the_value_that_is_known(url: str) -> None:
    ledger = open_store(url, make_study())
    completed = run_trial(ledger, TrialState.COMPLETED, 0.5, 0.6)
    asked = ledger.ask()
    row = ledger.tell_duplicate(asked, completed)
    assert (row.state, row.value, row.duplicate_of) == (TrialState.COMPLETED, 0.6, 0)
    assert row.reason == "equals trial 0"
    assert row.seconds == 0
    # The sampler learns from it.
    assert optuna.load_study(study_name="small", storage=url).trials[1].value == 0.6


def test_a_duplicate_of_a_pruned_trial_is_pruned_with_its_last_value(url: str) -> None:
    ledger = open_store(url, make_study())
    pruned = run_trial(ledger, TrialState.PRUNED, 0.3, 0.2, reason="pruned after epoch 2")
    asked = ledger.ask()
    row = ledger.tell_duplicate(asked, pruned)
    assert (row.state, row.value, row.epochs, row.duplicate_of) == (TrialState.PRUNED, 0.2, 2, 0)
    told = optuna.load_study(study_name="small", storage=url).trials[1]
    assert (told.state, told.intermediate_values) == (optuna.trial.TrialState.PRUNED, {2: 0.2})


@pytest.mark.parametrize("space", [SMALL_SPACE, TWO_FAMILY_SPACE], ids=["one family", "two families"])
def test_an_interrupted_trial_comes_again_with_its_seed_and_its_values(space: dict[str, Any], url: str) -> None:
    ledger = open_store(url, make_study(space))
    run_trial(ledger, TrialState.COMPLETED, 0.5)
    interrupted = run_trial(ledger, TrialState.INTERRUPTED, 0.4, reason="interrupted after epoch 1")
    # After a restart as well.
    again = open_store(url, make_study(space))
    asked = again.ask()
    assert asked.recipe == interrupted.recipe
    assert asked.number != interrupted.number
    assert asked.origin == {"retry_of": str(interrupted.number)}
    row = again.tell(asked, make_result(TrialState.COMPLETED, 0.8), "run")
    assert row.recipe == interrupted.recipe
    assert again.ask().recipe.seed_independent_key() != interrupted.recipe.seed_independent_key()


def test_a_trial_that_is_interrupted_twice_keeps_the_seed_of_its_first_attempt(url: str) -> None:
    ledger = open_store(url, make_study())
    attempts = [run_trial(ledger, TrialState.INTERRUPTED, reason="interrupted") for _ in range(3)]
    assert {row.recipe for row in attempts} == {attempts[0].recipe}
    assert [row.number for row in attempts] == [0, 1, 2]


def test_interrupted_trials_come_again_in_their_order(url: str) -> None:
    # Two workers were stopped together.
    ledger = open_store(url, make_study())
    running = [ledger.ask() for _ in range(2)]
    for asked in running:
        ledger.tell(asked, make_result(TrialState.INTERRUPTED), "run")
    assert [ledger.ask().recipe for _ in range(2)] == [asked.recipe for asked in running]


# -------------------------------------------------------------------------------------- finding one


def test_a_study_that_does_not_exist_is_refused_with_the_nearest_name(url: str) -> None:
    for name in ("quick", "baseline"):
        open_store(url, make_study(name=name))
    with pytest.raises(UserError) as caught:
        StudyStore.load(url, "quik")
    assert caught.value.lines == ("study 'quik': does not exist here; did you mean 'quick'?",)
    with pytest.raises(UserError, match="known: baseline, quick"):
        StudyStore.load(url, "xyz")


def test_where_there_is_no_study_one_is_told_how_to_begin(url: str) -> None:
    with pytest.raises(UserError, match=r"there is none yet; run `fmnist-search search STUDY\.toml`"):
        StudyStore.load(url, "quick")


def test_studies_are_named_in_the_order_in_which_they_began(url: str) -> None:
    assert StudyStore.study_names(url) == []
    for name in ("b", "c", "a"):
        open_store(url, make_study(name=name))
    open_store(url, make_study(name="b"))
    assert StudyStore.study_names(url) == ["b", "c", "a"]


# ----------------------------------------------------------------------------------------- pruning


def test_a_pruner_is_heeded_from_its_startup_trials_on_and_never_after_the_last_epoch(url: str) -> None:
    ledger = open_store(url, make_study(sampler="random", pruner={"name": "halving", "startup_trials": 8}))
    ends = []
    for number in range(12):
        asked = ledger.ask()
        reports = make_result(TrialState.COMPLETED, *[0.9 - number / 100] * 3).epochs
        advice = [ledger.should_prune(asked, report) for report in reports]
        ends.append(advice)
        ledger.tell(asked, make_result(TrialState.COMPLETED, 0.9 - number / 100), "run")
    assert not any(any(advice) for advice in ends[:7])
    assert all(advice[0] for advice in ends[7:])
    assert not any(advice[-1] for advice in ends)


@pytest.mark.parametrize("pruner", ["halving", "hyperband", "median", "percentile", "patience", "one-epoch", "none"])
def test_trials_that_stopped_early_are_completed_ones_and_no_pruner_stumbles_over_them(url: str, pruner: str) -> None:
    ledger = open_store(url, make_study(pruner=pruner, budget={"trials": 20, "epochs": 6}))
    reason = "early stopping: no better val_accuracy since epoch 1"
    early = [run_trial(ledger, TrialState.COMPLETED, *[0.5 + n / 100] * (2 + n % 2), reason=reason) for n in range(6)]
    full = [run_trial(ledger, TrialState.COMPLETED, *[0.4 + n / 100] * 6) for n in range(6)]
    rows = ledger.trial_records()
    assert rows == [*early, *full]
    assert [(row.epochs, row.reason) for row in early] == [(2, reason), (3, reason)] * 3
    assert max(rows, key=lambda row: row.value or 0) == early[-1]
    asked = ledger.ask()
    falling = [0.2 - epoch / 100 for epoch in range(6)]
    advice = [ledger.should_prune(asked, report) for report in make_result(TrialState.PRUNED, *falling).epochs]
    if pruner != "hyperband":  # whose brackets differ
        assert any(advice) == (pruner != "none")
