"""Train the published networks by their authors' recipes, and compare the results with the published ones.

A training uses all 60,000 images, unless its author used validation images, and float32. The weights of its last epoch
are evaluated once on the test images. The result of a network is saved after each of its trainings.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.machine import device_slug
from benchmarks.measure import (
    BenchmarkResult,
    Measurement,
    command_line,
    make_parser,
    parse_changes,
    run_main,
    save_result,
)
from benchmarks.ours import data_source
from benchmarks.reference_results import (
    BENCHMARK,
    TEST_ACCURACY,
    TEST_LOSS,
    TRAINING_ACCURACY,
    TRAINING_SECONDS,
    VALIDATION_ACCURACY,
    format_changes,
    results_table,
)
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images, LabelledImages
from fmnist_search.data.loading import load_images, read_test_set
from fmnist_search.execution.backend import make_backend
from fmnist_search.execution.capacity import worker_count
from fmnist_search.execution.job import LossCause
from fmnist_search.models.presets import PRESETS, Preset
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.training.checkpoint import classifier_from_weights
from fmnist_search.training.devices import resolve_execution
from fmnist_search.training.evaluation import evaluate

INTERRUPTED_EXIT_CODE = 130
"""The exit code of shells after Ctrl-C."""
LIGHT_MULT_ADDS = 100e6
"""Largest number of multiply-adds per image, over all epochs, with which a training takes minutes on a CPU core."""


def main() -> None:
    """Train the published networks as their authors did."""
    arguments = _parse_arguments()
    execution = resolve_execution(arguments.device, threads=1)
    workers, message = worker_count(arguments.workers or "auto", execution)
    if message:
        _print_status(message)
    bench = ReferenceRunner(data_source(arguments.data_dir), execution, workers, arguments.save)
    experiments = _make_experiments(arguments, execution)
    waiting = deque(bench.make_job(experiment, seed) for experiment in experiments for seed in range(arguments.seeds))
    with make_backend(execution, workers) as backend, bench.interrupt_handler():
        backend.run(lambda: waiting.popleft() if waiting and not bench.interrupted else None)
    results = [bench.result(experiment) for experiment in experiments if experiment.scores]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=1))
    else:
        print(results_table(results), end="")
    if bench.interrupted:
        sys.exit(INTERRUPTED_EXIT_CODE)


def _parse_arguments() -> argparse.Namespace:
    parser = make_parser(main.__doc__)
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), metavar="NAME", help="only these networks")
    parser.add_argument("--all", "--full", action="store_true", help="all networks, even if that takes days")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each network")
    parser.add_argument("--epochs-limit", type=int, metavar="N", help="largest number of epochs of a training")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a hyperparameter")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0, help="trainings at a time; 0 means as many as fit")
    return parser.parse_args()


def _make_experiments(arguments: argparse.Namespace, execution: Execution) -> list[Experiment]:
    """Return what to train: the given networks; by default all on a GPU, and the small ones on a CPU."""
    every = arguments.all or torch.device(execution.device).type == "cuda"
    names = arguments.preset or [name for name, preset in PRESETS.items() if every or _is_light(preset.recipe)]
    changes = parse_changes(arguments.set)
    experiments = []
    for name in names:
        recipe = published_recipe(PRESETS[name]).replace(changes)
        epochs = min(recipe.epochs, arguments.epochs_limit or recipe.epochs)
        experiments.append(Experiment(PRESETS[name], recipe.replace({"epochs": epochs}), changes))
    return experiments


def _is_light(recipe: Recipe) -> bool:
    from fmnist_search.reporting.model_summary import (
        summarize,
    )  # torchinfo may not be installed on a machine with a GPU

    return recipe.epochs * summarize(recipe.model).mult_adds <= LIGHT_MULT_ADDS


def published_recipe(preset: Preset) -> Recipe:
    """Return a preset's recipe, without validation images unless its author used some."""
    has_default = preset.recipe.data.validation == Data().validation
    return preset.recipe.replace({"data.validation": 0}) if has_default else preset.recipe


def _print_status(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------- training


class Score(NamedTuple):
    """The result of a training after its last epoch: accuracies in 0..1, None without validation images."""

    seed: int
    test_accuracy: float
    test_loss: float
    validation_accuracy: float | None
    training_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Experiment:
    """A network that is trained from several seeds, with its scores so far."""

    preset: Preset
    recipe: Recipe
    changes: dict[str, Any]
    scores: list[Score] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _measurements(scores: Sequence[Score]) -> Iterator[Measurement]:
    yield Measurement(TEST_ACCURACY, "%", tuple(100 * score.test_accuracy for score in scores))
    yield Measurement(TEST_LOSS, "", tuple(score.test_loss for score in scores), better="lower")
    validation = tuple(100 * s.validation_accuracy for s in scores if s.validation_accuracy is not None)
    if validation:
        yield Measurement(VALIDATION_ACCURACY, "%", validation)
    yield Measurement(TRAINING_ACCURACY, "%", tuple(100 * score.training_accuracy for score in scores))
    yield Measurement(TRAINING_SECONDS, "s", tuple(score.seconds for score in scores), better="lower")


class ReferenceRunner:
    """Creates the jobs, evaluates the trained networks and saves the results."""

    def __init__(self, source: DataSource, execution: Execution, workers: int, save: Path | None):
        self.execution = execution
        self._workers = workers
        self._source = source
        self._save = save
        self._images: dict[Data, Images] = {}
        self._tests: dict[str, LabelledImages] = {}
        self.interrupted = False

    @contextlib.contextmanager
    def interrupt_handler(self) -> Iterator[None]:
        """On Ctrl-C let the running epochs finish; a second Ctrl-C stops at once."""

        def on_interrupt(*_: object) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _print_status("interrupted: finished trainings count; to continue, give the other networks with --preset")

        before = signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def make_job(self, experiment: Experiment, seed: int) -> ReferenceJob:
        """Return a job for a worker."""
        recipe = experiment.recipe.replace({"seed": seed})
        if recipe.data not in self._images:
            self._images[recipe.data] = load_images(recipe.data, self._source, self.execution.device)
        return ReferenceJob(recipe, self._images[recipe.data], experiment, self)

    def evaluate(self, recipe: Recipe, result: TrialResult) -> Score:
        """Evaluate the weights of the last epoch on the test images."""
        assert result.last_weights is not None
        dataset, last = recipe.data.dataset, result.epochs[-1]
        if dataset not in self._tests:
            self._tests[dataset] = read_test_set(dataset, self._source).to(self.execution.device)
        classifier = classifier_from_weights(recipe, result.last_weights).to(self.execution.device)
        test = evaluate(classifier, self._tests[dataset], recipe.precision)
        return Score(recipe.seed, test.accuracy, test.loss, last.val_accuracy, last.train_accuracy, result.seconds)

    def save(self, experiment: Experiment) -> None:
        """Save the result of an experiment so far, if `--save` was given."""
        if self._save:
            save_result(self.result(experiment), self._save)

    def result(self, experiment: Experiment) -> BenchmarkResult:
        """Return the figures of all seeds so far."""
        name, scores = experiment.preset.name, sorted(experiment.scores)
        settings = {
            "preset": name,
            "changes": experiment.changes,
            "seeds": [score.seed for score in scores],
            "workers": self._workers,
            "threads": self.execution.threads,
            "recipe": {key: value for key, value in experiment.recipe.to_flat_dict().items() if key != "seed"},
        }
        return BenchmarkResult(
            BENCHMARK,
            "author",
            tuple(_measurements(scores)),
            settings,
            device_slug(self.execution.device),
            tuple(experiment.notes),
            _slug(" ".join([name, *format_changes(experiment.changes)])),
            command_line(BENCHMARK),
        )


class ReferenceJob:
    """One training of an experiment: a job for a worker."""

    worker = 0
    worker_name = "0"
    checkpoint = None
    checkpoint_seconds = None

    def __init__(self, recipe: Recipe, images: Images, experiment: Experiment, runner: ReferenceRunner):
        self.recipe = recipe
        self.images = images
        self._experiment = experiment
        self._runner = runner

    def on_epoch(self, _: EpochReport) -> Decision:
        """Return whether the training continues, which it does unless Ctrl-C was pressed."""
        return Decision.INTERRUPT if self._runner.interrupted else Decision.CONTINUE

    def on_checkpoint(self, content: bytes) -> None:
        """Do nothing: no checkpoints are taken."""

    def on_result(self, result: TrialResult, _: float) -> None:
        """Evaluate the network on the test images, and save the result of the experiment so far."""
        if result.state is TrialState.FAILED:
            self.on_worker_lost(result.reason or "")
        elif result.state is TrialState.COMPLETED:
            score = self._runner.evaluate(self.recipe, result)
            self._experiment.scores.append(score)
            self._runner.save(self._experiment)
            _print_status(f"{self._name}: {score.test_accuracy:.2%} of the test images, {score.seconds:.0f} s")

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        """Note the reason in the result; the training does not count."""
        self._experiment.notes.append(f"seed {self.recipe.seed}: {reason}")
        _print_status(f"{self._name}: {reason}")

    @property
    def _name(self) -> str:
        return ", ".join(
            [f"{self._experiment.preset.name} seed {self.recipe.seed}", *format_changes(self._experiment.changes)]
        )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    run_main(main)
