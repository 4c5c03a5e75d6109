"""Train the recipes of a plan in full and record their learning curves.

Each curve is written when its training ends. A recording that was interrupted is therefore valid, and the same command
continues it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import Pool
from pathlib import Path

from benchmarks.curves.plans import SMALL_IMAGES, PlannedTraining, Stage
from benchmarks.curves.table import FORMAT_VERSION, Curve, CurveTable, Header
from benchmarks.machine import machine, versions
from fmnist_search.config.conditional_space import varying_names
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.training.autotune import autotune
from fmnist_search.training.devices import resolve_execution
from fmnist_search.training.trial import run_trial
from fmnist_search.workspace import image_cache_folder

ImagesByCount = Mapping[int | None, Images]


def record(
    study: Path,
    curves_file: Path,
    plan: Sequence[Stage],
    count: int,
    workers: int,
    data_dir: Path | None,
    device: str = "cpu",
) -> Iterator[Curve]:
    """Yield the curves of a plan with `count` random recipes that a file does not have yet, and append them to it."""
    config = StudyConfig.load(study)
    execution = resolve_execution(device, threads=1)
    images = _load_images(config, data_dir)
    if not curves_file.exists():
        curves_file.write_text(json.dumps(vars(_make_header(config, execution))) + "\n")
    names = varying_names(StudyConfig.from_dict(CurveTable.read(curves_file, config).header.study).space)
    with _start_workers(workers, images, execution, names) as pool:
        for stage in plan:
            table = CurveTable.read(curves_file, config)
            yield from _run_trainings(list(stage(config, table, count)), table, pool, curves_file)


def _load_images(config: StudyConfig, data_dir: Path | None) -> ImagesByCount:
    """Return the images of a study, and the fewer ones of some trainings, by the number of them to train on."""
    source = DataSource(image_cache_folder(), data_dir)
    few = min(SMALL_IMAGES, config.data.training_count)
    return {
        None: load_images(config.data, source),
        SMALL_IMAGES: load_images(dataclasses.replace(config.data, train_images=few), source),
    }


def _run_trainings(plan: list[PlannedTraining], table: CurveTable, pool: Pool, out: Path) -> Iterator[Curve]:
    missing = [t for t in plan if t.recipe_number not in table.curves_of_kind(t.kind)]
    with out.open("a") as file:
        for curve in pool.imap_unordered(_record_curve, missing):
            file.write(json.dumps(vars(curve)) + "\n")
            file.flush()
            yield curve


def _start_workers(count: int, images: ImagesByCount, execution: Execution, names: list[str]) -> Pool:
    # The C library of each worker reads these when it starts, and then keeps the pages of freed tensors.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "67108864"}
    return multiprocessing.get_context("spawn").Pool(count, _init_worker, (images, execution, names))


_worker_images: ImagesByCount
_worker_execution: Execution
_worker_names: list[str]


def _init_worker(images: ImagesByCount, execution: Execution, names: list[str]) -> None:
    global _worker_images, _worker_execution, _worker_names
    _worker_images = {number: each.to(execution.device) for number, each in images.items()}
    _worker_execution, _worker_names = execution, names


def _record_curve(training: PlannedTraining) -> Curve:
    now = time.process_time if _worker_execution.device == "cpu" else time.perf_counter
    marks = [now()]

    def record_time(_: EpochReport) -> Decision:
        marks.append(now())
        return Decision.CONTINUE

    images = _worker_images[training.train_images]
    result = run_trial(training.recipe, images, _worker_execution, record_time)
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
        train_loss=[round(epoch.train_loss, 6) for epoch in result.epochs],
        train_accuracy=[round(epoch.train_accuracy, 6) for epoch in result.epochs],
        val_loss=[round(epoch.val_loss or 0.0, 6) for epoch in result.epochs],
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
