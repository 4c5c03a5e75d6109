"""What every sampler and every pruner promises, and the rules under which pruners are heeded."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from optuna.trial import TrialState

from fmnist_search.config import Halving, Median, NoPruner, Pruner, Sampler, Tpe
from fmnist_search.search.storage import open_storage
from fmnist_search.search.strategies import FIRST_RUNG_RESULTS, first_rung, heed_pruner, make_pruner, make_sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

# Whoever adds a sampler or a pruner to the study file adds it here.
SAMPLERS = [settings() for settings in get_args(get_args(Sampler)[0])]
PRUNERS = [settings() for settings in get_args(get_args(Pruner)[0])]
EPOCHS = 6

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda settings: settings.name)
every_pruner = pytest.mark.parametrize("pruner", PRUNERS, ids=lambda settings: settings.name)


def opened(sampler: Any, pruner: Any, seed: int, storage: optuna.storages.BaseStorage) -> optuna.Study:
    """The study of this storage, with strategies as fresh as after a restart."""
    study = optuna.create_study(storage=storage, study_name="toy", direction="maximize", load_if_exists=True)
    study.sampler, study.pruner = make_sampler(sampler, seed), make_pruner(pruner)
    return study


def run(study: optuna.Study, pruner: Any, count: int) -> None:
    """Trials of a toy problem with a conditional parameter, whose curves cross."""
    for _ in range(count):
        trial = study.ask()
        rate = trial.suggest_float("rate", 1e-3, 1e-1, log=True)
        depth = trial.suggest_int("depth", 1, 3)
        kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        width = sum(trial.suggest_int(f"width_{block}", 8, 64) for block in range(1, depth + 1))
        best = 0.5 + rate + (kind == "b") / 5 + width / 1000
        value = 0.0
        for epoch in range(1, EPOCHS + 1):
            value = best * (1 - (0.9 - depth / 10) ** epoch)
            trial.report(value, epoch)
            advice = trial.should_prune()
            if advice and heed_pruner(study.get_trials(deepcopy=False), pruner, epoch, EPOCHS):
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, value)


def trials_of(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.params, t.intermediate_values, t.value) for t in study.get_trials(deepcopy=False)]


def toy(sampler: Any, pruner: Any, seed: int, count: int) -> list[tuple[Any, ...]]:
    study = opened(sampler, pruner, seed, optuna.storages.InMemoryStorage())
    run(study, pruner, count)
    return trials_of(study)


# ----------------------------------------------------------------------------------- every sampler


@every_pruner
@every_sampler
def test_one_seed_gives_one_search(sampler: Any, pruner: Any) -> None:
    once, again = toy(sampler, pruner, 1, 25), toy(sampler, pruner, 1, 25)
    assert once == again
    assert len({str(params) for _, _, params, _, _ in once}) == 25


@every_sampler
def test_another_seed_gives_another_search(sampler: Any) -> None:
    searches = [toy(sampler, NoPruner(), seed, 5) for seed in range(4)]
    for one, other in itertools.combinations(searches, 2):
        assert all(mine[2] != theirs[2] for mine, theirs in zip(one, other, strict=True))


@every_pruner
@every_sampler
def test_a_search_goes_on_after_a_restart_as_if_there_had_been_none(sampler: Any, pruner: Any) -> None:
    storage = optuna.storages.InMemoryStorage()
    for count in (4, 13, 8):  # once among the first draws, once when the sampler has begun to learn
        run(opened(sampler, pruner, 1, storage), pruner, count)
    assert trials_of(opened(sampler, pruner, 1, storage)) == toy(sampler, pruner, 1, 25)


@every_sampler
def test_a_search_is_the_same_in_a_database(sampler: Any, tmp_path: Path) -> None:
    study = opened(sampler, Halving(), 1, open_storage(f"sqlite:///{tmp_path / 'optuna.db'}"))
    run(study, Halving(), 15)
    assert trials_of(study) == toy(sampler, Halving(), 1, 15)


@every_sampler
def test_workers_that_start_together_do_not_draw_alike(sampler: Any) -> None:
    # Each has a cold sampler of the same seed and takes the next trial before the others have ended.
    storage = optuna.storages.InMemoryStorage()
    trials = [opened(sampler, NoPruner(), 1, storage).ask() for _ in range(6)]
    rates = {trial.suggest_float("rate", 0, 1) for trial in trials}
    assert len(rates) == len(trials)


def test_tpe_learns_from_what_it_saw() -> None:
    values = [
        statistics.fmean(value for seed in range(3) for *_, value in toy(sampler, NoPruner(), seed, 40)[20:])
        for sampler in (Tpe(), *(other for other in SAMPLERS if other.name == "random"))
    ]
    # Drawn at random, a value has a deviation of about 0.1 here, and each mean is one of 60.
    assert values[0] > values[1] + 0.05


def test_tpe_draws_at_random_until_it_has_its_startup_trials() -> None:
    patient, eager = (toy(Tpe(startup_trials=count), NoPruner(), 1, 12) for count in (10, 5))
    assert patient[:5] == eager[:5]
    assert patient[6:] != eager[6:]


def test_strategies_are_made_without_warnings() -> None:
    code = (
        "from fmnist_search.config import Halving, Tpe\n"
        "from fmnist_search.search.strategies import make_pruner, make_sampler\n"
        "make_sampler(Tpe(), 0), make_pruner(Halving())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# ------------------------------------------------------------------------------------ every pruner


@every_pruner
@every_sampler
def test_nothing_is_pruned_among_the_first_results_nor_after_the_last_epoch(sampler: Any, pruner: Any) -> None:
    pruned = [trial for trial in toy(sampler, pruner, 2, 40) if trial[1] is TrialState.PRUNED]
    # The trial that is asked about has itself a result at the first rung.
    assert all(number >= FIRST_RUNG_RESULTS - 1 for number, *_ in pruned)
    assert all(max(reports) < EPOCHS for _, _, _, reports, _ in pruned)
    assert bool(pruned) is (pruner.name != "none")


@pytest.mark.parametrize(
    ("pruner", "rung"),
    [
        (Halving(), 1),
        (Halving(min_epochs=3), 3),
        (Median(), 1),
        (Median(warmup_epochs=2), 3),
    ],
    ids=["halving", "halving from 3", "median", "median from 3"],
)
def test_a_pruner_is_heeded_from_the_eighth_result_at_its_first_rung(pruner: Any, rung: int) -> None:
    assert (first_rung(pruner), FIRST_RUNG_RESULTS) == (rung, 8)
    study = optuna.create_study(direction="maximize")
    for results in range(1, 11):
        trial = study.ask()
        if rung > 1:
            # Results before the rung do not count.
            trial.report(0.5, rung - 1)
            assert heed_pruner(study.get_trials(), pruner, rung, 9) is (results > FIRST_RUNG_RESULTS)
        trial.report(0.5, rung)
        assert heed_pruner(study.get_trials(), pruner, rung, 9) is (results >= FIRST_RUNG_RESULTS)
        assert not heed_pruner(study.get_trials(), pruner, 9, 9)


def race(pruner: Any, levels: list[float]) -> list[int]:
    """The epochs that trials reach whose curves are flat, one after another."""
    study = opened(SAMPLERS[0], pruner, 0, optuna.storages.InMemoryStorage())
    reached = []
    for level in levels:
        trial = study.ask()
        for epoch in range(1, EPOCHS + 1):
            trial.report(level, epoch)
            if trial.should_prune() and heed_pruner(study.get_trials(deepcopy=False), pruner, epoch, EPOCHS):
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, level)
        reached.append(epoch)
    return reached


PRUNING = [settings for settings in PRUNERS if settings.name != "none"]
pruning = pytest.mark.parametrize("pruner", PRUNING, ids=lambda settings: settings.name)


@pruning
def test_the_first_are_spared_however_bad_they_are(pruner: Any) -> None:
    falling = [0.9 - number / 1000 for number in range(30)]
    spared = FIRST_RUNG_RESULTS - 1
    assert race(pruner, falling) == [EPOCHS] * spared + [1] * (30 - spared)


@pruning
def test_what_is_better_than_all_before_it_is_never_pruned(pruner: Any) -> None:
    assert race(pruner, [0.5 + number / 1000 for number in range(30)]) == [EPOCHS] * 30


@pruning
def test_a_good_trial_among_bad_ones_trains_to_its_end(pruner: Any) -> None:
    levels = [0.8 + number / 1000 if number % 4 == 0 else 0.3 - number / 1000 for number in range(24)]
    reached = race(pruner, levels)
    assert set(reached[::4]) == {EPOCHS}
    assert {reached[number] for number in range(FIRST_RUNG_RESULTS, 24) if number % 4} == {1}


def test_without_a_pruner_every_trial_trains_to_its_end() -> None:
    assert race(NoPruner(), [0.9 - number / 1000 for number in range(30)]) == [EPOCHS] * 30
