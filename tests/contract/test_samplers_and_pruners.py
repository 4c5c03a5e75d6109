"""The contract of every sampler and every pruner, alone and together, on a problem that needs no training."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest

from fmnist_search.config.conditional_space import space_size
from fmnist_search.config.pruners import (
    FALLBACK_PRUNER,
    Halving,
    Hyperband,
    Median,
    NoPruner,
    OneEpoch,
    Patience,
    Percentile,
    Pruner,
)
from fmnist_search.config.samplers import FALLBACK_SAMPLER, FreezeThaw, Gp, Qmc, Random, Sampler, Tpe
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.search.driver_storage import DriverStorage
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from tests.support.studies import make_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

# No sampler and no pruner gives a warning. A connection that another test left open is no concern of these.
pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("default::ResourceWarning"),
    pytest.mark.usefixtures("no_logged_warnings"),
]

SAMPLERS = [settings() for settings in get_args(get_args(Sampler)[0])]
PRUNERS = [settings() for settings in get_args(get_args(Pruner)[0])]
COMPARING_PRUNERS = [settings for settings in PRUNERS if settings.name not in ("none", "patience", "one-epoch")]
EPOCHS = 6
TRIALS = 16

each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda settings: settings.name)


def is_fast(sampler: Any, pruner: Any) -> bool:
    """Return whether a pair is tested by default: with a fallback of either, and the grid with Hyperband.

    Only a grid shows whether Hyperband has its brackets before its first call in a study that is resumed.
    """
    pairs_with_fallbacks = sampler == FALLBACK_SAMPLER or pruner == FALLBACK_PRUNER
    return pairs_with_fallbacks or (sampler.name, pruner.name) == ("grid", "hyperband")


def each_pair(pruners: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize a test with every sampler and pruner; most pairs are slow."""
    pairs = [
        pytest.param(
            sampler,
            pruner,
            id=f"{sampler.name}-{pruner.name}",
            marks=() if is_fast(sampler, pruner) else pytest.mark.slow,
        )
        for sampler in SAMPLERS
        for pruner in pruners
        if sampler.name != "freeze-thaw" or pruner.name == "none"
    ]
    return pytest.mark.parametrize(("sampler", "pruner"), pairs)


each_comparing_pruner = pytest.mark.parametrize("pruner", COMPARING_PRUNERS, ids=lambda settings: settings.name)

SPACE: dict[str, Any] = {
    "common": {
        "batch_size": [64, 128, 256],
        "label_smoothing": {"low": 0.0, "high": 0.5},
        "optimizer": {"learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
    },
    "cnn": {"depth": [1, 2, 3], "width_1": [8, 16], "width_2": [16, 32], "width_3": {"low": 32, "high": 64}},
}
FINITE_SPACE = {
    "common": {"batch_size": [64, 128], "label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.1}},
    "cnn": {"depth": [1, 2, 3], "width_2": [16, 32], "width_3": [32, 48, 64]},
}


@pytest.fixture
def no_logged_warnings() -> Iterator[None]:
    """Fail if Optuna logs a warning."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("optuna")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert records == []


def make_config(sampler: Any, pruner: Any, seed: int = 1, trials: int = TRIALS) -> StudyConfig:
    space = FINITE_SPACE if sampler.name == "grid" else SPACE
    budget = {"trials": trials, "epochs": EPOCHS}
    chosen = {"sampler": sampler} if sampler.name == "freeze-thaw" else {"sampler": sampler, "pruner": pruner}
    tables = {key: settings.model_dump(exclude_none=True) for key, settings in chosen.items()}
    return make_study(space, **tables, seed=seed, budget=budget)


def open_store(config: StudyConfig, storage: optuna.storages.BaseStorage | None = None) -> StudyStore:
    """Return the study of this storage, with a new sampler and pruner as after a restart."""
    storage = storage or optuna.storages.InMemoryStorage()
    found = optuna.create_study(storage=storage, study_name="toy", direction="maximize", load_if_exists=True)
    store = StudyStore(found, config)
    store.runtime = StudyRuntime(Execution(), "float32")
    return store


def final_accuracy(recipe: Recipe) -> float:
    """Return the accuracy of a problem with one best learning rate, and some gain from width and depth."""
    miss = math.log10(recipe.optimizer.learning_rate / 1e-2)
    return 0.9 - 0.2 * miss**2 - 0.3 * recipe.label_smoothing + sum(recipe.model.widths) / 5000


def learning_curve(recipe: Recipe) -> list[float]:
    """Return a learning curve; the curves of two recipes may cross, because deeper networks start lower."""
    depth = len(recipe.model.widths)
    return [final_accuracy(recipe) * (1 - (0.1 + depth / 10) ** epoch) for epoch in range(1, EPOCHS + 1)]


def run_trials(study_store: StudyStore, count: int, curve_of: Callable[[Recipe], list[float]] = learning_curve) -> None:
    """Run so many trials with known curves, without training; each time that a trial is paused counts as one."""
    for _ in range(count):
        if study_store.is_exhausted:
            return
        trial = study_store.ask()
        reports: list[EpochReport] = []
        state = TrialState.COMPLETED
        for epoch, value in enumerate(curve_of(trial.recipe), start=1):
            reports.append(EpochReport(epoch, 1.0, value, 1.0, value, 0.01, 1.0))
            if epoch in trial.curve:
                continue
            decision = study_store.decide(trial, reports[-1])
            if decision is not Decision.CONTINUE:
                state = TrialState.PRUNED if decision is Decision.PRUNE else TrialState.PAUSED
                break
        study_store.tell(trial, TrialResult(state, tuple(reports), float(len(reports))), "")


@functools.cache
def cached_search(sampler: Any, pruner: Any) -> list[TrialRecord]:
    """Return the records of a search that several tests share."""
    return run_search(sampler, pruner)


def run_search(sampler: Any, pruner: Any, seed: int = 1, count: int = TRIALS) -> list[TrialRecord]:
    store = open_store(make_config(sampler, pruner, seed, count))
    run_trials(store, count)
    return store.trial_records()


# ------------------------------------------------------------------------- pairs of sampler and pruner


@each_pair(PRUNERS)
def test_equal_seeds_give_equal_searches(sampler: Any, pruner: Any) -> None:
    once, again = cached_search(sampler, pruner), run_search(sampler, pruner)
    assert once == again
    assert len(once) == TRIALS or sampler.name == "freeze-thaw"


@each_pair(PRUNERS)
def test_resumed_search_equals_one_that_never_stopped(sampler: Any, pruner: Any) -> None:
    storage = optuna.storages.InMemoryStorage()
    config = make_config(sampler, pruner)
    for count in (4, 8, 4):  # stopped among the startup trials, and again after them
        run_trials(open_store(config, storage), count)
    assert open_store(config, storage).trial_records() == cached_search(sampler, pruner)


# ----------------------------------------------------------------------------------- every sampler


@each_sampler
def test_different_seeds_give_different_searches(sampler: Any) -> None:
    searches = [
        [record.recipe.seed_independent_key() for record in run_search(sampler, NoPruner(), seed, 5)]
        for seed in range(4)
    ]
    for one, other in itertools.combinations(searches, 2):
        assert one != other


@each_sampler
def test_search_is_the_same_with_the_storage_of_a_driver(sampler: Any, tmp_path: Path) -> None:
    storage = DriverStorage(open_storage(f"sqlite:///{tmp_path / 'optuna.db'}"), None, print)
    store = open_store(make_config(sampler, Halving()), storage)
    run_trials(store, 12)  # a model-based sampler has then sampled with its model
    if sampler.name == "freeze-thaw":
        assert store.trial_records() == run_search(sampler, Halving(), count=12)
    else:
        assert store.trial_records() == cached_search(sampler, Halving())[:12]


@each_sampler
def test_workers_that_start_together_sample_different_recipes(sampler: Any) -> None:
    # Each has a new sampler with the same seed and asks for a trial before the others have ended.
    storage = optuna.storages.InMemoryStorage()
    config = make_config(sampler, NoPruner())
    keys = {open_store(config, storage).ask().recipe.seed_independent_key() for _ in range(6)}
    assert len(keys) == 6


@each_sampler
def test_every_recipe_lies_in_the_space(sampler: Any) -> None:
    for record in cached_search(sampler, Halving()):
        flat = record.recipe.to_flat_dict()
        for name, domain in make_config(sampler, NoPruner()).space.domains("cnn").items():
            assert flat[name] == 0 or domain.contains(flat[name])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Tpe(), Gp()], ids=lambda settings: settings.name)
def test_model_based_sampler_beats_random_search(sampler: Any) -> None:
    values = [
        statistics.fmean(
            record.value or 0.0 for seed in range(3) for record in run_search(one, NoPruner(), seed, 20)[10:]
        )
        for one in (sampler, Random())
    ]
    # With random search, the standard deviation of a value is about 0.09; each mean is over 30 values.
    assert values[0] > values[1] + 0.04


def test_qmc_samples_one_sequence_for_the_whole_study() -> None:
    # The first 16 points of one Sobol sequence have one value in each sixteenth of a range.
    values = [record.recipe.label_smoothing for record in cached_search(Qmc(), NoPruner())]
    assert sorted(int(value / 0.5 * 16) for value in values) == list(range(16))


def test_tpe_samples_at_random_before_its_startup_trials_have_ended() -> None:
    late, early = (run_search(Tpe(startup_trials=count), NoPruner(), 1, 12) for count in (10, 5))
    assert late[:5] == early[:5]
    assert late[6:] != early[6:]


@pytest.mark.slow
def test_tpe_learns_conditional_hyperparameters() -> None:
    # The width of the third block decides, and only a third of the random recipes has a third block.
    def by_third_width(recipe: Recipe) -> list[float]:
        widths = recipe.model.widths
        return [0.5 + (widths[2] / 200 if len(widths) > 2 else 0.0)] * EPOCHS

    widths = []
    for seed in range(3):
        store = open_store(make_config(Tpe(), NoPruner(), seed, 60))
        run_trials(store, 50, by_third_width)
        widths += [
            recipe.widths[2] for record in store.trial_records()[30:] if len((recipe := record.recipe.model).widths) > 2
        ]
    assert len(widths) > 40
    assert statistics.fmean(widths) > 56  # 48 is the mean of random search


@each_sampler
def test_independently_sampled_hyperparameters_are_named(sampler: Any) -> None:
    left = make_config(sampler, NoPruner()).independently_sampled
    conditional = {"model.width_2", "model.width_3"}
    choices = {"batch_size", "model.depth", "model.width_1"}
    assert set(left) == {"gp": conditional, "cmaes": conditional | choices}.get(sampler.name, set())


def test_grid_tries_every_recipe_once_and_is_then_exhausted() -> None:
    config = make_config(next(s for s in SAMPLERS if s.name == "grid"), NoPruner())
    count = space_size(config.space).recipe_count
    assert count == 2 * 3 * (1 + 2 + 2 * 3)
    store = open_store(config)
    run_trials(store, 10 * count)
    assert len(store.trial_records()) == count
    assert len({record.recipe.seed_independent_key() for record in store.trial_records()}) == count
    assert store.is_exhausted


def test_grid_does_not_repeat_running_or_failed_recipes() -> None:
    config = make_config(next(s for s in SAMPLERS if s.name == "grid"), NoPruner())
    store = open_store(config)
    running = store.ask().recipe.seed_independent_key()
    failed = store.ask()
    store.tell(failed, TrialResult(TrialState.FAILED, (), 0.0, reason="out of memory"), "")
    run_trials(store, 1000)
    keys = [record.recipe.seed_independent_key() for record in store.trial_records()]
    assert running not in keys
    assert keys.count(failed.recipe.seed_independent_key()) == 1


# ------------------------------------------------------------------------------------ every pruner


@each_pair(COMPARING_PRUNERS)
def test_no_trial_is_pruned_after_its_last_epoch(sampler: Any, pruner: Any) -> None:
    pruned = [record for record in run_search(sampler, pruner, 2, 30) if record.state is TrialState.PRUNED]
    assert all(record.epochs < EPOCHS for record in pruned)
    assert pruned


@pytest.mark.parametrize(
    ("pruner", "rung"),
    [
        (Halving(), 2),
        (Halving(min_epochs=1), 1),
        (Halving(min_epochs=3), 3),
        (Hyperband(min_epochs=2), 2),
        (Median(), 1),
        (Median(warmup_epochs=2), 3),
        (Percentile(warmup_epochs=1), 2),
        (Patience(epochs=1), 3),
        (OneEpoch(epochs=2), 2),
    ],
    ids=repr,
)
def test_no_trial_is_pruned_before_the_first_rung(pruner: Any, rung: int) -> None:
    assert pruner.first_rung(EPOCHS) == rung
    reached = epochs_reached(pruner, [0.9 - number / 1000 for number in range(30)], falling=True)
    assert min(reached) == rung


def epochs_reached(pruner: Any, accuracies: list[float], *, falling: bool = False) -> list[int]:
    """Return the epochs that trials with flat or slightly falling curves reach, one trial after another."""
    upcoming = iter(accuracies)
    store = open_store(make_config(Random(), pruner, trials=len(accuracies) + 1))

    def next_curve(_: Recipe) -> list[float]:
        level = next(upcoming)
        return [level - falling * epoch / 10_000 for epoch in range(EPOCHS)]

    run_trials(store, len(accuracies), next_curve)
    return [record.epochs for record in store.trial_records()]


STARTUP_TRIALS = 7
# Halving counts the trial that it is asked about; the others count trials that completed before.
each_startup_pruner = pytest.mark.parametrize(
    "pruner",
    [
        Halving(min_epochs=1, startup_trials=STARTUP_TRIALS + 1),
        Median(startup_trials=STARTUP_TRIALS),
        Percentile(startup_trials=STARTUP_TRIALS),
    ],
    ids=lambda settings: settings.name,
)


@each_startup_pruner
def test_startup_trials_are_not_pruned(pruner: Any) -> None:
    falling = [0.9 - number / 1000 for number in range(30)]
    assert epochs_reached(pruner, falling) == [EPOCHS] * STARTUP_TRIALS + [1] * (30 - STARTUP_TRIALS)


@each_comparing_pruner
def test_trial_better_than_all_before_is_never_pruned(pruner: Any) -> None:
    assert epochs_reached(pruner, [0.5 + number / 1000 for number in range(30)]) == [EPOCHS] * 30


@each_startup_pruner
def test_good_trial_among_bad_ones_is_completed(pruner: Any) -> None:
    levels = [0.8 + number / 1000 if number % 4 == 0 else 0.3 - number / 1000 for number in range(24)]
    reached = epochs_reached(pruner, levels)
    assert set(reached[::4]) == {EPOCHS}
    assert {reached[number] for number in range(STARTUP_TRIALS + 1, 24) if number % 4} == {1}


def test_hyperband_prunes_in_two_brackets() -> None:
    reached = epochs_reached(Hyperband(min_epochs=1), [0.9 - number / 1000 for number in range(40)])
    assert set(reached) == {1, 3, EPOCHS}  # the first rungs of its two brackets, and the first trial of each
    assert reached.count(EPOCHS) == 2


def test_patience_prunes_trials_that_do_not_improve() -> None:
    assert epochs_reached(Patience(epochs=1), [0.9, 0.5], falling=True) == [3, 3]
    assert epochs_reached(Patience(epochs=1, min_delta=0.5), [0.9, 0.5], falling=True) == [EPOCHS] * 2


def test_without_a_pruner_every_trial_is_completed() -> None:
    assert epochs_reached(NoPruner(), [0.9 - number / 1000 for number in range(30)]) == [EPOCHS] * 30


# ------------------------------------------------------------------------------- the one-epoch rule


@pytest.mark.parametrize("epochs", [1, 2])
def test_best_candidates_are_trained_in_full_best_first(epochs: int) -> None:
    records = run_search(Random(), OneEpoch(survivors=3, epochs=epochs))
    candidates, survivors = records[: TRIALS - 3], records[TRIALS - 3 :]
    assert all((record.state, record.epochs) == (TrialState.PRUNED, epochs) for record in candidates)
    assert all((record.state, record.epochs) == (TrialState.COMPLETED, EPOCHS) for record in survivors)
    best = sorted(candidates, key=lambda record: -(record.value or 0.0))[:3]
    assert [record.recipe for record in survivors] == [record.recipe for record in best]  # their seeds too


def test_larger_budget_adds_candidates_and_survivors() -> None:
    storage = optuna.storages.InMemoryStorage()
    run_trials(open_store(make_config(Random(), OneEpoch(survivors=2), trials=10), storage), 10)
    store = open_store(make_config(Random(), OneEpoch(survivors=2), trials=20), storage)
    run_trials(store, 10)
    states = [record.state for record in store.trial_records()]
    assert states == ([TrialState.PRUNED] * 8 + [TrialState.COMPLETED] * 2) * 2


def test_survivors_of_an_exhausted_grid_are_trained() -> None:
    grid = next(s for s in SAMPLERS if s.name == "grid")
    config = make_config(grid, OneEpoch(survivors=3), trials=1000)
    count = space_size(config.space).recipe_count
    store = open_store(config)
    run_trials(store, count + 3)
    assert [record.state for record in store.trial_records()] == [TrialState.PRUNED] * count + [
        TrialState.COMPLETED
    ] * 3


# ------------------------------------------------------------------- combinations that are errors

CONTINUOUS_SPACE = {"common": {"optimizer": {"learning_rate": {"low": 1e-3, "high": 1e-1}}}}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"sampler": "grid", "space": CONTINUOUS_SPACE},
            "space.common.optimizer.learning_rate: is infinite, which a grid cannot be; give a list or a step",
        ),
        (
            {"sampler": "grid", "space": {"cnn": {f"width_{n}": {"low": 1, "high": 100} for n in (1, 2, 3)}}},
            "sampler: a grid of 1,000,000 recipes; reduce the space to at most 10,000, or take another sampler",
        ),
        (
            {"sampler": "cmaes", "space": {"cnn": {"depth": [1, 2]}}},
            "sampler: 'cmaes' needs a range that every recipe has, and this space has none; give one as "
            "{ low = .., high = .. }, or take 'tpe'",
        ),
        (
            {"pruner": {"name": "halving", "min_epochs": 6}},
            "pruner: 'halving' can prune a trial after epoch 6 at the earliest, and budget.epochs = 6 is the last; "
            "prune earlier, train longer, or take the pruner 'none'",
        ),
        (
            {"pruner": {"name": "patience", "epochs": 4}},
            "pruner: 'patience' can prune a trial after epoch 6 at the earliest, and budget.epochs = 6 is the "
            "last; prune earlier, train longer, or take the pruner 'none'",
        ),
        (
            {"pruner": "one-epoch", "budget": {"minutes": 5, "epochs": 6}},
            "pruner: 'one-epoch' needs the number of trials; give budget.trials",
        ),
        (
            {"pruner": {"name": "one-epoch", "survivors": 30}},
            "pruner.survivors: 30 of budget.trials = 16 leave no candidates to choose from; give more trials or fewer "
            "survivors",
        ),
        (
            {"budget": {"trials": 5, "target": 92.0}},
            "budget.target: 92 is not an accuracy between 0 and 1; 92 % is 0.92",
        ),
        ({"budget": {"epochs": 3}}, "budget: a study needs an end; give trials, minutes or both"),
    ],
)
def test_invalid_combination_is_one_line(tables: dict[str, Any], message: str) -> None:
    study = {"budget": {"trials": TRIALS, "epochs": EPOCHS}, "space": SPACE, **tables}
    with pytest.raises(UserError) as caught:
        make_study(**study)
    assert caught.value.lines == (message,)


# ---------------------------------------------------------------------------------------- freeze-thaw


def test_with_freeze_thaw_each_start_recipe_begins_before_one_goes_on() -> None:
    store = open_store(make_config(FreezeThaw(), NoPruner()))
    for rate in (0.01, 0.02, 0.03):
        store.enqueue_start(str(rate), {"optimizer.learning_rate": rate})
    run_trials(store, 2)
    paused = store.trial_records()
    assert [(record.state, record.epochs) for record in paused] == [(TrialState.PAUSED, 1)] * 2
    run_trials(store, 2)
    rates = [record.recipe.optimizer.learning_rate for record in store.trial_records()]
    assert rates[:3] == [0.01, 0.02, 0.03]


@pytest.mark.slow
def test_freeze_thaw_finds_a_better_trial_with_the_same_epochs_than_random_search() -> None:
    def best(sampler: Any, seed: int) -> float:
        store = open_store(make_config(sampler, NoPruner(), seed))
        epochs = 0
        while epochs < 8 * EPOCHS:
            run_trials(store, 1)
            epochs = sum(record.epochs for record in store.trial_records())
        completed = [record for record in store.trial_records() if record.state is TrialState.COMPLETED]
        return max(record.value or 0.0 for record in completed)

    found = [statistics.fmean(best(sampler, seed) for seed in range(6)) for sampler in (FreezeThaw(), Random())]
    assert found[0] > found[1]
