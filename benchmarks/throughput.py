"""Images a second: our engine against the tutorial's loop at its best, on the same network, images and steps."""

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
from benchmarks.measure import Figure, Result, alternate, deliver, entrance, options
from benchmarks.ours import conditions, images_from
from fmnist_search.data.loading import Images, Labelled, Source, prepare
from fmnist_search.recipe.recipe import TRAINING_POOL, Execution, Recipe
from fmnist_search.training.autotune import settled
from fmnist_search.training.engine import fit
from fmnist_search.training.evaluation import evaluate

NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {"model.depth": 2, "model.width_1": 8, "model.width_2": 16},
    "standard": {"model.depth": 3, "model.width_1": 32, "model.width_2": 64, "model.width_3": 128},
    "large": {"model.width_1": 64, "model.width_2": 128, "model.width_3": 256, "model.convolutions": 2},
    "mlp": {"model.family": "mlp", "model.width": 512},
}
BATCH_SIZES = (64, 128, 256, 512, 1024)
AUGMENTED = {"augmentation.shift": 2, "augmentation.flip": 0.5, "augmentation.erasing": 0.5}
VALIDATION = 10_848
TRIED_WORKERS = 8
"""Workers of a DataLoader that are tried besides none, where there are as many cores."""
CALIBRATION_STEPS = 8
FEWEST_STEPS = 4


class Case(NamedTuple):
    """What is trained: a network, how many images a step, and whether they are augmented."""

    network: str
    batch_size: int
    augmented: bool = False

    def __str__(self) -> str:
        return f"{self.network}, batch size {self.batch_size}{', augmented' if self.augmented else ''}"

    def recipe(self, precision: str, **changes: int) -> Recipe:
        """The case as a recipe that holds nothing back for validation."""
        augmentation = AUGMENTED if self.augmented else {}
        fixed = {"precision": precision, "batch_size": self.batch_size, "data.validation": 0, **changes}
        return Recipe().replace({**NETWORKS[self.network], **augmentation, **fixed})


SHORT = (Case("standard", 128), Case("standard", 512), Case("mlp", 512), Case("tiny", 128), Case("standard", 128, True))
FULL = (
    *itertools.starmap(Case, itertools.product(NETWORKS, BATCH_SIZES)),
    *(Case("standard", batch_size, True) for batch_size in BATCH_SIZES),
)
VALIDATED = {"short": ("standard",), "full": tuple(NETWORKS)}


class Bench(NamedTuple):
    """Where and how long everything is measured."""

    source: Source
    folder: Path
    ways: dict[str, tuple[Execution, str]]
    workers: tuple[int, ...]
    rounds: int
    seconds: float

    @property
    def alone(self) -> tuple[Execution, str]:
        """How a trial trains that has the machine to itself."""
        return next(iter(self.ways.values()))


def main() -> None:
    """Training and validation in images a second, ours and the tutorial's loop in turns."""
    parser = options(main.__doc__)
    parser.add_argument("--full", action="store_true", help="every network at every batch size")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds this text")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of each measurement")
    parser.add_argument("--seconds", type=float, default=0.8, help="about how long ours takes for one repetition")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of DataLoader workers of which the best counts")
    arguments = parser.parse_args()
    ways = _ways(arguments.device)
    device = ways["alone"][0].device
    workers = tuple(arguments.workers or (0, min(os.cpu_count() or 1, TRIED_WORKERS)))
    source = images_from(arguments.data_dir)
    with tutorial.torchvision_folder(source) as folder:
        bench = Bench(source, folder, ways, workers, arguments.rounds, arguments.seconds)
        cases = [case for case in (FULL if arguments.full else SHORT) if arguments.only in f"training, {case}"]
        networks = VALIDATED["full" if arguments.full else "short"]
        figures = [figure for case in cases for figure in training(bench, case)]
        figures += [validation(bench, name) for name in networks if arguments.only in f"validation, {name}"]
    settings = {
        "precision": bench.alone[1],
        "tutorial": "float32",
        "threads": torch.get_num_threads(),
        "workers": " or ".join(map(str, workers)),
        "rounds": arguments.rounds,
    }
    deliver(Result("throughput", "tutorial", tuple(figures), settings, device_slug(device)), arguments)


def _ways(device: str) -> dict[str, tuple[Execution, str]]:
    """Ours with the machine to itself; on a CPU of several cores on one thread as well, on a GPU captured as well."""
    alone = conditions(device)
    if torch.device(alone[0].device).type == "cuda":
        return {"alone": alone, "graph": (dataclasses.replace(alone[0], engine="graph"), alone[1])}
    if alone[0].device != "cpu" or alone[0].threads == 1:
        return {"alone": alone}
    return {"alone": alone, "one thread": (dataclasses.replace(alone[0], threads=1), alone[1])}


# ---------------------------------------------------------------------------------------- training


def training(bench: Bench, case: Case) -> list[Figure]:
    """A figure for each way of ours, against the tutorial with the number of workers that suits it best."""
    count = _images_for(bench, case)
    ways = {name: _our_epochs(bench, case, count, *way) for name, way in bench.ways.items()}
    theirs = {f"{n} workers": tutorial_epochs(bench, case, count, n) for n in bench.workers}
    samples = alternate({**ways, **theirs}, bench.rounds)
    best = max(theirs, key=lambda name: statistics.median(samples[name]))
    return [
        Figure(
            f"training, {case}{'' if name == 'alone' else f', {name}'}",
            "images/s",
            samples[name],
            samples[best],
            note=f"tutorial with {best}",
            headline=name == "alone",
        )
        for name in ways
    ]


def _images_for(bench: Bench, case: Case) -> int:
    """So many whole batches that ours takes about the wanted seconds for them."""
    count = CALIBRATION_STEPS * case.batch_size
    epochs = _our_epochs(bench, case, count, *bench.alone)
    rate = [next(epochs) for _ in range(2)][-1]
    steps = min(max(round(rate * bench.seconds / case.batch_size), FEWEST_STEPS), TRAINING_POOL // case.batch_size)
    return steps * case.batch_size


def _our_epochs(bench: Bench, case: Case, count: int, execution: Execution, precision: str) -> Iterator[float]:
    """Images a second of epoch after epoch, without validation."""
    recipe = case.recipe(precision, **{"data.train_images": count, "epochs": bench.rounds + 2})
    images = prepare(recipe.data, bench.source, execution.device)
    epochs = fit(recipe, images, execution)
    while True:
        with settled(execution):
            epoch = next(epochs)
        yield count / epoch.report.seconds


def tutorial_epochs(bench: Bench, case: Case, count: int, workers: int) -> Iterator[float]:
    """Images a second of epoch after epoch of the tutorial's loop, with so many DataLoader workers."""
    recipe = case.recipe("float32", **{"data.train_images": count})
    device = bench.alone[0].device
    model = tutorial.network(recipe.model).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = tutorial.training_set(bench.folder, recipe.data, recipe.augmentation)
    batches = tutorial.batches(images, recipe.batch_size, workers, device, shuffle=True)
    while True:
        started = time.perf_counter()
        tutorial.train_epoch(model, batches, optimizer, device)
        yield count / (time.perf_counter() - started)


# -------------------------------------------------------------------------------------- validation


def validation(bench: Bench, network: str) -> Figure:
    """A network judged on the validation images, with the machine to itself."""
    theirs = {f"{n} workers": _tutorial_validations(bench, network, n) for n in bench.workers}
    samples = alternate({"ours": _our_validations(bench, network), **theirs}, bench.rounds)
    best = max(theirs, key=lambda name: statistics.median(samples[name]))
    note = f"tutorial with {best}"
    return Figure(f"validation, {network}", "images/s", samples["ours"], samples[best], note=note, headline=True)


def _our_validations(bench: Bench, network: str) -> Iterator[float]:
    execution, precision = bench.alone
    images, classifier = _judged(bench, network)
    while True:
        with settled(execution):
            started = time.perf_counter()
            evaluate(classifier, images, precision)
            seconds = time.perf_counter() - started
        yield len(images) / seconds


def _judged(bench: Bench, network: str) -> tuple[Labelled, Any]:
    """Validation images, and a classifier as the engine hands it over after an epoch."""
    execution, precision = bench.alone
    recipe = Case(network, 128).recipe(precision, **{"data.validation": VALIDATION, "data.train_images": 256})
    images: Images = prepare(recipe.data, bench.source, execution.device)
    with settled(execution):
        epoch = next(fit(recipe, images, execution))
    return images.validation, epoch.classifier


def _tutorial_validations(bench: Bench, network: str, workers: int) -> Iterator[float]:
    recipe = Case(network, 128).recipe("float32", **{"data.validation": VALIDATION})
    device = bench.alone[0].device
    model = tutorial.network(recipe.model).to(device)
    images = tutorial.validation_set(bench.folder, recipe.data)
    batches = tutorial.batches(images, tutorial.VALIDATION_BATCH, workers, device)
    while True:
        started = time.perf_counter()
        tutorial.validate(model, batches, device)
        yield len(images) / (time.perf_counter() - started)


if __name__ == "__main__":
    entrance(main)
