"""Check that the fast engines train the same as the plain loop, on a machine with a GPU.

Needs only what the engine needs, so that the checks run where nothing else is installed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.execution.backend import make_backend
from fmnist_search.execution.job import LossCause
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.training.devices import resolve_execution
from fmnist_search.training.trial import run_trial
from fmnist_search.training.trial_checkpoints import parse_checkpoint

DATA_CONFIG = Data(train_images=6_000, validation=2_000)
TOLERANCE = 2e-2
"""Largest difference of the weights after two epochs, relative to their norm. The order in which a GPU adds floats
differs between kernels, and training amplifies the difference."""

RECIPE_CHANGES: dict[str, dict[str, object]] = {
    "adamw": {},
    "a last batch of another size": {"batch_size": 350},
    "sgd": {"optimizer.name": "sgd", "optimizer.learning_rate": 0.05},
    "muon": {"optimizer.name": "muon"},
    "augmented": {"augmentation.shift": 2, "augmentation.flip": 0.5, "augmentation.erasing": 0.5},
    "dropout": {"model.dropout": 0.3},
    "one-cycle, clipped": {"schedule.name": "one-cycle", "optimizer.clip_norm": 1.0, "label_smoothing": 0.1},
    "bfloat16": {"precision": "bfloat16"},
    "mlp": {"model.family": "mlp", "model.width": 128, "model.dropout": 0.2},
    "rotated, mixed": {"augmentation.rotation": 10.0, "augmentation.mixup": 0.2, "augmentation.cutmix": 1.0},
    "penalty, per-pixel, views": {"optimizer.penalty": 1e-3, "normalisation": "per-pixel", "test_time": "flip+shift"},
}
OVERSIZED_CHANGES: dict[str, object] = {
    "model.width_1": 4_096,
    "model.width_2": 1_024,
    "model.kernel_1": 7,
    "batch_size": 6_000,
}


class CheckResult(NamedTuple):
    """The result of one check; `details` gives the measured difference."""

    name: str
    passed: bool
    details: str


def run_all_checks(source: DataSource, device: str = "cuda") -> Iterator[CheckResult]:
    """Run every check that needs a CUDA device."""
    plain = resolve_execution(device, threads=1)
    graph = dataclasses.replace(plain, engine="graph")
    images = load_images(DATA_CONFIG, source, device)
    yield from check_graph_matches_eager(images, plain)
    for execution in (plain, graph):
        yield check_concurrent_matches_single(images, execution, count=4)
        yield check_concurrent_matches_single(images, dataclasses.replace(execution, deterministic=True), count=4)
        yield check_resume_matches_uninterrupted(images, execution)
        yield check_out_of_memory_is_isolated(images, execution)


def make_recipe(name: str, images: Images) -> Recipe:
    """Return one of `RECIPE_CHANGES` as a recipe of a small network and two epochs on these images."""
    small = {"model.width_1": 16, "model.width_2": 32, "model.width_3": 32} if name != "mlp" else {}
    common = {
        "data.train_images": len(images.train),
        "data.validation": len(images.validation),
        "epochs": 2,
        "seed": 3,
    }
    return Recipe().replace({"batch_size": 125, **common, **small, **RECIPE_CHANGES[name]})


def check_graph_matches_eager(images: Images, execution: Execution) -> Iterator[CheckResult]:
    """Check that captured training gives the plain loop's weights, and that it was captured."""
    graph = dataclasses.replace(execution, engine="graph")
    for name in RECIPE_CHANGES:
        recipe = make_recipe(name, images)
        captured, eager = run_trial(recipe, images, graph), run_trial(recipe, images, execution)
        distance = _relative_weight_distance(captured, eager)
        engine = captured.setup.engine
        yield CheckResult(
            f"graph equals plain: {name}",
            engine == "graph" and distance <= TOLERANCE,
            f"{engine}, {distance:.1e} apart",
        )


def check_concurrent_matches_single(images: Images, execution: Execution, count: int) -> CheckResult:
    """Check that trials at once give what each gives alone, bit for bit with deterministic algorithms."""
    recipes = [make_recipe(name, images) for name in list(RECIPE_CHANGES)[:count]]
    alone = [run_trial(each, images, execution) for each in recipes]
    concurrent = train_concurrently(recipes, images, execution, count)
    distance = max(_relative_weight_distance(one, other) for one, other in zip(concurrent, alone, strict=True))
    limit = 0.0 if execution.deterministic or execution.device == "cpu" else TOLERANCE
    how = f"{execution.engine}{', deterministic' if execution.deterministic else ''}"
    return CheckResult(f"{count} at once equal each alone: {how}", distance <= limit, f"{distance:.1e} apart")


def check_resume_matches_uninterrupted(images: Images, execution: Execution) -> CheckResult:
    """Check that a training that goes on from its first epoch's checkpoint gives what an uninterrupted one gives.

    A worker takes the checkpoint while it trains the next epoch.
    """
    recipe = make_recipe("rotated, mixed", images)
    (first,) = _run_jobs([_ResultJob(recipe, images)], execution, 1)
    state = parse_checkpoint(first.checkpoints[0]).state
    (second,) = _run_jobs([_ResultJob(recipe, images, state)], execution, 1)
    uninterrupted = run_trial(recipe, images, execution)
    distance = _relative_weight_distance(second.result, uninterrupted) if second.result else math.inf
    limit = 0.0 if execution.device == "cpu" else TOLERANCE
    return CheckResult(
        f"going on equals never having stopped: {execution.engine}", distance <= limit, f"{distance:.1e} apart"
    )


def check_out_of_memory_is_isolated(images: Images, execution: Execution) -> CheckResult:
    """Check that a trial which runs out of memory fails with that reason and that the next one completes."""
    free = torch.cuda.mem_get_info()[0]
    hog = torch.empty(max(free - 2 * 2**30, 0), dtype=torch.uint8, device=execution.device)
    failed = run_trial(make_recipe("adamw", images).replace(OVERSIZED_CHANGES), images, execution)
    after = run_trial(make_recipe("adamw", images), images, execution)
    del hog
    torch.cuda.empty_cache()
    holds = (
        failed.state is TrialState.FAILED and "memory" in (failed.reason or "") and after.state is TrialState.COMPLETED
    )
    found = f"{failed.state.value} ({(failed.reason or '')[:60]}), then {after.state.value}"
    return CheckResult(f"out of memory ends one trial: {execution.engine}", holds, found)


def train_concurrently(recipes: list[Recipe], images: Images, execution: Execution, workers: int) -> list[TrialResult]:
    """Return the results of the recipes, trained by a backend of `workers` workers."""
    jobs = _run_jobs([_ResultJob(each, images) for each in recipes], execution, workers)
    return [job.result for job in jobs if job.result]


class _ResultJob:
    worker = 0
    worker_name = "0"
    checkpoint_seconds = 0.0

    def __init__(self, recipe: Recipe, images: Images, checkpoint: Mapping[str, Any] | None = None):
        self.recipe = recipe
        self.images = images
        self.checkpoint = checkpoint
        self.checkpoints: list[bytes] = []
        self.result: TrialResult | None = None

    def on_epoch(self, report: EpochReport) -> Decision:
        return Decision.CONTINUE

    def on_checkpoint(self, content: bytes) -> None:
        self.checkpoints.append(content)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        self.result = result

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        raise RuntimeError(reason)


def _run_jobs(jobs: list[_ResultJob], execution: Execution, workers: int) -> list[_ResultJob]:
    waiting = iter(jobs)
    with make_backend(execution, workers) as backend:
        backend.run(lambda: next(waiting, None))
    return jobs


def _relative_weight_distance(one: TrialResult, other: TrialResult) -> float:
    """Return the distance of two trainings' weights, relative to their norm; infinity if one failed."""
    if not one.last_weights or not other.last_weights:
        return float("inf")
    pairs = [(one.last_weights[name].double(), value.double()) for name, value in other.last_weights.items()]
    difference = sum(float((a - b).pow(2).sum()) for a, b in pairs)
    return math.sqrt(difference / sum(float(b.pow(2).sum()) for _, b in pairs))


PrintLine = Callable[[str], None]


def print_checks(checks: Iterator[CheckResult], print_line: PrintLine = print) -> bool:
    """Print one line per check; return whether all passed."""
    passed = True
    for check in checks:
        print_line(f"{'ok    ' if check.passed else 'FAILED'}  {check.name}: {check.details}")
        passed &= check.passed
    return passed
