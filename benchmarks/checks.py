"""Whether the fast ways train what the plain loop trains: for a machine with a GPU, and for its tests.

Torch alone is needed, so that the checks run where only the engine does.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from fmnist_search.data.loading import Images, Source, prepare
from fmnist_search.execution.pool import Crew
from fmnist_search.recipe.recipe import Data, Execution, Recipe
from fmnist_search.results.study import Decision, EpochReport, State, TrialResult
from fmnist_search.training.autotune import resolve_execution
from fmnist_search.training.engine import Epoch
from fmnist_search.training.trial import run_trial

DATA = Data(train_images=6_000, validation=2_000)
TOLERANCE = 2e-2
"""How far the weights of two ways may lie apart after two epochs, as a share of their norm: the order in which a GPU
adds floats differs between kernels, and training magnifies it."""

RECIPES: dict[str, dict[str, object]] = {
    "adamw": {},
    "a last batch of another size": {"batch_size": 250 * 7},
    "sgd": {"optimizer.name": "sgd", "optimizer.learning_rate": 0.05},
    "augmented": {"augmentation.shift": 2, "augmentation.flip": 0.5, "augmentation.erasing": 0.5},
    "dropout": {"model.dropout": 0.3},
    "one-cycle, clipped": {"schedule.name": "one-cycle", "optimizer.clip_norm": 1.0, "label_smoothing": 0.1},
    "bfloat16": {"precision": "bfloat16"},
    "mlp": {"model.family": "mlp", "model.width": 128, "model.dropout": 0.2},
    "rotated, mixed": {"augmentation.rotation": 10.0, "augmentation.mixup": 0.2, "augmentation.cutmix": 1.0},
    "penalty, per-pixel, views": {"optimizer.penalty": 1e-3, "normalisation": "per-pixel", "test_time": "flip+shift"},
}
GIANT: dict[str, object] = {"model.width_1": 4_096, "model.width_2": 1_024, "model.kernel_1": 7, "batch_size": 6_000}


class Check(NamedTuple):
    """What was compared, whether it holds, and by how much."""

    what: str
    holds: bool
    found: str


def all_checks(source: Source, device: str = "cuda") -> Iterator[Check]:
    """Everything that can be checked on a CUDA device."""
    plain = resolve_execution(device, threads=1)
    graph = dataclasses.replace(plain, engine="graph")
    images = prepare(DATA, source, device)
    yield from graph_equals_plain(images, plain)
    for execution in (plain, graph):
        yield packed_equals_alone(images, execution, count=4)
        yield packed_equals_alone(images, dataclasses.replace(execution, deterministic=True), count=4)
        yield going_on_equals_never_having_stopped(images, execution)
        yield out_of_memory_ends_a_trial_alone(images, execution)


def recipe(name: str) -> Recipe:
    """One of the recipes, small and short."""
    small = {"model.width_1": 16, "model.width_2": 32, "model.width_3": 32} if name != "mlp" else {}
    common = {"data.train_images": DATA.train_images, "data.validation": DATA.validation, "epochs": 2, "seed": 3}
    return Recipe().replace({"batch_size": 125, **common, **small, **RECIPES[name]})


def graph_equals_plain(images: Images, plain: Execution) -> Iterator[Check]:
    """A captured training gives the plain loop's result, and was captured."""
    graph = dataclasses.replace(plain, engine="graph")
    for name in RECIPES:
        captured, eager = run_trial(recipe(name), images, graph), run_trial(recipe(name), images, plain)
        apart = _apart(captured, eager)
        was = captured.preparation.engine
        yield Check(f"graph equals plain: {name}", was == "graph" and apart <= TOLERANCE, f"{was}, {apart:.1e} apart")


def packed_equals_alone(images: Images, execution: Execution, count: int) -> Check:
    """Trials side by side give what each gives alone: bit for bit with deterministic algorithms."""
    recipes = [recipe(name) for name in list(RECIPES)[:count]]
    alone = [run_trial(each, images, execution) for each in recipes]
    packed = side_by_side(recipes, images, execution, count)
    apart = max(_apart(one, other) for one, other in zip(packed, alone, strict=True))
    limit = 0.0 if execution.deterministic or execution.device == "cpu" else TOLERANCE
    how = f"{execution.engine}{', deterministic' if execution.deterministic else ''}"
    return Check(f"{count} at once equal each alone: {how}", apart <= limit, f"{apart:.1e} apart")


def going_on_equals_never_having_stopped(images: Images, execution: Execution) -> Check:
    """A training that goes on from what was kept after its first epoch gives what it gives in one go."""
    keeper = _Keeper()
    whole = run_trial(recipe("rotated, mixed"), images, execution, companion=keeper)
    resumed = run_trial(recipe("rotated, mixed"), images, execution, start=keeper.states[0])
    apart = _apart(resumed, whole)
    limit = 0.0 if execution.device == "cpu" else TOLERANCE
    return Check(f"going on equals never having stopped: {execution.engine}", apart <= limit, f"{apart:.1e} apart")


def out_of_memory_ends_a_trial_alone(images: Images, execution: Execution) -> Check:
    """A trial that does not fit fails with its reason, and the next one runs as if nothing had been."""
    free = torch.cuda.mem_get_info()[0]
    hog = torch.empty(max(free - 2 * 2**30, 0), dtype=torch.uint8, device=execution.device)
    failed = run_trial(recipe("adamw").replace(GIANT), images, execution)
    after = run_trial(recipe("adamw"), images, execution)
    del hog
    torch.cuda.empty_cache()
    holds = failed.state is State.FAILED and "memory" in (failed.reason or "") and after.state is State.COMPLETED
    found = f"{failed.state.value} ({(failed.reason or '')[:60]}), then {after.state.value}"
    return Check(f"out of memory ends one trial: {execution.engine}", holds, found)


def side_by_side(recipes: list[Recipe], images: Images, execution: Execution, count: int) -> list[TrialResult]:
    """The results of the recipes, trained by a crew of so many workers."""
    jobs = [_Kept(each, images) for each in recipes]
    waiting = iter(jobs)
    with Crew(execution, count) as crew:
        crew.run(lambda: next(waiting, None))
    return [job.result for job in jobs if job.result]


class _Kept:
    worker = 0

    def __init__(self, recipe: Recipe, images: Images):
        self.recipe = recipe
        self.images = images
        self.result: TrialResult | None = None

    def report(self, report: EpochReport) -> Decision:
        return Decision.CONTINUE

    def end(self, result: TrialResult, seconds: float) -> None:
        self.result = result

    def lost(self, reason: str) -> None:
        raise RuntimeError(reason)


class _Keeper:
    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def epoch_done(self, epoch: Epoch, state: dict[str, Any]) -> None:
        self.states.append(copy.deepcopy(state))


def _apart(one: TrialResult, other: TrialResult) -> float:
    """How far the weights of two trainings lie apart, as a share of their norm; infinite where one failed."""
    if not one.last_weights or not other.last_weights:
        return float("inf")
    pairs = [(one.last_weights[name].double(), value.double()) for name, value in other.last_weights.items()]
    difference = sum(float((a - b).pow(2).sum()) for a, b in pairs)
    return math.sqrt(difference / sum(float(b.pow(2).sum()) for _, b in pairs))


Report = Callable[[str], None]


def show(checks: Iterator[Check], report: Report = print) -> bool:
    """Say what was found, one line a check; whether all hold."""
    hold = True
    for check in checks:
        report(f"{'ok    ' if check.holds else 'FAILED'}  {check.what}: {check.found}")
        hold &= check.holds
    return hold
