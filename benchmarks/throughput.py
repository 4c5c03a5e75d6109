"""Compare the images per second of our engine with those of the tutorial's loop: same network, images and steps."""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import tutorial
from benchmarks.machine import device_slug
from benchmarks.measure import BenchmarkResult, Measurement, interleave, make_parser, report_result, run_main
from benchmarks.ours import data_source, tuned_settings
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.data.loading import load_images
from fmnist_search.recipe.datasets import TRAINING_SET_SIZE
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.training.engine import fit
from fmnist_search.training.evaluation import evaluate
from fmnist_search.training.runtime import torch_settings

NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {"model.depth": 2, "model.width_1": 8, "model.width_2": 16},
    "standard": {"model.depth": 3, "model.width_1": 32, "model.width_2": 64, "model.width_3": 128},
    "large": {"model.width_1": 64, "model.width_2": 128, "model.width_3": 256, "model.convolutions": 2},
    "mlp": {"model.family": "mlp", "model.width": 512},
}
BATCH_SIZES = (64, 128, 256, 512, 1024)
AUGMENTATION_CHANGES = {"augmentation.shift": 2, "augmentation.flip": 0.5, "augmentation.erasing": 0.5}
VALIDATION_IMAGES = 10_848
MAX_TRIED_WORKERS = 8
"""Largest number of DataLoader workers that is tried, besides 0."""
CALIBRATION_STEPS = 8
MIN_STEPS = 4


class Case(NamedTuple):
    """What is trained: a network, the batch size, and whether images are augmented."""

    network: str
    batch_size: int
    augmented: bool = False

    def __str__(self) -> str:
        return f"{self.network}, batch size {self.batch_size}{', augmented' if self.augmented else ''}"

    def recipe(self, precision: str, **changes: int) -> Recipe:
        """Return the case as a recipe without validation images."""
        augmentation = AUGMENTATION_CHANGES if self.augmented else {}
        fixed = {"precision": precision, "batch_size": self.batch_size, "data.validation": 0, **changes}
        return Recipe().replace({**NETWORKS[self.network], **augmentation, **fixed})


SHORT_CASES = (
    Case("standard", 128),
    Case("standard", 512),
    Case("mlp", 512),
    Case("tiny", 128),
    Case("standard", 128, True),
)
FULL_CASES = (
    *itertools.starmap(Case, itertools.product(NETWORKS, BATCH_SIZES)),
    *(Case("standard", batch_size, True) for batch_size in BATCH_SIZES),
)
VALIDATION_NETWORKS = {"short": ("standard",), "full": tuple(NETWORKS)}


class BenchmarkConfig(NamedTuple):
    """Settings of all measurements."""

    source: DataSource
    folder: Path
    execution_variants: dict[str, tuple[Execution, str]]
    workers: tuple[int, ...]
    rounds: int
    seconds: float
    validation_images: int = VALIDATION_IMAGES

    @property
    def default_execution(self) -> tuple[Execution, str]:
        """How a single trial trains on this machine."""
        return next(iter(self.execution_variants.values()))


def main() -> None:
    """Measure training and validation of ours and of the tutorial's loop alternately, in images per second."""
    parser = make_parser(main.__doc__)
    parser.add_argument("--full", action="store_true", help="every network at every batch size")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this text")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of each measurement")
    parser.add_argument("--seconds", type=float, default=0.8, help="approximate seconds of one of our repetitions")
    parser.add_argument("--validation-images", type=int, default=VALIDATION_IMAGES, help="images of a validation")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of DataLoader workers to try; the best counts")
    arguments = parser.parse_args()
    ways = _execution_variants(arguments.device)
    device = ways["alone"][0].device
    workers = tuple(arguments.workers or (0, min(os.cpu_count() or 1, MAX_TRIED_WORKERS)))
    source = data_source(arguments.data_dir)
    with tutorial.torchvision_folder(source) as folder:
        bench = BenchmarkConfig(
            source, folder, ways, workers, arguments.rounds, arguments.seconds, arguments.validation_images
        )
        cases = [
            case for case in (FULL_CASES if arguments.full else SHORT_CASES) if arguments.only in f"training, {case}"
        ]
        networks = VALIDATION_NETWORKS["full" if arguments.full else "short"]
        figures = [figure for case in cases for figure in measure_training(bench, case)]
        figures += [measure_validation(bench, name) for name in networks if arguments.only in f"validation, {name}"]
    settings = {
        "precision": bench.default_execution[1],
        "tutorial": "float32",
        "threads": torch.get_num_threads(),
        "workers": " or ".join(map(str, workers)),
        "rounds": arguments.rounds,
    }
    report_result(BenchmarkResult("throughput", "tutorial", tuple(figures), settings, device_slug(device)), arguments)


def _execution_variants(device: str) -> dict[str, tuple[Execution, str]]:
    """Return our variants: a single trial; on a CPU with several cores also one thread, on a GPU also a graph."""
    alone = tuned_settings(device)
    if torch.device(alone[0].device).type == "cuda":
        return {"alone": alone, "graph": (dataclasses.replace(alone[0], engine="graph"), alone[1])}
    if alone[0].device != "cpu" or alone[0].threads == 1:
        return {"alone": alone}
    return {"alone": alone, "one thread": (dataclasses.replace(alone[0], threads=1), alone[1])}


# ---------------------------------------------------------------------------------------- training


def measure_training(config: BenchmarkConfig, case: Case) -> list[Measurement]:
    """Return a figure for each of our variants, compared with the tutorial's best number of workers."""
    count = _calibrated_image_count(config, case)
    ways = {name: _fit_throughputs(config, case, count, *way) for name, way in config.execution_variants.items()}
    theirs = {f"{n} workers": tutorial_throughputs(config, case, count, n) for n in config.workers}
    samples = interleave({**ways, **theirs}, config.rounds)
    best = max(theirs, key=lambda name: statistics.median(samples[name]))
    return [
        Measurement(
            f"training, {case}{'' if name == 'alone' else f', {name}'}",
            "images/s",
            samples[name],
            samples[best],
            note=f"tutorial with {best}",
            headline=name == "alone",
        )
        for name in ways
    ]


def _calibrated_image_count(config: BenchmarkConfig, case: Case) -> int:
    """Return the images of as many whole batches as ours trains in about `config.seconds`."""
    count = CALIBRATION_STEPS * case.batch_size
    epochs = _fit_throughputs(config, case, count, *config.default_execution)
    rate = [next(epochs) for _ in range(2)][-1]
    steps = min(max(round(rate * config.seconds / case.batch_size), MIN_STEPS), TRAINING_SET_SIZE // case.batch_size)
    return steps * case.batch_size


def _fit_throughputs(
    config: BenchmarkConfig, case: Case, count: int, execution: Execution, precision: str
) -> Iterator[float]:
    """Yield the images per second of each epoch, without validation."""
    recipe = case.recipe(precision, **{"data.train_images": count, "epochs": config.rounds + 2})
    images = load_images(recipe.data, config.source, execution.device)
    epochs = fit(recipe, images, execution)
    while True:
        with torch_settings(execution):
            epoch = next(epochs)
        yield count / epoch.report.seconds


def tutorial_throughputs(config: BenchmarkConfig, case: Case, count: int, workers: int) -> Iterator[float]:
    """Yield the images per second of each epoch of the tutorial's loop with this number of DataLoader workers."""
    recipe = case.recipe("float32", **{"data.train_images": count})
    device = config.default_execution[0].device
    model = tutorial.build_network(recipe.model).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = tutorial.training_set(config.folder, recipe.data, recipe.augmentation)
    batches = tutorial.make_loader(images, recipe.batch_size, workers, device, shuffle=True)
    while True:
        started = time.perf_counter()
        tutorial.train_epoch(model, batches, optimizer, device)
        yield count / (time.perf_counter() - started)


# -------------------------------------------------------------------------------------- validation


def measure_validation(config: BenchmarkConfig, network: str) -> Measurement:
    """Measure the evaluation of a network on the validation images."""
    theirs = {f"{n} workers": _tutorial_validation_throughputs(config, network, n) for n in config.workers}
    samples = interleave({"ours": _evaluate_throughputs(config, network), **theirs}, config.rounds)
    best = max(theirs, key=lambda name: statistics.median(samples[name]))
    note = f"tutorial with {best}"
    return Measurement(f"validation, {network}", "images/s", samples["ours"], samples[best], note=note, headline=True)


def _evaluate_throughputs(config: BenchmarkConfig, network: str) -> Iterator[float]:
    execution, precision = config.default_execution
    images, classifier = _validation_inputs(config, network)
    while True:
        with torch_settings(execution):
            started = time.perf_counter()
            evaluate(classifier, images, precision)
            seconds = time.perf_counter() - started
        yield len(images) / seconds


def _validation_inputs(config: BenchmarkConfig, network: str) -> tuple[LabelledImages, Any]:
    """Return the validation images, and a classifier as the engine returns it after an epoch."""
    execution, precision = config.default_execution
    changes = {"data.validation": config.validation_images, "data.train_images": 256}
    recipe = Case(network, 128).recipe(precision, **changes)
    images: Images = load_images(recipe.data, config.source, execution.device)
    with torch_settings(execution):
        epoch = next(fit(recipe, images, execution))
    return images.validation, epoch.classifier


def _tutorial_validation_throughputs(config: BenchmarkConfig, network: str, workers: int) -> Iterator[float]:
    recipe = Case(network, 128).recipe("float32", **{"data.validation": config.validation_images})
    device = config.default_execution[0].device
    model = tutorial.build_network(recipe.model).to(device)
    images = tutorial.validation_set(config.folder, recipe.data)
    batches = tutorial.make_loader(images, tutorial.VALIDATION_BATCH_SIZE, workers, device)
    while True:
        started = time.perf_counter()
        tutorial.validate(model, batches, device)
        yield len(images) / (time.perf_counter() - started)


if __name__ == "__main__":
    run_main(main)
