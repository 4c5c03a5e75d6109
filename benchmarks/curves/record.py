"""Train random recipes of a space in full and record their learning curves.

The seed of the study determines the order of the trainings, and each curve is written when its training ends. A
recording that was interrupted is therefore valid, and the same command continues it.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import optuna

from benchmarks.curves.table import FORMAT_VERSION, Curve, CurveTable, Header
from benchmarks.machine import machine, versions
from fmnist_search.config.conditional_space import varying_names
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.search.suggest import base_recipe, suggest_recipe, trial_seed
from fmnist_search.training.autotune import autotune
from fmnist_search.training.devices import resolve_execution
from fmnist_search.training.trial import run_trial
from fmnist_search.workspace import image_cache_folder

REPEATABLE_RECIPES = 85
"""Number of recipes of which some are trained again."""

ANNEALED_EVERY = 3
"""Every third of them is also trained with an annealed schedule and another seed."""

REPEATED_EVERY, REPEATS = 10, 2
"""Every tenth of them is trained twice more with other seeds, which measures the noise."""

BEST_RECIPES, LEARNING_RATE_FACTORS = 3, (1.0, 2.0, 4.0)
"""The best recipes are annealed from these multiples of their learning rate."""


@dataclass(frozen=True)
class PlannedTraining:
    """One training of the plan."""

    recipe_number: int
    kind: str
    recipe: Recipe


def record(
    study: Path, curves_file: Path, count: int, workers: int, data_dir: Path | None, device: str = "cpu"
) -> Iterator[Curve]:
    """Yield the curves of the first `count` recipes that `curves_file` does not have yet, and append them to it."""
    config = StudyConfig.load(study)
    execution = resolve_execution(device, threads=1)
    images = load_images(config.data, DataSource(image_cache_folder(), data_dir))
    if not curves_file.exists():
        curves_file.write_text(json.dumps(vars(_make_header(config, execution))) + "\n")
    table = CurveTable.read(curves_file, config)
    random_recipes = sample_recipes(config, table.header.precision, count)
    names = varying_names(StudyConfig.from_dict(table.header.study).space)
    with _start_workers(workers, images, execution, names) as pool:
        yield from _run_trainings(list(_plan_trainings(random_recipes, config)), table, pool, curves_file)
        table = CurveTable.read(curves_file, config)
        yield from _run_trainings(list(_plan_scaled_rates(table, random_recipes, config)), table, pool, curves_file)


def sample_recipes(config: StudyConfig, precision: str, count: int) -> list[Recipe]:
    """Return the first random recipes of a study's space."""
    base = base_recipe(config, precision)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.seed))
    return [suggest_recipe(study.ask(), config.space, base, trial_seed(config.seed, number)) for number in range(count)]


def _plan_trainings(recipes: list[Recipe], config: StudyConfig) -> Iterator[PlannedTraining]:
    for number, recipe in enumerate(recipes):
        yield PlannedTraining(number, "search", recipe)
        if number >= REPEATABLE_RECIPES:
            continue
        if number % ANNEALED_EVERY == 0:
            yield PlannedTraining(
                number, "annealed", _annealed_recipe(recipe, 1.0, trial_seed(config.seed + 1, number))
            )
        if number % REPEATED_EVERY == 0:
            for repeat in range(REPEATS):
                seed = trial_seed(config.seed + 2 + repeat, number)
                yield PlannedTraining(number, f"repeat {repeat + 1}", recipe.replace({"seed": seed}))


def _plan_scaled_rates(table: CurveTable, recipes: list[Recipe], config: StudyConfig) -> Iterator[PlannedTraining]:
    best = sorted(table.curves_of_kind("search").values(), key=lambda curve: -curve.val_accuracy[-1])[:BEST_RECIPES]
    for curve in best:
        for factor in LEARNING_RATE_FACTORS:
            seed = trial_seed(config.seed + 100, curve.recipe_number)
            recipe = _annealed_recipe(recipes[curve.recipe_number], factor, seed)
            yield PlannedTraining(curve.recipe_number, f"annealed x{factor:g}", recipe)


def _annealed_recipe(recipe: Recipe, factor: float, seed: int) -> Recipe:
    rate = factor * recipe.optimizer.learning_rate
    return recipe.replace({"schedule.name": "one-cycle", "optimizer.learning_rate": rate, "seed": seed})


def _run_trainings(plan: list[PlannedTraining], table: CurveTable, pool: Pool, out: Path) -> Iterator[Curve]:
    missing = [t for t in plan if t.recipe_number not in table.curves_of_kind(t.kind)]
    with out.open("a") as file:
        for curve in pool.imap_unordered(_record_curve, missing):
            file.write(json.dumps(vars(curve)) + "\n")
            file.flush()
            yield curve


def _start_workers(count: int, images: Images, execution: Execution, names: list[str]) -> Pool:
    # The C library of each worker reads these when it starts, and then keeps the pages of freed tensors.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "67108864"}
    return multiprocessing.get_context("spawn").Pool(count, _init_worker, (images, execution, names))


_worker_images: Images
_worker_execution: Execution
_worker_names: list[str]


def _init_worker(images: Images, execution: Execution, names: list[str]) -> None:
    global _worker_images, _worker_execution, _worker_names
    _worker_images, _worker_execution, _worker_names = images.to(execution.device), execution, names


def _record_curve(training: PlannedTraining) -> Curve:
    now = time.process_time if _worker_execution.device == "cpu" else time.perf_counter
    marks = [now()]

    def record_time(_: EpochReport) -> Decision:
        marks.append(now())
        return Decision.CONTINUE

    result = run_trial(training.recipe, _worker_images, _worker_execution, record_time)
    assert result.state in (TrialState.COMPLETED, TrialState.FAILED), result
    flat = training.recipe.to_flat_dict()
    return Curve(
        recipe_number=training.recipe_number,
        kind=training.kind,
        values={name: flat[name] for name in _worker_names},
        seed=training.recipe.seed,
        parameters=result.parameters,
        val_accuracy=[round(epoch.val_accuracy or 0.0, 6) for epoch in result.epochs],
        seconds=[round(after - before, 3) for before, after in itertools.pairwise(marks)],
        failed=result.reason if result.state is TrialState.FAILED else None,
    )


def _make_header(config: StudyConfig, execution: Execution) -> Header:
    seconds = "process CPU seconds" if execution.device == "cpu" else "seconds"
    return Header(
        format=FORMAT_VERSION,
        study=config.model_dump(exclude_none=True),
        precision=autotune(execution)[1],
        machine=machine(),
        versions=versions(),
        seconds=f"{seconds} of each epoch on {execution.device}, validation included, one intra-op thread",
    )
