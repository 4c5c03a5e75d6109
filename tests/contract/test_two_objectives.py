"""The contract of samplers and storages in a study that also minimizes a cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.samplers._tpe.sampler import _split_trials
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from fmnist_search.config.samplers import Sampler, Tpe
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.objectives import TrialCost
from fmnist_search.results.study import TrialRecord, front_trials
from fmnist_search.results.training import Decision, EpochReport, TrialResult
from fmnist_search.results.training import TrialState as State
from fmnist_search.search.driver_storage import DriverStorage
from fmnist_search.search.lease import Lease
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_list import list_studies
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.trial_attributes import outcome_attribute
from fmnist_search.search.trial_window import MAX_RUNNING, FrontWindow, best_count
from fmnist_search.search.trial_writer import OptunaTrialWriter, TrialWriter, make_writer
from tests.support.studies import make_study

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.filterwarnings("default::ResourceWarning")]

ONE_VALUE = ("cmaes", "freeze-thaw")
SAMPLERS = [settings_() for settings_ in get_args(get_args(Sampler)[0]) if settings_().name not in ONE_VALUE]
TRIALS = 13
SPACE: dict[str, Any] = {
    "common": {"label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.1}},
    "cnn": {"depth": [1, 2, 3], "width_1": [8, 16, 32], "width_2": [16, 32], "width_3": [32, 64]},
}

each_sampler = pytest.mark.parametrize(
    "sampler",
    [pytest.param(one, id=one.name, marks=pytest.mark.slow if one.name == "gp" else ()) for one in SAMPLERS],
)


def make_config(sampler: Any, **changes: Any) -> StudyConfig:
    objective = {"metrics": ["val_accuracy", "parameters"]}
    tables = {"sampler": sampler.model_dump(), "objective": objective, "budget": {"trials": TRIALS, "epochs": 2}}
    return make_study(SPACE, **{**tables, **changes})


def open_store(config: StudyConfig, storage: optuna.storages.BaseStorage | None = None) -> StudyStore:
    """Return the study of this storage, with a new sampler as after a restart."""
    store = StudyStore.open_in(storage or optuna.storages.InMemoryStorage(), config)
    store.runtime = StudyRuntime(Execution(), "float32")
    return store


def make_result(recipe: Recipe, state: State = State.COMPLETED) -> TrialResult:
    """Return the result of a problem in which wide networks are better and cost more, and smoothing only harms."""
    width = sum(recipe.model.widths)
    accuracy = 0.5 + width / 300 - recipe.label_smoothing
    epochs = tuple(EpochReport(n, 1.0, 0.5, 1.0, accuracy - 0.1 / n, 0.01, 1.0) for n in (1, 2))
    cost = TrialCost("parameters", 10.0 * width) if state is State.COMPLETED else None
    return TrialResult(state, epochs, 2.0, 10 * width, cost=cost)


def run_trials(store: StudyStore, count: int) -> None:
    """Run trials with known values, without training."""
    for _ in range(count):
        trial = store.ask()
        result = make_result(trial.recipe)
        for report in result.epochs:
            assert store.decide(trial, report) is Decision.CONTINUE
        store.tell(trial, result, f"run-{trial.number}")


def run_search(config: StudyConfig, count: int = TRIALS) -> list[TrialRecord]:
    store = open_store(config)
    run_trials(store, count)
    return store.trial_records()


# ---------------------------------------------------------------------------------------- samplers


@each_sampler
def test_a_search_that_was_stopped_and_resumed_equals_one_that_was_not(sampler: Any, tmp_path: Path) -> None:
    config, url = make_config(sampler), f"sqlite:///{tmp_path / 'optuna.db'}"
    for count in (3, 8, 2):  # stopped among the startup trials, and again after them
        run_trials(open_store(config, DriverStorage(open_storage(url), None, print)), count)
    records = StudyStore.load(url).trial_records()
    assert records == run_search(config)
    assert all(record.cost == TrialCost("parameters", record.parameters) for record in records)
    assert all(record.value == pytest.approx(make_result(record.recipe).value) for record in records)
    assert [record.curve for record in records] == [
        tuple(report.val_accuracy for report in make_result(record.recipe).epochs) for record in records
    ]


@each_sampler
def test_different_seeds_give_different_searches(sampler: Any) -> None:
    first, second = (
        [record.recipe.seed_independent_key() for record in run_search(make_config(sampler, seed=seed), 5)]
        for seed in (0, 1)
    )
    assert first != second


@pytest.mark.slow
def test_tpe_learns_both_objectives() -> None:
    def share_on_true_front(sampler: Any) -> float:
        records = [r for seed in range(2) for r in run_search(make_config(sampler, seed=seed), 60)[20:]]
        return sum(record.recipe.label_smoothing == 0 for record in records) / len(records)

    random = next(settings_ for settings_ in SAMPLERS if settings_.name == "random")
    assert share_on_true_front(Tpe()) > share_on_true_front(random) + 0.2


values = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=1, max_size=60)


@settings(max_examples=60)
@given(values, st.integers(1, 30))
@example([(0, 0, True)] * (MAX_RUNNING + 2), 300)
def test_the_window_holds_what_optuna_takes_as_the_best_and_the_newest_others(
    described: list[tuple[int, int, bool]], size: int
) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    trials = [make_trial(number, *one) for number, one in enumerate(described)]
    completed = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    best, others = _split_trials(study, completed, best_count(size))
    running = [trial for trial in trials if trial.state is TrialState.RUNNING and trial.number != 0]
    wanted = [*best, *others[max(0, len(others) + len(best) - size) :], *running[-min(size, MAX_RUNNING) :]]
    assert FrontWindow(size).select(study, trials, 0) == sorted(wanted, key=lambda trial: trial.number)
    everything = [trial for trial in trials if trial in completed or trial in running]
    assert FrontWindow(None).select(study, trials, 0) == everything


def make_trial(number: int, accuracy: int, cost: int, is_running: bool) -> FrozenTrial:
    trial = (
        create_trial(state=TrialState.RUNNING)
        if is_running
        else create_trial(state=TrialState.COMPLETE, values=[float(accuracy), float(cost)])
    )
    trial.number = number
    return trial


# ---------------------------------------------------------------------------------------- storages


WRITERS = [pytest.param(make_writer, id="sql"), pytest.param(lambda rdb, _: OptunaTrialWriter(rdb), id="optuna")]


@pytest.mark.parametrize("writer", WRITERS)
def test_another_process_reads_both_values_of_each_trial(
    database_url: str, writer: Callable[[RDBStorage, Lease | None], TrialWriter]
) -> None:
    storage = DriverStorage(open_storage(database_url), None, print, make_writer=writer)
    store = open_store(make_config(Tpe()), storage)
    run_trials(store, 3)
    store.tell(store.ask(), TrialResult(State.FAILED, (), 0.0, reason="out of memory"), "run-3")
    asked = store.ask()
    store.tell_duplicate(asked, store.trial_records()[1])
    found = StudyStore.load(database_url)
    assert found.trial_records() == store.trial_records()
    stored = optuna.load_study(study_name="small", storage=open_storage(database_url)).trials
    assert [trial.values for trial in stored] == [
        [record.value, record.cost.value] if record.cost else None for record in store.trial_records()
    ]
    best = max(record.value or 0.0 for record in store.trial_records())
    assert [(entry.trials, entry.best) for entry in list_studies(database_url)] == [(5, best)]


# ------------------------------------------------------------------------------- trials that end otherwise


@each_sampler
def test_a_trial_that_its_time_limit_prunes_keeps_its_curve_and_has_no_cost(sampler: Any) -> None:
    store = open_store(make_config(sampler))
    for _ in range(8):
        asked = store.ask()
        report = make_result(asked.recipe).epochs[0]
        store.decide(asked, report)
        store.tell(asked, TrialResult(State.PRUNED, (report,), 1.0, reason="its 1 minutes were spent"), "")
    run_trials(store, 12)  # the sampler goes on
    pruned, stored = store.trial_records()[0], store._study.trials[0]
    assert (stored.state, stored.values) == (TrialState.PRUNED, None)
    assert (pruned.state, pruned.cost, len(pruned.curve)) == (State.PRUNED, None, 1)
    assert pruned not in front_trials(store.trial_records(), "parameters")


def test_a_paused_trial_goes_on_beside_the_search(tmp_path: Path) -> None:
    storage = DriverStorage(open_storage(f"sqlite:///{tmp_path / 'optuna.db'}"), None, print)
    store = open_store(make_config(Tpe()), storage)
    paused = store.ask()
    result = make_result(paused.recipe)
    store.decide(paused, result.epochs[0])
    store.tell(paused, TrialResult(State.PAUSED, result.epochs[:1], 1.0), "run-0")
    run_trials(store, 8)
    resumed = store.resume(paused.number)
    assert resumed.curve == {1: result.epochs[0].val_accuracy}
    store.decide(resumed, result.epochs[1])
    assert store.tell(resumed, result, "run-0").cost == result.cost


def test_the_outcome_of_a_driver_that_died_has_the_cost(tmp_path: Path) -> None:
    config, url = make_config(Tpe()), f"sqlite:///{tmp_path / 'optuna.db'}"
    store = open_store(config, open_storage(url))
    asked = store.ask()
    store.save_run_key(asked, "study/000@1")
    result = make_result(asked.recipe)
    for report in result.epochs:
        store.decide(asked, report)
    again = open_store(config, open_storage(url))
    assert again.recover(lambda _: outcome_attribute(result, "run-0")) == []
    (record,) = again.trial_records()
    assert (record.state, record.value, record.cost) == (State.COMPLETED, result.value, result.cost)


def test_a_recipe_outside_the_space_is_on_the_front_though_optuna_does_not_learn_from_it() -> None:
    store = open_store(make_config(Tpe(), start={"recipes": [], "outside": "try"}))
    store.enqueue_start("mine.toml", {"model.depth": 1, "model.width_1": 1})
    run_trials(store, 8)
    assert store.trial_records()[0] == front_trials(store.trial_records(), "parameters")[0]


def test_importances_are_those_of_the_accuracy() -> None:
    store = open_store(make_config(Tpe()))
    run_trials(store, 12)
    alone = open_store(make_study(SPACE))
    for record in store.trial_records():  # the same trials, with the accuracy alone
        alone._study.add_trial(
            create_trial(
                params=store._study.trials[record.number].params,
                distributions=store._study.trials[record.number].distributions,
                value=record.value,
            )
        )
    assert store.importances().by_name == pytest.approx(alone.importances().by_name)


# ------------------------------------------------------------------------------------ studies that continue


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        ({}, {"objective": {"metrics": ["val_accuracy"]}}, "is val_accuracy now and was val_accuracy, parameters"),
        ({"objective": {"metrics": ["val_accuracy"]}}, {}, "is val_accuracy, parameters now and was val_accuracy"),
        (
            {},
            {"objective": {"metrics": ["val_accuracy", "mult_adds"]}},
            "is val_accuracy, mult_adds now and was val_accuracy, parameters",
        ),
    ],
)
def test_a_study_keeps_its_objectives(before: dict[str, Any], now: dict[str, Any], line: str) -> None:
    storage = optuna.storages.InMemoryStorage()
    open_store(make_config(Tpe(), **before), storage)
    with pytest.raises(UserError) as caught:
        open_store(make_config(Tpe(), **now), storage)
    assert caught.value.lines == (
        f"objective.metrics: {line} when the study 'small' was created; choose another name (--name), or start again "
        "with --fresh",
    )
    assert open_store(make_config(Tpe(), **before), storage).trial_records() == []


def test_a_study_whose_creation_was_cut_short_is_not_continued_with_other_objectives() -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="small", direction="maximize")
    with pytest.raises(UserError, match=r"objective\.metrics: names 2, and the study 'small' was created with 1"):
        open_store(make_config(Tpe()), storage)


def test_a_study_that_is_begun_anew_may_have_other_objectives() -> None:
    storage = optuna.storages.InMemoryStorage()
    run_trials(open_store(make_config(Tpe()), storage), 3)
    new = StudyStore.open_in(storage, make_study(SPACE), fresh=True)
    assert new.trial_records() == []
    archived = next(name for name in optuna.get_all_study_names(storage) if name != "small")
    found = StudyStore(optuna.load_study(study_name=archived, storage=storage), make_config(Tpe()))
    assert [record.cost is not None for record in found.trial_records()] == [True] * 3
