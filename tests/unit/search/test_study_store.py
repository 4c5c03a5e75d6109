"""A study in its store: what is stored is read back, interrupted trials go on, and nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import socket
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
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_list import list_studies
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.trial_attributes import outcome_attribute
from tests.support.studies import SMALL_SPACE, make_study

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

RUNTIME = StudyRuntime(Execution(device="cpu", threads=1), "float32")
TWO_FAMILY_SPACE: dict[str, Any] = {
    "common": {"family": ["cnn", "mlp"], "optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
    "cnn": {"depth": [1, 2, 3], "width_3": [8, 16], "dropout": {"low": 0.1, "high": 0.5}},
    "mlp": {"depth": {"low": 1, "high": 4}, "dropout": [0.1, 0.2]},
}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage without studies, created once, because Optuna needs a quarter of a second for its tables."""
    path = tmp_path_factory.mktemp("empty") / "optuna.db"
    open_storage(f"sqlite:///{path}")
    return path


@pytest.fixture
def storage_url(empty_database: Path, tmp_path: Path) -> str:
    # Copied by SQLite, because a part of the database may still be in its write-ahead log.
    with closing(sqlite3.connect(empty_database)) as template, closing(sqlite3.connect(tmp_path / "optuna.db")) as copy:
        template.backup(copy)
    return f"sqlite:///{tmp_path / 'optuna.db'}"


def open_store(storage_url: str, config: StudyConfig, **options: Any) -> StudyStore:
    store = StudyStore.open(storage_url, config, **options)
    store.runtime = RUNTIME
    return store


def open_in_memory(config: StudyConfig) -> StudyStore:
    """Return the store of a new study in memory: one in a file writes to the disk with each report of an epoch."""
    store = StudyStore(optuna.create_study(study_name=config.name, direction="maximize"), config)
    store.runtime = RUNTIME
    return store


def make_result(state: TrialState, *accuracies: float, reason: str | None = None) -> TrialResult:
    """Return the result of a trial with these accuracies."""
    epochs = tuple(EpochReport(n, 1.0, 0.5, 1.0, value, 0.1, 0.25) for n, value in enumerate(accuracies, 1))
    return TrialResult(state, epochs, seconds=0.25 * len(epochs), reason=reason)


def run_trial(study_store: StudyStore, state: TrialState, *accuracies: float, reason: str | None = None) -> TrialRecord:
    """Run a trial that reports its epochs and ends in this state."""
    asked = study_store.ask()
    result = make_result(state, *accuracies, reason=reason)
    for report in result.epochs:
        study_store.decide(asked, report)
    return study_store.tell(asked, result, f"run-{asked.number}")


def run_one_of_each_state(study_store: StudyStore) -> list[TrialRecord]:
    """Run a trial of each kind."""
    completed = run_trial(study_store, TrialState.COMPLETED, 0.5, 0.6, 0.55)
    pruned = run_trial(study_store, TrialState.PRUNED, 0.3, 0.2, reason="pruned after epoch 2")
    failed = run_trial(study_store, TrialState.FAILED, 0.3, reason="diverged: the loss of epoch 2 is not finite")
    failed_at_once = run_trial(study_store, TrialState.FAILED, reason="out of memory")
    asked = study_store.ask()
    duplicate = study_store.tell_duplicate(asked, completed)
    interrupted = run_trial(study_store, TrialState.INTERRUPTED, 0.4, reason="interrupted after epoch 1")
    return [completed, pruned, failed, failed_at_once, duplicate, interrupted]


# ------------------------------------------------------------------------------ records and reloads


def test_record_says_how_a_trial_ended(storage_url: str) -> None:
    store = open_store(storage_url, make_study())
    records = run_one_of_each_state(store)
    assert store.trial_records() == records
    assert [(record.number, record.state, record.value, record.epochs) for record in records] == [
        (0, TrialState.COMPLETED, 0.55, 3),
        (1, TrialState.PRUNED, 0.2, 2),
        (2, TrialState.FAILED, 0.3, 1),
        (3, TrialState.FAILED, None, 0),
        (4, TrialState.COMPLETED, 0.55, 3),
        (5, TrialState.INTERRUPTED, 0.4, 1),
    ]
    assert [record.reason for record in records[:4]] == [
        None,
        "pruned after epoch 2",
        "diverged: the loss of epoch 2 is not finite",
        "out of memory",
    ]
    assert [record.seconds for record in records] == [0.75, 0.5, 0.25, 0.0, 0.0, 0.25]
    assert [record.run_id for record in records] == ["run-0", "run-1", "run-2", "run-3", "run-0", "run-5"]


def test_running_trials_are_those_of_the_present_session_that_have_not_ended(storage_url: str) -> None:
    store = open_store(storage_url, make_study())
    store.ask()  # and its process was killed
    began = time.time()
    run_trial(store, TrialState.COMPLETED, 0.5)
    asked = store.ask()
    store.decide(asked, make_result(TrialState.COMPLETED, 0.25).epochs[0])
    (running,) = StudyStore.load(storage_url, "small").running_trials(began)
    assert (running.number, running.recipe, running.curve) == (2, asked.recipe, (0.25,))
    assert [trial.number for trial in store.running_trials(0.0)] == [0, 2]


def test_record_has_parameter_count_and_times(storage_url: str) -> None:
    store = open_store(storage_url, make_study())
    before = time.time()
    asked = store.ask()
    result = dataclasses.replace(make_result(TrialState.COMPLETED, 0.5), parameters=12_345)
    for report in result.epochs:
        store.decide(asked, report)
    record = store.tell(asked, result, "run-0")
    assert record.started_at is not None
    assert record.ended_at is not None
    assert before - 1 < record.started_at <= record.ended_at < time.time() + 1
    (again,) = StudyStore.load(storage_url, "small").trial_records()
    assert (again.parameters, again.started_at, again.ended_at) == (12_345, record.started_at, record.ended_at)
    answered = store.tell_duplicate(store.ask(), record)
    assert (answered.parameters, answered.seconds) == (12_345, 0.0)
    assert answered.ended_at is not None


def test_study_without_parameter_counts_is_read(storage_url: str) -> None:
    store = open_store(storage_url, make_study())
    run_trial(store, TrialState.COMPLETED, 0.5)
    stored = optuna.load_study(study_name="small", storage=open_storage(storage_url))
    outcome = dict(stored.trials[0].user_attrs["outcome"])
    del outcome["parameters"]
    with closing(
        sqlite3.connect(storage_url.removeprefix("sqlite:///"))
    ) as database:  # Optuna changes no finished trial
        database.execute(
            "update trial_user_attributes set value_json = ? where key = 'outcome'", (json.dumps(outcome),)
        )
        database.commit()
    (record,) = StudyStore.load(storage_url, "small").trial_records()
    assert (record.parameters, record.value) == (0, 0.5)


@pytest.mark.parametrize("space", [SMALL_SPACE, TWO_FAMILY_SPACE], ids=["one family", "two families"])
def test_records_survive_a_reload(space: dict[str, Any], storage_url: str) -> None:
    records = run_one_of_each_state(open_store(storage_url, make_study(space)))
    found = StudyStore.load(storage_url, "small")
    assert found.trial_records() == records
    assert found.config == make_study(space)
    assert found.runtime == RUNTIME


@pytest.mark.parametrize("fresh", [False, True])
def test_study_without_config_is_an_error_until_it_is_searched_again(storage_url: str, fresh: bool) -> None:
    optuna.create_study(storage=open_storage(storage_url), study_name="small", direction="maximize")
    with pytest.raises(UserError, match=r"'small': has only just been created; .* search it again"):
        StudyStore.load(storage_url, "small")
    records = run_one_of_each_state(open_store(storage_url, make_study(), fresh=fresh))
    assert StudyStore.load(storage_url, "small").trial_records() == records


def test_study_resumes_where_it_stopped(storage_url: str) -> None:
    records = run_one_of_each_state(open_store(storage_url, make_study()))
    again = open_store(storage_url, make_study())
    assert again.trial_records() == records
    # The interrupted trial goes on first.
    assert run_trial(again, TrialState.COMPLETED, 0.7).number == records[-1].number
    assert again.trial_records()[:-1] == records[:-1]


def test_study_samples_the_same_trials_in_another_storage(storage_url: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    first, second = (run_one_of_each_state(open_store(url, make_study(seed=5))) for url in (storage_url, other))
    assert first == second


def test_trial_of_a_killed_process_has_no_record(storage_url: str) -> None:
    open_store(storage_url, make_study()).ask()
    store = open_store(storage_url, make_study())
    assert store.trial_records() == []
    assert run_trial(store, TrialState.COMPLETED, 0.5).number == 1


def test_recipes_have_seeds_of_their_own_and_the_settings_of_the_study(storage_url: str) -> None:
    store = open_store(storage_url, make_study(data={"train_images": 500}, budget={"trials": 9, "epochs": 4}))
    store.runtime = StudyRuntime(Execution(), "bfloat16")
    recipes = [store.ask().recipe for _ in range(3)]
    assert len({recipe.seed for recipe in recipes}) == 3
    assert {(r.epochs, r.data.train_images, r.precision) for r in recipes} == {(4, 500, "bfloat16")}


def test_new_study_has_no_run_no_champion_and_no_runtime(storage_url: str) -> None:
    store = StudyStore.open(storage_url, make_study())
    assert (store.run_id, store.champion, store.runtime, store.trial_records()) == (None, None, None, [])
    store.run_id = "abc"
    assert StudyStore.load(storage_url, "small").run_id == "abc"


def test_champion_is_stored_with_its_selection_key(storage_url: str) -> None:
    recipe = Recipe().replace({"model.family": "mlp", "optimizer.learning_rate": 0.1 + 0.2, "epochs": 18})
    champion = Champion(
        confirmed_score=ConfirmedScore(7, recipe, (0.91, 0.9100000000000001, 0.1 + 0.7)),
        recipe=recipe.replace({"seed": 3, "data.validation": 0}),
        test=wilson(9_123, 10_000),
        model="fmnist-search",
        version="4",
        alias="challenger",
    )
    open_store(storage_url, make_study()).save_champion("fingerprint", champion)
    assert StudyStore.load(storage_url, "small").champion == ("fingerprint", champion)


# ----------------------------------------------------------------------------------- comparability


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
def test_incomparable_study_is_an_error_and_changes_nothing(
    change: dict[str, Any], key: str, now: str, before: str, storage_url: str
) -> None:
    record = run_trial(open_store(storage_url, make_study()), TrialState.COMPLETED, 0.5)
    with pytest.raises(UserError) as caught:
        StudyStore.open(storage_url, make_study(**change))
    (line,) = [line for line in caught.value.lines if line.startswith(f"{key}: ")]
    assert f"is {now} now and was {before} when the study 'small' was created" in line
    assert "--name" in line
    assert "--fresh" in line
    assert StudyStore.load(storage_url, "small").config == make_study()
    assert StudyStore.load(storage_url, "small").trial_records() == [record]


def test_each_key_that_differs_has_a_line(storage_url: str) -> None:
    open_store(storage_url, make_study())
    with pytest.raises(UserError) as caught:
        StudyStore.open(storage_url, make_study(seed=1, data={"seed": 2, "train_images": 900}))
    keys = {line.partition(":")[0] for line in caught.value.lines}
    assert keys == {"seed", "data.seed", "data.train_images"}


def test_budget_sampler_and_finalists_may_change_and_are_stored(storage_url: str) -> None:
    open_store(storage_url, make_study())
    changed = make_study(budget={"minutes": 9, "epochs": 3}, sampler="random", pruner="none", finalists={"recipes": 0})
    open_store(storage_url, changed)
    assert StudyStore.load(storage_url, "small").config == changed


# ----------------------------------------------------------------------------------- fresh studies


def test_fresh_study_archives_the_old_one_completely(storage_url: str) -> None:
    old = open_store(storage_url, make_study())
    records = run_one_of_each_state(old)
    old.run_id = "abc"
    new = open_store(storage_url, make_study(seed=1), fresh=True)
    assert (new.trial_records(), new.run_id, new.config.seed) == ([], None, 1)
    archived, name = StudyStore.study_names(storage_url)
    assert name == "small"
    assert archived.startswith("small until ")
    stored = StudyStore.load(storage_url, archived)
    assert (stored.trial_records(), stored.run_id, stored.config.seed) == (records, "abc", 0)
    # Trials that were interrupted there are not repeated here.
    assert new.ask().recipe.seed != records[-1].recipe.seed


def test_archived_study_has_its_new_name(storage_url: str) -> None:
    open_store(storage_url, make_study())
    open_store(storage_url, make_study(), fresh=True)
    archived, _ = StudyStore.study_names(storage_url)
    assert StudyStore.load(storage_url, archived).config.name == archived


def test_study_with_a_long_name_is_archived(storage_url: str) -> None:
    config = make_study(name="x" * 100)
    record = run_trial(open_store(storage_url, config), TrialState.COMPLETED, 0.5)
    open_store(storage_url, config, fresh=True)
    archived = next(name for name in StudyStore.study_names(storage_url) if name != config.name)
    assert StudyStore.load(storage_url, archived).trial_records() == [record]


def test_study_is_archived_several_times_per_second(storage_url: str) -> None:
    records = [
        run_trial(open_store(storage_url, make_study(seed=seed), fresh=True), TrialState.COMPLETED, seed / 10)
        for seed in range(4)
    ]
    assert open_store(storage_url, make_study(seed=4), fresh=True).trial_records() == []
    stored = [
        StudyStore.load(storage_url, name).trial_records()
        for name in StudyStore.study_names(storage_url)
        if name != "small"
    ]
    assert stored == [[record] for record in records]


def test_fresh_study_may_be_the_first_of_its_name(storage_url: str) -> None:
    assert open_store(storage_url, make_study(), fresh=True).trial_records() == []
    assert StudyStore.study_names(storage_url) == ["small"]


# ------------------------------------------------------------------- duplicates and interruptions


def test_duplicate_gets_the_known_value(storage_url: str) -> None:
    store = open_store(storage_url, make_study())
    completed = run_trial(store, TrialState.COMPLETED, 0.5, 0.6)
    asked = store.ask()
    record = store.tell_duplicate(asked, completed)
    assert (record.state, record.value, record.duplicate_of) == (TrialState.COMPLETED, 0.6, 0)
    assert record.reason == "equals trial 0"
    assert record.seconds == 0
    # The sampler sees it.
    assert optuna.load_study(study_name="small", storage=storage_url).trials[1].value == 0.6


def test_duplicate_of_a_pruned_trial_is_pruned_with_its_last_value(storage_url: str) -> None:
    store = open_store(storage_url, make_study())
    pruned = run_trial(store, TrialState.PRUNED, 0.3, 0.2, reason="pruned after epoch 2")
    asked = store.ask()
    record = store.tell_duplicate(asked, pruned)
    assert (record.state, record.value, record.epochs, record.duplicate_of) == (TrialState.PRUNED, 0.2, 2, 0)
    trial = optuna.load_study(study_name="small", storage=storage_url).trials[1]
    assert (trial.state, trial.intermediate_values) == (optuna.trial.TrialState.PRUNED, {2: 0.2})


@pytest.mark.parametrize("space", [SMALL_SPACE, TWO_FAMILY_SPACE], ids=["one family", "two families"])
def test_an_interrupted_trial_goes_on_with_its_number_its_recipe_and_its_curve(
    space: dict[str, Any], storage_url: str
) -> None:
    store = open_store(storage_url, make_study(space))
    run_trial(store, TrialState.COMPLETED, 0.5)
    interrupted = run_trial(store, TrialState.INTERRUPTED, 0.4, reason="interrupted after epoch 1")
    # As after a restart.
    again = open_store(storage_url, make_study(space))
    asked = again.ask()
    assert (asked.number, asked.recipe, asked.curve) == (interrupted.number, interrupted.recipe, {1: 0.4})
    result = make_result(TrialState.COMPLETED, 0.4, 0.8)
    for report in result.epochs:
        again.decide(asked, report)
    record = again.tell(asked, result, "run")
    assert (record.number, record.recipe, record.curve) == (interrupted.number, interrupted.recipe, (0.4, 0.8))
    assert [each.state for each in again.trial_records()] == [TrialState.COMPLETED] * 2
    assert again.ask().recipe.seed_independent_key() != interrupted.recipe.seed_independent_key()


def test_a_trial_that_is_interrupted_again_and_again_keeps_its_seed(storage_url: str) -> None:
    store = open_store(storage_url, make_study())
    attempts = [run_trial(store, TrialState.INTERRUPTED, reason="interrupted") for _ in range(3)]
    assert {(record.number, record.recipe) for record in attempts} == {(0, attempts[0].recipe)}


def test_interrupted_trials_go_on_in_their_order(storage_url: str) -> None:
    # Two workers were stopped at the same time.
    store = open_store(storage_url, make_study())
    running = [store.ask() for _ in range(2)]
    for asked in running:
        store.tell(asked, make_result(TrialState.INTERRUPTED), "run")
    assert [store.ask().recipe for _ in range(2)] == [asked.recipe for asked in running]


# --------------------------------------------------------------------------- trials of a dead search


@pytest.mark.parametrize("stored_in", ["optuna", "run"])
@pytest.mark.parametrize("state", [TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED])
def test_a_trained_trial_that_a_search_could_not_tell_is_counted_with_its_outcome(
    storage_url: str, state: TrialState, stored_in: str
) -> None:
    store = open_store(storage_url, make_study())
    asked, result = store.ask(), make_result(state, 0.5, 0.6, reason="a reason")
    store.save_run_key(asked, "study/000@1")
    for report in result.epochs:
        store.decide(asked, report)
    outcome = outcome_attribute(result, "run-0")
    if stored_in == "optuna":
        asked.optuna_trial.set_user_attr("outcome", outcome)

    again = open_store(storage_url, make_study())
    assert again.recover(lambda key: outcome if key == "study/000@1" and stored_in == "run" else None) == []
    (record,) = again.trial_records()
    assert (record.state, record.value, record.epochs, record.reason) == (state, 0.6, 2, "a reason")
    assert record.run_id == "run-0"


def test_a_trial_that_was_running_when_its_search_died_goes_on(storage_url: str) -> None:
    store = open_store(storage_url, make_study())
    reported, started = store.ask(), store.ask()
    store.decide(reported, make_result(TrialState.COMPLETED, 0.4).epochs[0])

    again = open_store(storage_url, make_study())
    assert again.recover() == [0, 1]
    assert again.recover() == []
    assert [(record.state, record.epochs, record.is_final) for record in again.trial_records()] == [
        (TrialState.INTERRUPTED, 1, False),
        (TrialState.INTERRUPTED, 0, False),
    ]
    asked = [again.ask() for _ in range(2)]
    assert [(trial.number, trial.recipe, trial.curve) for trial in asked] == [
        (0, reported.recipe, {1: 0.4}),
        (1, started.recipe, {}),
    ]


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_trial_whose_search_died_while_it_was_sampled_is_sampled_again(storage_url: str, sampler: str) -> None:
    space = {"common": {"batch_size": [64, 128]}, "cnn": {"depth": [1, 2]}}
    expected = open_store(storage_url, make_study(space, name="undisturbed", sampler=sampler)).ask().recipe
    config = make_study(space, sampler=sampler)
    open_store(storage_url, config)
    optuna.load_study(study_name="small", storage=storage_url).ask()

    again = open_store(storage_url, config)
    assert again.recover() == [0]
    assert again.trial_records() == []
    asked = again.ask()
    assert (asked.number, asked.recipe) == (0, expected)


def test_what_a_search_was_told_to_try_comes_again_after_its_death(storage_url: str) -> None:
    config = make_study(budget={"trials": 3, "epochs": 2}, pruner={"name": "one-epoch", "survivors": 1})
    store = open_store(storage_url, config)
    store.enqueue_start("a.toml", {"batch_size": 64})
    start = store.ask()
    store = open_store(storage_url, config)
    store.recover()
    assert store.ask().origin == start.origin == {"start": "a.toml"}
    store.recover()
    for _ in range(2):
        run_trial(store, TrialState.PRUNED, 0.5)
    survivor = store.ask()
    assert survivor.is_survivor
    store = open_store(storage_url, config)
    store.recover()
    assert store.ask().origin == survivor.origin


# -------------------------------------------------------------------------------------- paused trials


def test_a_paused_trial_waits_until_it_is_resumed_and_counts_neither_as_failed_nor_as_pruned(storage_url: str) -> None:
    store = open_store(storage_url, make_study())
    asked = store.ask()
    store.decide(asked, make_result(TrialState.PAUSED, 0.4).epochs[0])
    paused = store.tell(asked, make_result(TrialState.PAUSED, 0.4), "run-0")
    assert (paused.state, paused.value, paused.is_final) == (TrialState.PAUSED, 0.4, False)

    again = open_store(storage_url, make_study())
    assert again.recover() == []
    assert again.trial_records() == [paused]
    assert again.running_trials(since=0) == []
    assert again.ask().number == 1
    resumed = again.resume(0)
    assert (resumed.number, resumed.recipe, resumed.curve) == (0, asked.recipe, {1: 0.4})
    assert [trial.number for trial in again.running_trials(since=0)] == [0, 1]
    with pytest.raises(ValueError, match="trial 0 is not paused"):
        again.resume(0)
    assert again.tell(resumed, make_result(TrialState.COMPLETED, 0.4, 0.9), "run-0").value == 0.9


# ---------------------------------------------------------------------------------- loading studies


def test_unknown_study_is_an_error_with_the_nearest_name(storage_url: str) -> None:
    for name in ("quick", "baseline"):
        open_store(storage_url, make_study(name=name))
    with pytest.raises(UserError) as caught:
        StudyStore.load(storage_url, "quik")
    assert caught.value.lines == ("study 'quik': does not exist here; did you mean 'quick'?",)
    with pytest.raises(UserError, match="known: baseline, quick"):
        StudyStore.load(storage_url, "xyz")


def test_unknown_study_in_an_empty_storage_is_an_error_with_the_command(storage_url: str) -> None:
    with pytest.raises(UserError, match=r"there is none yet; run `fmnist-search search STUDY\.toml`"):
        StudyStore.load(storage_url, "quick")


def test_a_trial_whose_number_is_damaged_makes_the_list_of_studies_an_error(storage_url: str) -> None:
    run_trial(open_store(storage_url, make_study()), TrialState.COMPLETED, 0.5)
    with closing(sqlite3.connect(storage_url.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE trials SET number = 'x'")
        database.commit()
    with pytest.raises(UserError, match="is damaged"):
        list_studies(storage_url)


def test_the_studies_of_a_server_that_does_not_answer_are_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=r"cannot be opened .*; start the server, or check the address"):
        list_studies(f"postgresql://me@127.0.0.1:{port}/studies")


def test_studies_are_listed_in_the_order_of_creation(storage_url: str) -> None:
    assert StudyStore.study_names(storage_url) == []
    for name in ("b", "c", "a"):
        open_store(storage_url, make_study(name=name))
    open_store(storage_url, make_study(name="b"))
    assert StudyStore.study_names(storage_url) == ["b", "c", "a"]


# ----------------------------------------------------------------------------------------- pruning


def test_pruner_applies_after_its_startup_trials_and_before_the_last_epoch() -> None:
    store = open_in_memory(make_study(sampler="random", pruner={"name": "halving", "startup_trials": 8}))
    ends = []
    for number in range(12):
        asked = store.ask()
        reports = make_result(TrialState.COMPLETED, *[0.9 - number / 100] * 3).epochs
        advice = [store.decide(asked, report) is Decision.PRUNE for report in reports]
        ends.append(advice)
        store.tell(asked, make_result(TrialState.COMPLETED, 0.9 - number / 100), "run")
    assert not any(any(advice) for advice in ends[:7])
    assert all(advice[0] for advice in ends[7:])
    assert not any(advice[-1] for advice in ends)


@pytest.mark.parametrize("pruner", ["halving", "hyperband", "median", "percentile", "patience", "one-epoch", "none"])
def test_pruners_accept_trials_that_stopped_early(pruner: str) -> None:
    store = open_in_memory(make_study(pruner=pruner, budget={"trials": 20, "epochs": 6}))
    reason = "early stopping: no better val_accuracy since epoch 1"
    early = [run_trial(store, TrialState.COMPLETED, *[0.5 + n / 100] * (2 + n % 2), reason=reason) for n in range(6)]
    full = [run_trial(store, TrialState.COMPLETED, *[0.4 + n / 100] * 6) for n in range(6)]
    records = store.trial_records()
    assert records == [*early, *full]
    assert [(record.epochs, record.reason) for record in early] == [(2, reason), (3, reason)] * 3
    assert max(records, key=lambda record: record.value or 0) == early[-1]
    asked = store.ask()
    falling = [0.2 - epoch / 100 for epoch in range(6)]
    advice = [
        store.decide(asked, report) is Decision.PRUNE for report in make_result(TrialState.PRUNED, *falling).epochs
    ]
    if pruner != "hyperband":  # whose brackets differ
        assert any(advice) == (pruner != "none")
