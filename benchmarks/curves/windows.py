"""What a window of trials (`sampler.window`) costs and saves: searches of thousands of trials on a surrogate.

The searches are asynchronous on a simulated clock, on which each epoch takes one unit of time, and prune by successive
halving as the default does. The sampler is that of a study.
"""

from __future__ import annotations

import bisect
import heapq
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from benchmarks.curves.recorded import Array
from benchmarks.curves.surrogate import SurrogateCurves
from fmnist_search.config.pruners import Halving
from fmnist_search.config.samplers import Random, Tpe
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.search.samplers import make_sampler
from fmnist_search.search.suggest import base_recipe, suggest_recipe

LAST_TRIALS = 250
"""Trials whose mean tells where a search has come to: less noisy than its best trial."""


@dataclass(frozen=True)
class LongSearch:
    """One search: accuracies at the last epoch, without noise, and the CPU seconds of all asks.

    `proposed` has that of each trial, by number; `selected`, after each trial that ended, that of the completed trial
    with the best accuracy with noise.
    """

    proposed: Array
    selected: Array
    ask_seconds: float


class Rungs:
    """The decisions of successive halving, as Optuna's, on sorted lists."""

    def __init__(self, settings: Halving, epochs: int):
        self._factor = settings.reduction_factor
        self._values: dict[int, list[float]] = {}
        rung = settings.first_rung(epochs)
        while rung < epochs:
            self._values[rung] = []
            rung *= self._factor

    def prunes(self, epoch: int, value: float) -> bool:
        """Return whether a trial with this value after this epoch is pruned."""
        if epoch not in self._values:
            return False
        values = self._values[epoch]
        bisect.insort(values, value)
        return value < values[-max(1, len(values) // self._factor)]


def long_search(curves: SurrogateCurves, settings: Tpe, seed: int, trials: int, workers: int) -> LongSearch:
    """Return a search of so many trials, with so many running at a time."""
    config, epochs = curves.config, curves.config.budget.epochs
    sampler = make_sampler(settings, seed, config.space)
    study, base = optuna.create_study(direction="maximize", sampler=sampler), base_recipe(config, "float32")
    rungs, rng, seconds = Rungs(Halving(), epochs), np.random.default_rng(seed), 0.0
    running: list[tuple[int, int, optuna.Trial, Array]] = []
    proposed: list[float] = []
    selected: list[float] = []
    best = (0.0, 0.0)  # with noise and without

    def start(now: int) -> None:
        nonlocal seconds
        before = time.process_time()
        trial = study.ask()
        recipe = suggest_recipe(trial, config.space, base, 0)
        seconds += time.process_time() - before
        curve = curves.predict(recipe.to_flat_dict())
        proposed.append(curve[-1])
        heapq.heappush(running, (now + 1, trial.number, trial, curve + rng.normal() * curves.noise))

    for _ in range(min(workers, trials)):
        start(0)
    while running:
        now, number, trial, curve = heapq.heappop(running)
        epoch = len(study._storage.get_trial(trial._trial_id).intermediate_values) + 1
        value = float(curve[epoch - 1])
        trial.report(value, epoch)
        if epoch < epochs and not rungs.prunes(epoch, value):
            heapq.heappush(running, (now + 1, number, trial, curve))
            continue
        if epoch < epochs:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
            best = max(best, (value, proposed[number]))
        selected.append(best[1])
        if len(proposed) < trials:
            start(now)
    return LongSearch(np.array(proposed), np.array(selected), seconds)


def compare_windows(
    curves: SurrogateCurves, windows: Sequence[int], seeds: int, trials: int, workers: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each search, all windows with one seed after the other."""
    for seed in range(seeds):
        for window in windows:
            one = long_search(curves, Tpe(window=window), seed, trials, workers)
            yield {
                "window": window, "running": workers, "trials": trials, "seed": seed,
                "ask_ms": round(1000 * one.ask_seconds / trials, 2),
                "selected": _at_checkpoints(one.selected, 1),
                "proposed": _at_checkpoints(one.proposed, LAST_TRIALS),
            }  # fmt: skip


def _at_checkpoints(accuracies: Array, count: int) -> dict[str, float]:
    """Return the mean of the last `count` accuracies after each half, quarter .. of the trials, in percent."""
    at = [len(accuracies) * part // 4 for part in (1, 2, 3, 4)]
    return {str(n): round(100 * float(accuracies[:n][-count:].mean()), 3) for n in at}


@dataclass(frozen=True)
class AskCost:
    """Median CPU milliseconds of an ask in memory, by the trials that have ended and that run, and the window."""

    known: int
    running: int
    window: int
    milliseconds: float


def measure_asks(known: Sequence[int], running: Sequence[int], windows: Sequence[int]) -> Iterator[AskCost]:
    """Yield the cost of an ask for all combinations."""
    config = StudyConfig.load(Path(__file__).parent / "cpu.toml")
    recipes = _random_trials(config, 200)
    for busy in running:
        study = optuna.create_study(direction="maximize")
        for number in range(busy):
            study.add_trial(_as_trial(recipes[number % len(recipes)], TrialState.RUNNING, None))
        for count in sorted(known):
            for number in range(len(study.get_trials(deepcopy=False, states=_ENDED)), count):
                value = float(np.random.default_rng(number).random())
                state = TrialState.PRUNED if number % 3 else TrialState.COMPLETE
                study.add_trial(_as_trial(recipes[number % len(recipes)], state, value))
            for window in windows:
                study.sampler = make_sampler(Tpe(window=window), 0, config.space)
                yield AskCost(count, busy, window, _ask_milliseconds(study, config))


_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def _random_trials(config: StudyConfig, count: int) -> list[FrozenTrial]:
    study = optuna.create_study(sampler=make_sampler(Random(), 0, config.space))
    for _ in range(count):
        suggest_recipe(study.ask(), config.space, base_recipe(config, "float32"), 0)
    return study.trials


def _as_trial(trial: FrozenTrial, state: TrialState, value: float | None) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values={} if value is None else {1: value, 2: value},
    )


def _ask_milliseconds(study: optuna.Study, config: StudyConfig, asks: int = 9) -> float:
    base, times = base_recipe(config, "float32"), []
    for _ in range(asks):
        before = time.process_time()
        trial = study.ask()
        suggest_recipe(trial, config.space, base, 0)
        times.append(time.process_time() - before)
        study.tell(trial, state=TrialState.FAIL)
    return 1000 * statistics.median(times)
