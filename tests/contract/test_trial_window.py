"""What TPE learns from in a large study: the best and the newest trials, and draws that depend on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, TrialState, create_trial

from fmnist_search.config.samplers import Random, Tpe
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import EpochReport, TrialResult
from fmnist_search.results.training import TrialState as State
from fmnist_search.search.driver_storage import DriverStorage
from fmnist_search.search.samplers import PerTrialSampler, WindowedSampler, joint_distributions, make_sampler
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import base_recipe, suggest_recipe
from fmnist_search.search.trial_attributes import PAUSED_ATTRIBUTE
from fmnist_search.search.trial_window import MAX_RUNNING, TrialWindow
from tests.support.studies import make_study

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
QUEUED = 7
"""Number of a trial that is queued."""
CONFIG = make_study(
    {
        "common": {"batch_size": [64, 128], "optimizer.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
        "cnn": {"depth": [1, 2], "width_1": [8, 16], "width_2": {"low": 8, "high": 64}},
    }
)
SPACE = CONFIG.space

Event = tuple[int, TrialState | None, float]
"""What happens after an ask: which of the running trials ends, how, and with which value. None lets all run on."""

outcomes = st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, *ENDED, TrialState.FAIL, None])
events = st.lists(st.tuples(st.integers(0, 9), outcomes, st.floats(0, 1)), min_size=9, max_size=14)


def search(sampler: BaseSampler, happened: Sequence[Event]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the hyperparameters and the stored attributes of each trial of a search."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    running: list[optuna.Trial] = []
    for number, (place, state, value) in enumerate(happened):
        if number == QUEUED:
            study.enqueue_trial({"batch_size": 128})  # its other hyperparameters are sampled independently
        trial = study.ask()
        suggest_recipe(trial, SPACE, base_recipe(CONFIG, "float32"), 0)
        running.append(trial)
        if state is not None:
            end(study, running.pop(place % len(running)), state, value)
    return [(trial.params, trial.system_attrs) for trial in study.trials]


def end(study: optuna.Study, trial: optuna.Trial, state: TrialState, value: float) -> None:
    trial.report(value, 1)
    study.tell(trial, value if state is TrialState.COMPLETE else None, state=state)


# ------------------------------------------------------------------------------------------- draws


@settings(max_examples=8)
@given(events, st.integers(0, 5), st.sampled_from([0, 14, 300]))
def test_draws_are_those_of_optunas_tpe_while_the_window_holds_all_trials(
    happened: list[Event], seed: int, window: int
) -> None:
    def create(trial_seed: int) -> BaseSampler:
        return TPESampler(n_startup_trials=2, n_ei_candidates=24, multivariate=True, seed=trial_seed)

    settings_ = Tpe(startup_trials=2, window=window)
    unlimited = PerTrialSampler(create, seed, joint_distributions(settings_, SPACE))
    assert search(make_sampler(settings_, seed, SPACE), happened) == search(unlimited, happened)


def test_trials_that_the_window_does_not_hold_change_no_draw() -> None:
    # Of the ten oldest trials, only the best is in a window of eight.
    window, values = Tpe(startup_trials=3, window=8), [n / 100 for n in range(30)]
    values[4] = 0.9

    def draw(oldest: Sequence[float], settings_: Tpe) -> dict[str, Any]:
        study = optuna.create_study(direction="maximize", sampler=make_sampler(Random(), 0, SPACE))
        for value in [*oldest, *values[10:]]:
            trial = study.ask()
            suggest_recipe(trial, SPACE, base_recipe(CONFIG, "float32"), 0)
            study.tell(trial, value)
        study.sampler = make_sampler(settings_, 0, SPACE)
        trial = study.ask()
        suggest_recipe(trial, SPACE, base_recipe(CONFIG, "float32"), 0)
        return trial.params

    reordered = [values[9], *values[1:4], values[4], *values[5:9], values[0]]
    others = [value / 3 if value != 0.9 else value for value in reordered]
    assert draw(values[:10], window) == draw(others, window)
    assert draw(values[:10], window) != draw(values[:10], Tpe(startup_trials=3, window=0))


# ---------------------------------------------------------------------------------------- the window


class Recorder(RandomSampler):
    """Samples at random, and keeps which trials it was shown."""

    def __init__(self, shown: list[list[FrozenTrial]], seed: int):
        super().__init__(seed)
        self._shown = shown

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        self._shown.append(study.get_trials(deepcopy=False))
        return super().sample_relative(study, trial, search_space)


@settings(max_examples=10)
@given(events, st.integers(1, 5))
def test_a_sampler_is_shown_at_most_the_window_of_ended_and_of_running_trials(happened: list[Event], size: int) -> None:
    shown: list[list[FrozenTrial]] = []
    groups = joint_distributions(Tpe(), SPACE)[:1]
    search(WindowedSampler(lambda seed: Recorder(shown, seed), 0, groups, TrialWindow(size)), happened)
    numbers = [number for number in range(len(happened)) if number != QUEUED]
    for number, trials in zip(numbers, shown, strict=True):
        ended = [trial for trial in trials if trial.state in ENDED]
        before = [state for _, state, _ in happened[:number] if state is not None]
        assert len(ended) == min(size, sum(state in ENDED for state in before))
        assert len(trials) - len(ended) == min(size, number - len(before))
        assert all(trial.state in (*ENDED, TrialState.RUNNING) for trial in trials)


trial_states = st.sampled_from([*TrialState, "paused"])
snapshots = st.lists(st.tuples(trial_states, st.integers(0, 5), st.integers(1, 3)), max_size=60)


def make_trial(number: int, state: TrialState | str, value: int, step: int) -> FrozenTrial:
    paused = state == "paused"
    shown = TrialState.PRUNED if paused else TrialState(state)
    trial = create_trial(
        state=shown,
        value=value if shown is TrialState.COMPLETE else None,
        intermediate_values={} if value == 0 else {step: math.nan if value == 1 else value},
        user_attrs={PAUSED_ATTRIBUTE: True} if paused else {},
    )
    trial.number = number
    return trial


@settings(max_examples=60)
@given(snapshots, st.integers(1, 40), st.data())
def test_the_window_holds_the_best_as_optuna_ranks_them_and_the_newest_others(
    described: list[tuple[TrialState | str, int, int]], size: int, data: st.DataObject
) -> None:
    trials = [make_trial(number, *one) for number, one in enumerate(described)]
    study = optuna.create_study(direction="maximize")
    ended = [trial for trial in trials if trial.state in ENDED]
    best, others = _split_trials(study, ended, default_gamma(size))
    running = [trial for trial in trials if trial.state is TrialState.RUNNING and trial.number != 0]
    wanted = [*best, *others[max(0, len(others) + len(best) - size) :], *running[-size:]]
    assert TrialWindow(size).select(trials, 0) == sorted(wanted, key=lambda trial: trial.number)

    # The same if it has looked at the study before, when fewer trials existed and fewer had ended.
    window = TrialWindow(size)
    for count in sorted(data.draw(st.lists(st.integers(0, len(trials)), max_size=3))):
        window.select([_earlier(trial, data) for trial in trials[:count]], 0)
    assert window.select(trials, 0) == sorted(wanted, key=lambda trial: trial.number)


def test_of_many_running_trials_the_window_holds_the_newest() -> None:
    trials = [make_trial(number, TrialState.RUNNING, 0, 1) for number in range(200)]
    found = [trial.number for trial in TrialWindow(300).select(trials, 199)]
    assert found == list(range(199 - MAX_RUNNING, 199))


def _earlier(trial: FrozenTrial, data: st.DataObject) -> FrozenTrial:
    """Return a trial as it is or as it may have been."""
    before: TrialState | str = data.draw(st.sampled_from([TrialState.WAITING, TrialState.RUNNING, "paused"]))
    return data.draw(st.sampled_from([trial, make_trial(trial.number, before, 2, 1)]))


def test_a_paused_trial_is_in_the_window_with_its_last_value_and_later_with_its_final_one(tmp_path: Path) -> None:
    storage = DriverStorage(open_storage(f"sqlite:///{tmp_path / 'optuna.db'}"), None, print)
    shown: list[list[FrozenTrial]] = []
    groups = joint_distributions(Tpe(), SPACE)[:1]
    sampler = WindowedSampler(lambda seed: Recorder(shown, seed), 0, groups, TrialWindow(1))
    study = optuna.create_study(storage=storage, direction="maximize", sampler=sampler)
    paused = study.ask()
    paused.report(0.4, 1)
    for value in (None, 0.5):
        paused.set_user_attr(PAUSED_ATTRIBUTE, None if value else True)
        if value:
            study.tell(paused, value)
        suggest_recipe(study.ask(), SPACE, base_recipe(CONFIG, "float32"), 0)
        assert [(trial.state, trial.value) for trial in shown[-1] if trial.number == paused.number] == [
            (TrialState.COMPLETE if value else TrialState.PRUNED, value or 0.4)
        ]


# ------------------------------------------------------------------------------- studies that continue


def open_study(config: StudyConfig, storage: optuna.storages.BaseStorage) -> StudyStore:
    store = StudyStore.open_in(storage, config)
    store.runtime = StudyRuntime(Execution(), "float32")
    return store


def run_trials(store: StudyStore, count: int) -> None:
    for _ in range(count):
        trial = store.ask()
        rate, states = trial.recipe.optimizer.learning_rate, (State.PRUNED, State.COMPLETED)
        reports = tuple(EpochReport(epoch, 1.0, 0.5, 1.0, 1 - rate * epoch, 0.01, 1.0) for epoch in (1, 2))
        for report in reports:
            store.decide(trial, report)
        store.tell(trial, TrialResult(states[trial.number % 2], reports, 1.0), "")


@settings(max_examples=8)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(3, 6))
def test_a_study_that_is_resumed_draws_the_same_as_one_that_was_not(stops: list[int], window: int) -> None:
    config = make_study(sampler={"name": "tpe", "startup_trials": 3, "window": window}, pruner="none")
    resumed, whole = optuna.storages.InMemoryStorage(), open_study(config, optuna.storages.InMemoryStorage())
    for count in stops:
        run_trials(open_study(config, resumed), count)
    run_trials(whole, sum(stops))
    assert open_study(config, resumed).trial_records() == whole.trial_records()


def window_of(store: StudyStore) -> int:
    assert isinstance(store.config.sampler, Tpe)
    return store.config.sampler.window


def study_with(sampler: object) -> StudyConfig:
    return make_study(sampler=sampler)


def test_a_study_keeps_its_window_unless_another_one_is_given() -> None:
    storage = optuna.storages.InMemoryStorage()
    assert window_of(open_study(study_with("tpe"), storage)) == Tpe().window > 0
    assert window_of(open_study(study_with({"window": 40}), storage)) == 40
    assert window_of(open_study(study_with("tpe"), storage)) == 40
    open_study(study_with("random"), storage)
    assert window_of(open_study(study_with("tpe"), storage)) == Tpe().window


def test_a_study_that_was_stored_without_a_window_goes_on_without_one() -> None:
    storage = optuna.storages.InMemoryStorage()
    config = study_with("tpe")
    old = config.to_toml().replace(f"window = {Tpe().window}\n", "")
    optuna.create_study(storage=storage, study_name=config.name, direction="maximize").set_user_attr("config", old)
    found = StudyStore.find_in(storage, config)
    assert found is not None
    assert window_of(found) == 0
    assert window_of(open_study(config, storage)) == 0
    assert window_of(open_study(config, storage)) == 0  # now it is stored
    assert window_of(open_study(study_with({"window": 40}), storage)) == 40
