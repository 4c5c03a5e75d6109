"""Train random recipes of a space to the end and keep their whole curves.

The order of the trainings is fixed by the study's seed, and each is written when it ends: a recording that is cut
short is a smaller one, and the same command goes on with it.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna

from benchmarks.curves.table import FORMAT, Curve, Header, Table
from benchmarks.machine import machine, versions
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.loading import Images, Source, prepare
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.results.study import Decision, EpochReport, State
from fmnist_search.search.suggest import base_recipe, sample, searched, trial_seed
from fmnist_search.training.autotune import resolve_execution, tune
from fmnist_search.training.trial import run_trial
from fmnist_search.workspace import image_cache

EXAMINED = 85
"""How many of the recipes are looked at more closely:"""
ANNEALED_EVERY = 3
"""of every so many of these, one is trained with an annealed schedule as well, from another seed,"""
REPEATED_EVERY = 10
REPEATS = 2
"""and of every so many, one is trained again so often from other seeds: the noise."""
LEADERS = 3
FACTORS = (1.0, 2.0, 4.0)
"""The best recipes are annealed at these multiples of their learning rate."""


@dataclass(frozen=True)
class Training:
    """One training of the plan."""

    recipe_number: int
    kind: str
    recipe: Recipe


def record(
    study: Path, out: Path, count: int, workers: int, data_dir: Path | None, device: str = "cpu"
) -> Iterator[Curve]:
    """Carry out what is missing of the plan for the first `count` recipes, and append it to `out`."""
    config = StudyConfig.load(study)
    execution = resolve_execution(device, threads=1)
    images = prepare(config.data, Source(image_cache(), data_dir))
    if not out.exists():
        out.write_text(json.dumps(vars(_header(config, execution))) + "\n")
    table = Table.read(out, config)
    random_recipes = recipes(config, table.header.precision, count)
    yield from _train(list(_plan(random_recipes, config)), table, images, execution, out, workers)
    table = Table.read(out, config)
    yield from _train(list(_raised(table, random_recipes, config)), table, images, execution, out, workers)


def recipes(config: StudyConfig, precision: str, count: int) -> list[Recipe]:
    """The first random recipes of a study's space."""
    base = base_recipe(config, precision)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.seed))
    return [sample(study.ask(), config.space, base, trial_seed(config.seed, number)) for number in range(count)]


def _plan(recipes: list[Recipe], config: StudyConfig) -> Iterator[Training]:
    for number, recipe in enumerate(recipes):
        yield Training(number, "search", recipe)
        if number >= EXAMINED:
            continue
        if number % ANNEALED_EVERY == 0:
            yield Training(number, "annealed", _annealed(recipe, 1.0, trial_seed(config.seed + 1, number)))
        if number % REPEATED_EVERY == 0:
            for repeat in range(REPEATS):
                seed = trial_seed(config.seed + 2 + repeat, number)
                yield Training(number, f"repeat {repeat + 1}", recipe.replace({"seed": seed}))


def _raised(table: Table, recipes: list[Recipe], config: StudyConfig) -> Iterator[Training]:
    best = sorted(table.of_kind("search").values(), key=lambda curve: -curve.val_accuracy[-1])[:LEADERS]
    for curve in best:
        for factor in FACTORS:
            seed = trial_seed(config.seed + 100, curve.recipe_number)
            recipe = _annealed(recipes[curve.recipe_number], factor, seed)
            yield Training(curve.recipe_number, f"annealed x{factor:g}", recipe)


def _annealed(recipe: Recipe, factor: float, seed: int) -> Recipe:
    rate = factor * recipe.optimizer.learning_rate
    return recipe.replace({"schedule.name": "one-cycle", "optimizer.learning_rate": rate, "seed": seed})


def _train(
    plan: list[Training], table: Table, images: Images, execution: Execution, out: Path, workers: int
) -> Iterator[Curve]:
    missing = [t for t in plan if t.recipe_number not in table.of_kind(t.kind)]
    names = searched(StudyConfig.from_dict(table.header.study).space)
    # Read by each worker's C library when it starts: pages of freed tensors are kept, not faulted in anew each step.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "67108864"}
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _begin, (images, execution, names)) as pool, out.open("a") as file:
        for curve in pool.imap_unordered(_run, missing):
            file.write(json.dumps(vars(curve)) + "\n")
            file.flush()
            yield curve


_images: Images
_execution: Execution
_names: list[str]


def _begin(images: Images, execution: Execution, names: list[str]) -> None:
    global _images, _execution, _names
    _images, _execution, _names = images.to(execution.device), execution, names


def _run(training: Training) -> Curve:
    now = time.process_time if _execution.device == "cpu" else time.perf_counter
    marks = [now()]

    def note_the_time(_: EpochReport) -> Decision:
        marks.append(now())
        return Decision.CONTINUE

    result = run_trial(training.recipe, _images, _execution, note_the_time)
    assert result.state in (State.COMPLETED, State.FAILED), result
    flat = training.recipe.flat()
    return Curve(
        recipe_number=training.recipe_number,
        kind=training.kind,
        values={name: flat[name] for name in _names},
        seed=training.recipe.seed,
        parameters=result.parameters,
        val_accuracy=[round(epoch.val_accuracy or 0.0, 6) for epoch in result.epochs],
        seconds=[round(after - before, 3) for before, after in itertools.pairwise(marks)],
        failed=result.reason if result.state is State.FAILED else None,
    )


def _header(config: StudyConfig, execution: Execution) -> Header:
    seconds = "process CPU seconds" if execution.device == "cpu" else "seconds"
    return Header(
        format=FORMAT,
        study=config.model_dump(exclude_none=True),
        precision=tune(execution)[1],
        machine=machine(),
        versions=versions(),
        seconds=f"{seconds} of each epoch on {execution.device}, validation included, one intra-op thread",
    )
