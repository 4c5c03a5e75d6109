"""Measure the seconds until a training's averaged weights reach an accuracy on the test images.

The recipes below train on all 60,000 images with an annealed rate, for as few epochs as reach their target. The clock
starts when the network is built; imports, reading the images and, unless stated, the evaluation on the test images
after each epoch do not count. The test images decide when to stop, as in other such records, but select no model.
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
from benchmarks.measure import BenchmarkResult, Measurement, make_parser, parse_changes, report_result, run_main
from benchmarks.ours import data_source, tuned_settings
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.data.loading import load_images, read_test_set
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe, flatten_tables
from fmnist_search.training.engine import fit
from fmnist_search.training.evaluation import evaluate
from fmnist_search.training.runtime import torch_settings

NARROW_CHANGES = {
    "model.depth": 3,
    "model.width_1": 16,
    "model.width_2": 32,
    "model.width_3": 64,
    "model.head": "flatten",
    "optimizer.name": "muon",
    "optimizer.learning_rate": 0.02,
    "label_smoothing": 0.1,
    "augmentation.flip": 0.5,
    "test_time": "flip",
}
"""Few channels where the image is large, and a mirrored view of each test image."""
FOUR_BLOCK_CHANGES = {
    "model.depth": 4,
    "model.width_1": 32,
    "model.width_2": 64,
    "model.width_3": 128,
    "model.width_4": 256,
}
WIDER_CHANGES = {
    **FOUR_BLOCK_CHANGES,
    "model.width_1": 64,
    "model.width_2": 128,
    "model.width_3": 256,
    "model.convolutions": 2,
}
COMMON_CHANGES = {
    "data.validation": 0,
    "batch_size": 128,
    "optimizer.learning_rate": 1e-2,
    "optimizer.weight_decay": 0.05,
    "schedule.name": "one-cycle",
    "averaging.horizon": 0.1,
}
RECIPE_CHANGES: dict[int, dict[str, Any]] = {
    92: {**NARROW_CHANGES, "epochs": 3},
    93: {**FOUR_BLOCK_CHANGES, "epochs": 6},
    94: {**WIDER_CHANGES, "epochs": 20, "augmentation.shift": 2, "augmentation.flip": 0.5, "label_smoothing": 0.05},
}
"""The recipe for each target, in percent of the test images. The last needs a GPU and was not tuned on one.

That of 92 % was chosen on validation images, but for its epochs: two were too few on the test images.

Another target takes the recipe of the next higher one.
"""
TUTORIAL_LEARNING_RATE = 1e-3
TUTORIAL_EPOCHS_FACTOR = 3
"""The tutorial trains up to this many times the epochs of our recipe."""


class EpochMark(NamedTuple):
    """The end of an epoch: seconds of training and of evaluation so far, and the accuracy on the test images."""

    training_seconds: float
    evaluation_seconds: float
    accuracy: float


def main() -> None:
    """Measure the seconds until a test accuracy is reached."""
    arguments = _parse_arguments()
    execution, tuned_precision = tuned_settings(arguments.device)
    source = data_source(arguments.data_dir)
    test = read_test_set("fashion-mnist", source).to(execution.device)
    changes = {"precision": tuned_precision, **_parse_changes(arguments)}
    figures: list[Measurement] = []
    remarks: list[str] = []
    for target in arguments.target:
        recipe = Recipe().replace({**COMMON_CHANGES, **_recipe_changes(target), **changes})
        ours, theirs = _train_both(recipe, target, source, test, execution, arguments)
        figures += _measurements(recipe, target, ours, theirs)
        remarks += [f"{target} %: ours {_format_curves(ours)}"] + (
            [f"tutorial {_format_curves(theirs)}"] if theirs else []
        )
        remarks.append(f"recipe: {json.dumps(_non_default_values(recipe))}")
    settings = {"precision": changes["precision"], "threads": torch.get_num_threads(), "seeds": arguments.seeds}
    result = BenchmarkResult(
        "time_to_accuracy", "tutorial", tuple(figures), settings, device_slug(execution.device), tuple(remarks)
    )
    report_result(result, arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = make_parser(main.__doc__)
    parser.add_argument(
        "--target", type=int, nargs="+", help="percent of the test images, at most 94; by default 92 on a CPU"
    )
    parser.add_argument("--full", action="store_true", help="all targets, and the tutorial's loop")
    parser.add_argument("--tutorial", action="store_true", help="also train the tutorial's loop to the same targets")
    parser.add_argument(
        "--tutorial-factor",
        type=int,
        default=TUTORIAL_EPOCHS_FACTOR,
        help="epochs of the tutorial, as a multiple of ours",
    )
    parser.add_argument("--workers", type=int, default=2, help="num_workers of the tutorial's DataLoader")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each")
    parser.add_argument("--recipe", type=Path, help="JSON file with hyperparameters, nested or by dotted name")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a hyperparameter")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.target and max(arguments.target) > max(RECIPE_CHANGES):
        parser.error(f"--target: at most {max(RECIPE_CHANGES)}, which the last recipe reaches")
    arguments.tutorial = arguments.tutorial or arguments.full
    every = arguments.full or (arguments.device != "cpu" and torch.cuda.is_available())
    arguments.target = arguments.target or (sorted(RECIPE_CHANGES) if every else [min(RECIPE_CHANGES)])
    return arguments


def _recipe_changes(target: int) -> dict[str, Any]:
    """Return the changes of the recipe for the lowest known target that is not below this one."""
    return RECIPE_CHANGES[min(known for known in RECIPE_CHANGES if known >= target)]


def _parse_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the changes of `--recipe`, and after them those of `--set`."""
    changes = flatten_tables(json.loads(arguments.recipe.read_text())) if arguments.recipe else {}
    return {**changes, **parse_changes(arguments.set)}


def _non_default_values(recipe: Recipe) -> dict[str, Any]:
    usual = Recipe().to_flat_dict()
    return {name: value for name, value in recipe.to_flat_dict().items() if usual.get(name) != value}


# -------------------------------------------------------------------------------------- training


def _train_both(
    recipe: Recipe,
    target: int,
    source: DataSource,
    test: LabelledImages,
    execution: Execution,
    arguments: argparse.Namespace,
) -> tuple[list[list[EpochMark]], list[list[EpochMark]]]:
    """Train ours and the tutorial's alternately; return the marks of each seed."""
    images = load_images(recipe.data, source, execution.device)
    ours, theirs = [], []
    for seed in range(arguments.seeds):
        seeded = recipe.replace({"seed": seed})
        ours.append(_until_target(target, _train_ours(seeded, images, test, execution)))
        if arguments.tutorial:
            theirs.append(_until_target(target, _train_tutorial(seeded, source, arguments, execution.device)))
    return ours, theirs


def _until_target(target: int, epochs: Iterable[EpochMark]) -> list[EpochMark]:
    """Return the marks up to the first that reaches the target."""
    course = []
    for mark in epochs:
        course.append(mark)
        if 100 * mark.accuracy >= target:
            break
    return course


def _train_ours(recipe: Recipe, images: Images, test: LabelledImages, execution: Execution) -> Iterator[EpochMark]:
    with torch_settings(execution):
        started, evaluation = time.perf_counter(), 0.0
        for epoch in fit(recipe, images, execution):
            trained = time.perf_counter()
            accuracy = evaluate(epoch.classifier, test, recipe.precision).accuracy
            training = trained - started - evaluation
            evaluation += time.perf_counter() - trained
            yield EpochMark(training, evaluation, accuracy)


def _train_tutorial(
    recipe: Recipe, source: DataSource, arguments: argparse.Namespace, device: str
) -> Iterator[EpochMark]:
    """Train with the tutorial's Adam at a constant rate: same network, batch size and augmentation."""
    torch.manual_seed(recipe.seed)
    with tutorial.torchvision_folder(source) as folder:
        images = tutorial.training_set(folder, recipe.data, recipe.augmentation)
        training = tutorial.make_loader(images, recipe.batch_size, arguments.workers, device, shuffle=True)
        test = tutorial.make_loader(
            tutorial.test_set(folder), tutorial.VALIDATION_BATCH_SIZE, arguments.workers, device
        )
        started, evaluation = time.perf_counter(), 0.0
        model = tutorial.build_network(recipe.model).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=TUTORIAL_LEARNING_RATE)
        for _ in range(arguments.tutorial_factor * recipe.epochs):
            tutorial.train_epoch(model, training, optimizer, device)
            trained = time.perf_counter()
            accuracy = tutorial.validate(model, test, device)
            seconds = trained - started - evaluation
            evaluation += time.perf_counter() - trained
            yield EpochMark(seconds, evaluation, accuracy)


# ----------------------------------------------------------------------------------------- results


def _measurements(
    recipe: Recipe, target: int, ours: list[list[EpochMark]], theirs: list[list[EpochMark]]
) -> Iterator[Measurement]:
    """Yield the seconds to the target of the trainings that reached it; nothing if none of ours did."""
    reached, reached_too = (
        [course[-1] for course in courses if 100 * course[-1].accuracy >= target] for courses in (ours, theirs)
    )
    if not reached:
        return
    note = "" if len(reached) == len(ours) else f"{len(reached)} of {len(ours)} trainings reached it"
    for what, seconds in {
        "": lambda mark: mark.training_seconds,
        ", judging counted": lambda mark: mark.training_seconds + mark.evaluation_seconds,
    }.items():
        yield Measurement(
            f"{target} % on the test images, {recipe.label}{what}",
            "s",
            tuple(map(seconds, reached)),
            tuple(map(seconds, reached_too)),
            better="lower",
            note=note,
            headline=not what,
        )


def _format_curves(curves: list[list[EpochMark]]) -> str:
    """Return the curves as text: the accuracy after the last epoch, and the number of epochs."""
    return ", ".join(f"{course[-1].accuracy:.2%} after {len(course)} epochs" for course in curves)


if __name__ == "__main__":
    run_main(main)
