"""Seconds until a training's averaged weights reach an accuracy on the test images.

The recipes below train on all 60,000 images, anneal, and are as short as reaches their target. The clock runs from
the building of the network; imports, reading the images and, unless said otherwise, judging the test images after
each epoch are apart. That the test images say when to stop is the game of such records: it chooses no model of ours.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import tutorial
from benchmarks.machine import device_slug
from benchmarks.measure import Figure, Result, changes_of, deliver, entrance, options
from benchmarks.ours import conditions, images_from
from fmnist_search.data.loading import Images, Labelled, Source, prepare, read_test_set
from fmnist_search.recipe.recipe import Execution, Recipe, values_of
from fmnist_search.training.autotune import settled
from fmnist_search.training.engine import fit
from fmnist_search.training.evaluation import evaluate

FOUR_BLOCKS = {"model.depth": 4, "model.width_1": 32, "model.width_2": 64, "model.width_3": 128, "model.width_4": 256}
WIDER = {"model.width_1": 64, "model.width_2": 128, "model.width_3": 256, "model.convolutions": 2}
COMMON = {
    **FOUR_BLOCKS,
    "data.validation": 0,
    "batch_size": 128,
    "optimizer.learning_rate": 1e-2,
    "optimizer.weight_decay": 0.05,
    "schedule.name": "one-cycle",
    "averaging.horizon": 0.1,
}
RECIPES: dict[int, dict[str, Any]] = {
    92: {"epochs": 3},
    93: {"epochs": 6},
    94: {**WIDER, "epochs": 20, "augmentation.shift": 2, "augmentation.flip": 0.5, "label_smoothing": 0.05},
}
"""A recipe for each target, in per cent of the test images. The last asks for a GPU, and has not been tuned on one."""
TUTORIAL_LEARNING_RATE = 1e-3
TUTORIAL_PATIENCE = 3
"""The tutorial may train so many times our recipe's epochs."""


class Mark(NamedTuple):
    """An epoch's end: seconds of training so far, seconds of judging so far, accuracy on the test images."""

    training: float
    judging: float
    accuracy: float


def main() -> None:
    """Seconds to a test accuracy."""
    arguments = _arguments()
    execution, precision = conditions(arguments.device)
    source = images_from(arguments.data_dir)
    test = read_test_set("fashion-mnist", source).to(execution.device)
    changes = _given(arguments)
    figures: list[Figure] = []
    remarks: list[str] = []
    for target in arguments.target:
        recipe = Recipe().replace({**COMMON, **RECIPES[target], "precision": precision, **changes})
        ours, theirs = _raced(recipe, target, source, test, execution, arguments)
        figures += _figures(recipe, target, ours, theirs)
        remarks += [f"{target} %: ours {_course(ours)}"] + ([f"tutorial {_course(theirs)}"] if theirs else [])
        remarks.append(f"recipe: {json.dumps(_differences(recipe))}")
    settings = {"precision": precision, "threads": torch.get_num_threads(), "seeds": arguments.seeds}
    result = Result(
        "time_to_accuracy", "tutorial", tuple(figures), settings, device_slug(execution.device), tuple(remarks)
    )
    deliver(result, arguments)


def _arguments() -> argparse.Namespace:
    parser = options(main.__doc__)
    parser.add_argument("--target", type=int, choices=sorted(RECIPES), nargs="+", help="per cent; 92 on a CPU")
    parser.add_argument("--full", action="store_true", help="every target, and the tutorial's loop")
    parser.add_argument("--tutorial", action="store_true", help="the tutorial's loop to the same targets as well")
    parser.add_argument("--workers", type=int, default=2, help="num_workers of the tutorial's DataLoader")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each")
    parser.add_argument("--recipe", type=Path, help="JSON file with hyperparameters, nested or by dotted name")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a hyperparameter")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    arguments.tutorial = arguments.tutorial or arguments.full
    every = arguments.full or (arguments.device != "cpu" and torch.cuda.is_available())
    arguments.target = arguments.target or (sorted(RECIPES) if every else [min(RECIPES)])
    return arguments


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The changes of `--recipe` and, after them, of `--set`."""
    changes = values_of(json.loads(arguments.recipe.read_text())) if arguments.recipe else {}
    return {**changes, **changes_of(arguments.set)}


def _differences(recipe: Recipe) -> dict[str, Any]:
    usual = Recipe().flat()
    return {name: value for name, value in recipe.flat().items() if usual.get(name) != value}


# ---------------------------------------------------------------------------------------- racing


def _raced(
    recipe: Recipe, target: int, source: Source, test: Labelled, execution: Execution, arguments: argparse.Namespace
) -> tuple[list[list[Mark]], list[list[Mark]]]:
    """The marks of each seed, ours and the tutorial's in turns."""
    images = prepare(recipe.data, source, execution.device)
    ours, theirs = [], []
    for seed in range(arguments.seeds):
        seeded = recipe.replace({"seed": seed})
        ours.append(_until(target, _our_course(seeded, images, test, execution)))
        if arguments.tutorial:
            theirs.append(_until(target, _tutorial_course(seeded, source, arguments.workers, execution.device)))
    return ours, theirs


def _until(target: int, marks: Iterable[Mark]) -> list[Mark]:
    """The marks up to the first that reaches the target."""
    course = []
    for mark in marks:
        course.append(mark)
        if 100 * mark.accuracy >= target:
            break
    return course


def _our_course(recipe: Recipe, images: Images, test: Labelled, execution: Execution) -> Iterator[Mark]:
    with settled(execution):
        started, judging = time.perf_counter(), 0.0
        for epoch in fit(recipe, images, execution):
            trained = time.perf_counter()
            accuracy = evaluate(epoch.classifier, test, recipe.precision).accuracy
            training = trained - started - judging
            judging += time.perf_counter() - trained
            yield Mark(training, judging, accuracy)


def _tutorial_course(recipe: Recipe, source: Source, workers: int, device: str) -> Iterator[Mark]:
    """The tutorial's Adam at a constant rate, over the same network, batch size and augmentation."""
    torch.manual_seed(recipe.seed)
    with tutorial.torchvision_folder(source) as folder:
        images = tutorial.training_set(folder, recipe.data, recipe.augmentation)
        training = tutorial.batches(images, recipe.batch_size, workers, device, shuffle=True)
        test = tutorial.batches(tutorial.test_set(folder), tutorial.VALIDATION_BATCH, workers, device)
        started, judging = time.perf_counter(), 0.0
        model = tutorial.network(recipe.model).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=TUTORIAL_LEARNING_RATE)
        for _ in range(TUTORIAL_PATIENCE * recipe.epochs):
            tutorial.train_epoch(model, training, optimizer, device)
            trained = time.perf_counter()
            accuracy = tutorial.validate(model, test, device)
            seconds = trained - started - judging
            judging += time.perf_counter() - trained
            yield Mark(seconds, judging, accuracy)


# ---------------------------------------------------------------------------------- what was found


def _figures(recipe: Recipe, target: int, ours: list[list[Mark]], theirs: list[list[Mark]]) -> Iterator[Figure]:
    """Seconds to the target, of the trainings that reached it; nothing where none of ours did."""
    reached, reached_too = (
        [course[-1] for course in courses if 100 * course[-1].accuracy >= target] for courses in (ours, theirs)
    )
    if not reached:
        return
    note = "" if len(reached) == len(ours) else f"{len(reached)} of {len(ours)} trainings reached it"
    for what, seconds in {
        "": lambda mark: mark.training,
        ", judging counted": lambda mark: mark.training + mark.judging,
    }.items():
        yield Figure(
            f"{target} % on the test images, {recipe.label}{what}",
            "s",
            tuple(map(seconds, reached)),
            tuple(map(seconds, reached_too)),
            better="lower",
            note=note,
            headline=not what,
        )


def _course(courses: list[list[Mark]]) -> str:
    """The curves in a line: epochs, and the accuracy after the last of each."""
    return ", ".join(f"{course[-1].accuracy:.2%} after {len(course)} epochs" for course in courses)


if __name__ == "__main__":
    entrance(main)
