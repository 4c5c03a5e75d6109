"""Measure the total images per second of several trials at once: processes on a CPU, threads and streams on a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Sequence

from benchmarks import tutorial
from benchmarks.machine import device_slug
from benchmarks.measure import BenchmarkResult, Measurement, interleave, make_parser, report_result, run_main
from benchmarks.ours import data_source, tuned_settings
from benchmarks.throughput import BenchmarkConfig, Case, tutorial_throughputs
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.execution.backend import make_backend
from fmnist_search.execution.job import LossCause
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState

MIXED_CASES = (Case("standard", 64), Case("large", 256), Case("tiny", 128), Case("standard", 512))
TRIAL_COUNTS = {"cpu": (1, 2), "cuda": (1, 2, 4, 8)}
FULL_TRIAL_COUNTS = (1, 2, 4, 8)
CPU_TRAIN_IMAGES = 2_048
"""Images of an epoch: few enough that trials end epochs within a measurement, and a multiple of each batch size."""
GPU_TRAIN_IMAGES = 49_152
UNIT = "images/s in all"
MAX_EPOCHS = 1_000
"""More epochs than a trial trains within a measurement."""


def main() -> None:
    """Compare the images per second of several trials at once with one trial alone and with one tutorial loop."""
    parser = make_parser(main.__doc__)
    parser.add_argument("--full", action="store_true", help="up to eight at once")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of each measurement")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long trials run at once in one repetition")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="plain", choices=("plain", "graph"))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128], help="batch sizes of equal trials")
    arguments = parser.parse_args()
    tuned, precision = tuned_settings(arguments.device, threads=1)
    execution = dataclasses.replace(tuned, engine=arguments.engine)
    on_gpu = execution.device != "cpu"
    counts = FULL_TRIAL_COUNTS if arguments.full else TRIAL_COUNTS["cuda" if on_gpu else "cpu"]
    source = data_source(arguments.data_dir)
    packing = ConcurrentRunner(
        source, execution, precision, arguments.seconds, GPU_TRAIN_IMAGES if on_gpu else CPU_TRAIN_IMAGES
    )
    figures: list[Measurement] = []
    with tutorial.torchvision_folder(source) as folder:
        bench = BenchmarkConfig(
            source, folder, {"alone": tuned_settings(arguments.device)}, (0, 2), arguments.rounds, 1.0
        )
        for batch_size in arguments.batch_size:
            figures += measure_equal_trials(packing, bench, Case("standard", batch_size), counts)
    slower = dataclasses.replace(packing, train_images=packing.train_images // 2)
    figures += measure_mixed_trials(slower, counts, arguments.rounds)
    settings = {"precision": precision, "engine": execution.engine, "seconds": arguments.seconds}
    result = BenchmarkResult("packing", "the other", tuple(figures), settings, device_slug(execution.device))
    report_result(result, arguments)


def measure_equal_trials(
    runner: ConcurrentRunner, config: BenchmarkConfig, case: Case, counts: Sequence[int]
) -> Iterator[Measurement]:
    """Compare each number of equal trials at once with one trial alone and with one tutorial loop."""
    with contextlib.ExitStack() as stack:
        ways = {str(count): runner.throughputs(stack, [case] * count) for count in counts}
        tutorials = {f"{n} workers": tutorial_throughputs(config, case, runner.train_images, n) for n in config.workers}
        samples = interleave({**ways, **tutorials}, config.rounds)
    best = max(tutorials, key=lambda way: statistics.median(samples[way]))
    for count in counts:
        what, ours = f"{count} at once, {case}", samples[str(count)]
        note = f"against one tutorial loop with all cores and {best}"
        yield Measurement(what, UNIT, ours, samples[best], note=note, headline=count == counts[1])
        if count > 1:
            yield Measurement(what, UNIT, ours, samples["1"], note="against one alone")


def measure_mixed_trials(runner: ConcurrentRunner, counts: Sequence[int], rounds: int) -> Iterator[Measurement]:
    """Compare each number of different trials at once with the mean of the same trials alone."""
    with contextlib.ExitStack() as stack:
        cases = {
            count: [MIXED_CASES[number % len(MIXED_CASES)] for number in range(count)] for count in counts if count > 1
        }
        ways = {str(count): runner.throughputs(stack, chosen) for count, chosen in cases.items()}
        alone = {
            str(case): runner.throughputs(stack, [case]) for case in {case for row in cases.values() for case in row}
        }
        samples = interleave({**ways, **alone}, rounds)
    for count, chosen in cases.items():
        each = [samples[str(case)] for case in chosen]
        average = tuple(statistics.fmean(values) for values in zip(*each, strict=True))
        names = "; ".join(dict.fromkeys(map(str, chosen)))
        yield Measurement(f"{count} at once, {names}", UNIT, samples[str(count)], average, note="against each alone")


@dataclasses.dataclass(frozen=True)
class ConcurrentRunner:
    """Runs trials at once and measures their throughput."""

    source: DataSource
    execution: Execution
    precision: str
    seconds: float
    train_images: int

    def throughputs(self, stack: contextlib.ExitStack, cases: Sequence[Case]) -> Iterator[float]:
        """Yield the total images per second of these trials at once, measured repeatedly with the same workers."""
        backend = stack.enter_context(make_backend(self.execution, len(cases)))
        changes = {"data.train_images": self.train_images, "epochs": MAX_EPOCHS}
        recipes = [case.recipe(self.precision, **changes) for case in cases]
        prepared = load_images(recipes[0].data, self.source, self.execution.device)
        while True:
            window = MeasurementWindow(len(recipes), self.seconds)
            jobs = [TimedJob(recipe, prepared, window) for recipe in recipes]
            waiting = list(jobs)
            backend.run(lambda waiting=waiting: waiting.pop() if waiting else None)  # type: ignore[misc]
            yield sum(job.throughput(self.train_images) for job in jobs)


class MeasurementWindow:
    """The time in which all trainings run: from the end of the slowest first epoch, for `seconds`."""

    def __init__(self, count: int, seconds: float):
        self.start = self.end = math.inf
        self._count = count
        self._seconds = seconds

    def first_epoch_done(self) -> None:
        """Count a training whose first epoch has ended; the last of them starts the window."""
        self._count -= 1
        if not self._count:
            self.start = time.perf_counter()
            self.end = self.start + self._seconds


class TimedJob:
    """A training that records when its epochs end, until the window closes."""

    worker = 0
    worker_name = "0"
    checkpoint = None
    checkpoint_seconds = None

    def __init__(self, recipe: Recipe, images: Images, window: MeasurementWindow):
        self.recipe = recipe
        self.images = images
        self._window = window
        self._ends: list[float] = []

    def throughput(self, images: int) -> float:
        """Return the images per second within the window; `images` is the number of images in an epoch."""
        inside = [end for end in self._ends if end >= self._window.start]
        return (len(inside) - 1) * images / (inside[-1] - inside[0])

    def on_epoch(self, report: EpochReport) -> Decision:
        """Record the end of an epoch; stop after the window, if it contains two ends."""
        self._ends.append(time.perf_counter())
        if len(self._ends) == 1:
            self._window.first_epoch_done()
        enough = sum(end >= self._window.start for end in self._ends) > 1
        return Decision.PRUNE if enough and self._ends[-1] >= self._window.end else Decision.CONTINUE

    def on_checkpoint(self, content: bytes) -> None:
        """Do nothing: no checkpoints are taken."""

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Raise if the training failed: the measurement is then invalid."""
        if result.state is TrialState.FAILED:
            raise RuntimeError(result.reason)

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        """Raise: the measurement is invalid."""
        raise RuntimeError(reason)


if __name__ == "__main__":
    run_main(main)
