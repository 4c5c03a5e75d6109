"""Searches that replay recorded curves, without training, with simulated compute.

When the sampler suggests a recipe, the nearest recorded recipe that was not tried yet takes its place. All else is
the code of a study: its store asks, prunes and tells.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState as OptunaState

from benchmarks.curves.table import CurveTable
from fmnist_search.config.domain import Choice, Domain, Range
from fmnist_search.config.pruners import Halving, Hyperband, Median, NoPruner, OneEpoch, Percentile, Pruner
from fmnist_search.config.samplers import Gp, Qmc, Random, Sampler, Tpe
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import is_active
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from fmnist_search.search.study_store import StudyRuntime, StudyStore

Array = npt.NDArray[np.float64]


class Summary(TypedDict):
    """The results of a method for JSON: medians with the ends of their 95 % intervals, by compute."""

    compute_to_reach_target: float | None
    regret_points: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Method:
    """A sampler and a pruner. The one-epoch rule needs the number of trials."""

    name: str
    sampler: Sampler
    pruner: Pruner
    trials: int = 10_000


@dataclass(frozen=True)
class SearchTrace:
    """One replayed search: the final accuracy of the best completed trial, by compute."""

    compute_spent: tuple[float, ...]
    best_values: tuple[float, ...]

    def best_after(self, compute: float) -> float:
        """Return the best value after this compute; 0 before a trial has completed."""
        return max((v for c, v in zip(self.compute_spent, self.best_values, strict=True) if c <= compute), default=0.0)


class RecordedRecipes:
    """The recipes of a table, their curves, and the cost of each epoch, in mean full trainings."""

    def __init__(self, table: CurveTable, clock: str):
        searched = table.curves_of_kind("search")
        self.config = StudyConfig.from_dict(table.header.study)
        self.precision = table.header.precision
        self.recipe_numbers = sorted(number for number, curve in searched.items() if not curve.failed)
        self.curves = [searched[number].val_accuracy for number in self.recipe_numbers]
        self.values = [searched[number].values for number in self.recipe_numbers]
        self.final_accuracies = np.array([curve[-1] for curve in self.curves])
        seconds = np.array([searched[number].seconds for number in self.recipe_numbers])
        costs = seconds if clock == "seconds" else np.ones_like(seconds)
        self.epoch_costs = costs / costs.sum(1).mean()
        self._domains = self.config.space.domains("cnn")
        self.features = np.stack([self.feature_vector(values) for values in self.values])

    def nearest_recipe(self, values: Mapping[str, Value], free: set[int]) -> int:
        """Return the nearest of the free recipes, with each hyperparameter scaled to a domain of length 1."""
        candidates = sorted(free)
        squares = self.squared_differences(self.feature_vector(values)[None], candidates)[0]
        return candidates[int(squares.sum(1).argmin())]

    def squared_differences(self, features: Array, recipes: Sequence[int] | slice = slice(None)) -> Array:
        """Return for each feature vector, recorded recipe and hyperparameter how far they are apart, squared."""
        recorded = self.features[recipes]
        differences = recorded[None] - features[:, None]
        # A hyperparameter that only one of two recipes has counts as half a domain.
        squares = np.where(np.isnan(differences), 0.25, differences**2)
        both_absent = np.isnan(recorded)[None] & np.isnan(features)[:, None]
        return np.where(both_absent, 0.0, squares)

    def feature_vector(self, values: Mapping[str, Value]) -> Array:
        """Return the hyperparameters of a recipe, each scaled to a domain of length 1; NaN for those it lacks."""
        there = {name: domain for name, domain in self._domains.items() if is_active(name, FAMILIES["cnn"], values)}
        places = {name: _normalized_position(values[name], domain) for name, domain in there.items()}
        return np.array([places.get(name, math.nan) for name in self._domains])


def _normalized_position(value: Value, domain: Domain) -> float:
    match domain:
        case Choice(choices):
            return choices.index(value) / (len(choices) - 1)
        case Range(low, high, True):
            assert not isinstance(value, str)
            return math.log(value / low) / math.log(high / low)
        case Range(low, high):
            assert not isinstance(value, str)
            return (value - low) / (high - low)
    return 0.0


def replay_search(recorded: RecordedRecipes, method: Method, seed: int, budget_compute: float) -> SearchTrace:
    """Replay one search until the budget, in mean full trainings, the trials or the recorded recipes are used up."""
    budget = recorded.config.budget.model_copy(update={"trials": method.trials})
    changes = {"sampler": method.sampler, "pruner": method.pruner, "budget": budget, "seed": seed}
    study = optuna.create_study(direction="maximize", study_name=f"{method.name} {seed}")
    store = StudyStore(study, recorded.config.model_copy(update=changes))
    store.runtime = StudyRuntime(Execution(), recorded.precision)
    free = set(range(len(recorded.recipe_numbers)))
    tried: dict[str, int] = {}
    spent, points = 0.0, [(0.0, 0.0)]
    for _ in range(method.trials):
        if not free or spent >= budget_compute:
            break
        trial = store.ask()
        if not trial.is_survivor:
            # A proposal: the nearest recorded recipe takes its place.
            study.tell(trial.optuna_trial, state=OptunaState.FAIL)
            nearest = recorded.nearest_recipe(trial.recipe.to_flat_dict(), free)
            free.discard(nearest)
            store.enqueue_start(str(nearest), recorded.values[nearest])
            trial = store.ask()
            tried[trial.recipe.seed_independent_key()] = nearest
        number = tried[trial.recipe.seed_independent_key()]
        state, reports = TrialState.COMPLETED, []
        for epoch, (value, cost) in enumerate(
            zip(recorded.curves[number], recorded.epoch_costs[number], strict=True), start=1
        ):
            spent += cost
            reports.append(EpochReport(epoch, 0.0, 0.0, 0.0, value, 0.0, 0.0))
            if store.should_prune(trial, reports[-1]):
                state = TrialState.PRUNED
                break
        store.tell(trial, TrialResult(state, tuple(reports), 0.0), "")
        if state is TrialState.COMPLETED:
            points.append((spent, max(points[-1][1], float(recorded.final_accuracies[number]))))
    return SearchTrace(*map(tuple, zip(*points, strict=True)))


def random_trainings(recorded: RecordedRecipes, count: int, seed: int) -> SearchTrace:
    """Return a random search that trains every recipe in full; recipes are drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(0, len(recorded.recipe_numbers), count)
    compute = np.cumsum(recorded.epoch_costs[drawn].sum(1))
    return SearchTrace(tuple(compute), tuple(np.maximum.accumulate(recorded.final_accuracies[drawn])))


# ---------------------------------------------------------------------------------------- the benchmark

RANDOM_TRAININGS = 100
CHECKPOINTS = (4, 6, 8, 10, 15, 20, 30)
RANDOM_METHOD = Method("random, every training full", Random(), NoPruner())
METHODS = (
    RANDOM_METHOD,
    Method("tpe, every training full", Tpe(), NoPruner()),
    Method("tpe, median", Tpe(), Median()),
    Method("tpe, percentile 25", Tpe(), Percentile()),
    Method("tpe, hyperband", Tpe(), Hyperband()),
    Method("random, hyperband", Random(), Hyperband()),
    Method("random, halving", Random(), Halving()),
    Method("qmc, halving", Qmc(), Halving()),
    Method("gp, halving", Gp(), Halving()),
    Method("tpe, halving (the default)", Tpe(), Halving()),
)
CANDIDATE_COUNTS = (10, 20, 40, 80)
ONE_EPOCH_METHODS = tuple(
    Method(f"one-epoch rule, {n} candidates", Random(), OneEpoch(), n + 3) for n in CANDIDATE_COUNTS
)
SWEEP_METHODS = (
    *(
        Method(
            f"tpe {startup}, halving 1/{factor} at {first}",
            Tpe(startup_trials=startup),
            Halving(min_epochs=first, reduction_factor=factor),
        )
        for startup in (5, 10)
        for first in (1, 2)
        for factor in (2, 3, 4)
    ),
    Method("tpe 5, halving 1/3 at 2, 8 spared", Tpe(), Halving(startup_trials=8)),
    # A replay has at most as many trials as there are recorded recipes, so larger windows change nothing.
    *(Method(f"tpe, window {window or 'none'}", Tpe(window=window), Halving()) for window in (0, 25, 50, 100)),
)


@dataclass(frozen=True)
class MethodReplays:
    """All replays of one method, one per seed."""

    method: str
    traces: tuple[SearchTrace, ...]

    def regrets(self, best: float, compute: float) -> Array:
        """Return how far each best value after this compute is below the best of the table."""
        return best - np.array([trace.best_after(compute) for trace in self.traces])

    def compute_to_reach(self, best: float, regret: float) -> float:
        """Return the least compute after which the median regret is not larger; infinite if it always is."""
        points = sorted({compute for trace in self.traces for compute in trace.compute_spent})
        return next((c for c in points if np.median(self.regrets(best, c)) <= regret), math.inf)


def replay_all(
    recorded: RecordedRecipes, methods: Sequence[Method], seeds: int, compute: float, workers: int
) -> list[MethodReplays]:
    """Replay every method with every seed."""
    jobs = [(method, seed) for method in methods for seed in range(seeds)]
    with multiprocessing.get_context("spawn").Pool(workers, _init_worker, (recorded, compute)) as processes:
        traces = processes.map(_replay_job, jobs, chunksize=5)
    return [
        MethodReplays(method.name, tuple(traces[number * seeds : (number + 1) * seeds]))
        for number, method in enumerate(methods)
    ]


_worker_recorded: RecordedRecipes
_worker_compute: float


def _init_worker(pool: RecordedRecipes, compute: float) -> None:
    global _worker_recorded, _worker_compute
    _worker_recorded, _worker_compute = pool, compute
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _replay_job(job: tuple[Method, int]) -> SearchTrace:
    return replay_search(_worker_recorded, *job, _worker_compute)


def compute_target_regret(recorded: RecordedRecipes, draws: int = 1000) -> float:
    """Return the median final regret of a hundred random full trainings."""
    values = [random_trainings(recorded, RANDOM_TRAININGS, seed).best_values[-1] for seed in range(draws)]
    return float(recorded.final_accuracies.max() - statistics.median(values))


def interval_of_median(regrets: Array, draws: int = 1000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    picks = np.random.default_rng(0).integers(0, len(regrets), (draws, len(regrets)))
    low, high = np.quantile(np.median(regrets[picks], axis=1), (0.025, 0.975))
    return float(low), float(high)


def summarize(replays: MethodReplays, best: float, target_regret: float) -> Summary:
    """Return the results of a method, with regrets in points of accuracy."""
    reach = replays.compute_to_reach(best, target_regret)
    regrets = {f"{compute}": 100 * replays.regrets(best, compute) for compute in CHECKPOINTS}
    return {
        "compute_to_reach_target": None if math.isinf(reach) else round(reach, 2),
        "regret_points": {at: _rounded(float(np.median(r)), *interval_of_median(r)) for at, r in regrets.items()},
    }


def _rounded(*values: float) -> tuple[float, ...]:
    return tuple(round(value, 3) for value in values)


def plot_regrets(
    replays: Sequence[MethodReplays], best: float, target_regret: float, clock: str, compute: float
) -> Figure:
    """Plot median regret against compute with 95 % intervals; the one-epoch rule gives a point for each setting."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    grid = np.geomspace(3.0, compute, 60)
    for one in replays:
        if one.method.startswith("one-epoch"):
            ends = float(np.median([trace.compute_spent[-1] for trace in one.traces]))
            regrets = 100 * one.regrets(best, math.inf)
            low, high = interval_of_median(regrets)
            middle = float(np.median(regrets))
            axes.errorbar(ends, middle, [[middle - low], [high - middle]], fmt="ks", markersize=4)
            axes.annotate(one.method.removeprefix("one-epoch rule, "), (ends, middle), fontsize=7)
            continue
        regrets_at = [100 * one.regrets(best, c) for c in grid]
        shown = [bool(np.median(regrets) < 10) for regrets in regrets_at]
        middles = np.array([np.median(regrets) for regrets in regrets_at])[shown]
        bands = np.array([interval_of_median(regrets) for regrets in regrets_at])[shown]
        (line,) = axes.step(grid[shown], middles, where="post", label=one.method)
        axes.fill_between(grid[shown], bands[:, 0], bands[:, 1], step="post", alpha=0.08, color=line.get_color())
    axes.axhline(100 * target_regret, color="grey", linestyle=":", label="100 random full trainings, at their end")
    axes.set_xscale("log")
    axes.set_xticks(ticks := [c for c in (3, *CHECKPOINTS) if c <= compute], [str(c) for c in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"compute spent, in mean full trainings (by {clock})")
    axes.set_ylabel("median regret of the best completed trial, points")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    return figure
