"""Searches that replay recorded curves, without training, on a simulated clock.

Each epoch takes its cost. A worker that is free asks for a trial; decisions are made in the order of the clock, and at
the same time in the order of the workers. When the sampler proposes a recipe, the nearest recorded recipe that was not
tried yet takes its place. All else is the code of a study: its store asks, decides and tells.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import TrialState as OptunaState

from benchmarks.curves.methods import Method
from benchmarks.curves.recorded import RecordedRecipes
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.search.asked_trial import AskedTrial
from fmnist_search.search.candidates import Params
from fmnist_search.search.freeze_thaw_sampler import FreezeThawSampler
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore

CHOOSING, JUDGING = "choosing", "judging"
SEEDS = {CHOOSING: range(200), JUDGING: range(1000, 1200)}
"""Seeds of replays: settings are chosen with some, and what was chosen is judged with others."""


@dataclass(frozen=True)
class SearchTrace:
    """One replayed search: the accuracy of its best trial when each trial completed, by compute and by time."""

    compute_spent: tuple[float, ...]
    wall_times: tuple[float, ...]
    best_values: tuple[float, ...]


@dataclass
class _Training:
    """A trial that runs: its recorded recipe, the epochs that it has trained, and when the next one ends."""

    trial: AskedTrial
    recipe: int
    epochs: int
    ends_at: float = 0.0


@dataclass
class Replay:
    """A search on a simulated clock, until it has spent its budget or has no recipe left."""

    recorded: RecordedRecipes
    method: Method
    seed: int
    budget_compute: float
    workers: int = 1
    _running: dict[int, _Training] = field(default_factory=dict)
    _recipe_of: dict[str, int] = field(default_factory=dict)
    _points: list[tuple[float, float, float]] = field(default_factory=lambda: [(0.0, 0.0, 0.0)])
    _compute_begun: float = 0.0
    _begun: int = 0
    _paused: int = 0

    def __post_init__(self) -> None:
        budget = self.recorded.config.budget.model_copy(update={"trials": self.method.trials})
        changes = {"sampler": self.method.sampler, "pruner": self.method.pruner, "budget": budget, "seed": self.seed}
        self._study = optuna.create_study(direction="maximize", study_name=f"{self.method.name} {self.seed}")
        self._store = StudyStore(self._study, self.recorded.config.model_copy(update=changes))
        self._store.runtime = StudyRuntime(Execution(), self.recorded.precision)
        self._free = set(range(len(self.recorded.curves)))
        sampler = self._store._with_sampler().sampler
        if isinstance(sampler, FreezeThawSampler):
            sampler.map_candidates = self._map_candidates

    def run(self) -> SearchTrace:
        """Return the search."""
        events = [(0.0, worker) for worker in range(self.workers)]
        idle: list[int] = []
        while events:
            now, worker = heapq.heappop(events)
            if worker in self._running and not self._finish_epoch(worker, now):
                for waiting in idle:
                    heapq.heappush(events, (now, waiting))
                idle.clear()
            if worker not in self._running and not self._start_trial(worker, now):
                if self._store.waits_for_running:
                    idle.append(worker)
                continue
            heapq.heappush(events, (self._start_epoch(worker, now), worker))
        return SearchTrace(*map(tuple, zip(*self._points, strict=True)))

    def _compute_spent(self, now: float) -> float:
        return self._compute_begun - sum(training.ends_at - now for training in self._running.values())

    def _start_epoch(self, worker: int, now: float) -> float:
        """Return when the next epoch of the trial of a worker ends."""
        training = self._running[worker]
        cost = float(self.recorded.epoch_costs[training.recipe][training.epochs])
        self._compute_begun += cost
        training.ends_at = now + cost
        return training.ends_at

    def _finish_epoch(self, worker: int, now: float) -> bool:
        """Report the epoch that the trial of a worker has trained; return whether the trial goes on."""
        training = self._running[worker]
        training.epochs += 1
        curve = self.recorded.curves[training.recipe]
        reports = [
            EpochReport(epoch, 0.0, 0.0, 0.0, accuracy, 0.0, 0.0)
            for epoch, accuracy in enumerate(curve[: training.epochs], start=1)
        ]
        decision = self._store.decide(training.trial, reports[-1])
        if training.epochs == len(curve):
            state = TrialState.COMPLETED
        elif decision is Decision.CONTINUE:
            return True
        else:
            state = TrialState.PAUSED if decision is Decision.PAUSE else TrialState.PRUNED
        del self._running[worker]
        self._store.tell(training.trial, TrialResult(state, tuple(reports), 0.0), "")
        self._paused += state is TrialState.PAUSED
        # Costs are added one by one; without their rounding errors, two trainings cost 2.
        spent = round(self._compute_spent(now), 9)
        if state is TrialState.COMPLETED and spent <= self.budget_compute:
            self._points.append((spent, round(now, 9), max(self._points[-1][2], curve[-1])))
        return False

    def _start_trial(self, worker: int, now: float) -> bool:
        """Give a free worker a trial; return whether there is one for it."""
        is_over = self._begun >= self.method.trials or round(self._compute_spent(now), 9) >= self.budget_compute
        if is_over or not (self._free or self._paused) or self._store.waits_for_running:
            return False
        trial = self._store.ask()
        if trial.curve:
            self._paused -= 1
        else:
            self._begun += 1
            trial = trial if trial.is_survivor else self._place_proposal(trial)
        recipe = self._recipe_of[trial.recipe.seed_independent_key()]
        self._running[worker] = _Training(trial, recipe, len(trial.curve), now)
        return True

    def _map_candidates(self, candidates: list[Params]) -> list[Params]:
        """Return a free recorded recipe in place of each candidate, before a model judges them."""
        free, mapped = set(self._free), []
        for candidate in candidates[: len(free)]:
            nearest = self.recorded.nearest_recipe(candidate, free)
            free.discard(nearest)
            mapped.append(self.recorded.params[nearest])
        return mapped

    def _place_proposal(self, proposal: AskedTrial) -> AskedTrial:
        """Return a trial of the free recorded recipe that is nearest to a proposal."""
        values = proposal.recipe.to_flat_dict()
        nearest = self.recorded.nearest_recipe(values, self._free)
        self._free.discard(nearest)
        trial = proposal
        if not self.recorded.is_recorded_as(nearest, values):
            self._study.tell(proposal.optuna_trial, state=OptunaState.FAIL)
            self._store._survivors.remove_running(proposal.number)  # nothing trains it
            self._study.enqueue_trial(dict(self.recorded.params[nearest]))
            trial = self._store.ask()
        self._recipe_of[trial.recipe.seed_independent_key()] = nearest
        return trial


def replay_all(
    recorded: RecordedRecipes, methods: Sequence[Method], seeds: Sequence[int], compute: float, running: int, jobs: int
) -> Iterator[tuple[Method, list[SearchTrace]]]:
    """Yield each method with its replays, one for each seed, in as many processes as there are jobs."""
    pairs = [(method, seed) for method in methods for seed in seeds]
    replay = functools.partial(_replay_pair, recorded, compute, running)
    if jobs == 1:
        yield from _by_method(methods, map(replay, pairs), len(seeds))
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as processes:
        yield from _by_method(methods, processes.imap(replay, pairs, chunksize=5), len(seeds))


def _by_method(
    methods: Sequence[Method], traces: Iterator[SearchTrace], count: int
) -> Iterator[tuple[Method, list[SearchTrace]]]:
    for method in methods:
        yield method, list(itertools.islice(traces, count))


def _replay_pair(recorded: RecordedRecipes, compute: float, running: int, pair: tuple[Method, int]) -> SearchTrace:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Replay(recorded, *pair, compute, running).run()
