"""Images a second in all when several trials train at once: worker processes on a CPU, threads and streams on a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Sequence

from benchmarks import tutorial
from benchmarks.machine import device_slug
from benchmarks.measure import Figure, Result, alternate, deliver, entrance, options
from benchmarks.ours import conditions, images_from
from benchmarks.throughput import Bench, Case, tutorial_epochs
from fmnist_search.data.loading import Images, Source, prepare
from fmnist_search.execution.pool import Crew
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.results.study import Decision, EpochReport, State, TrialResult

MIXED = (Case("standard", 64), Case("large", 256), Case("tiny", 128), Case("standard", 512))
COUNTS = {"cpu": (1, 2), "cuda": (1, 2, 4, 8)}
FULL_COUNTS = (1, 2, 4, 8)
SLICE = 2_048
"""Images of an epoch, short enough that epochs of all trials fall into a measurement; whole batches of every size."""
GPU_SLICE = 49_152
UNIT = "images/s in all"
LONGEST = 1_000
"""Epochs that no trial of a measurement reaches."""


def main() -> None:
    """Images a second of several trials at once, against one alone and against one tutorial loop."""
    parser = options(main.__doc__)
    parser.add_argument("--full", action="store_true", help="up to eight at once")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of each measurement")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="how long trials run side by side for one repetition"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engine", default="plain", choices=("plain", "graph"))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128], help="batch sizes of equal trials")
    arguments = parser.parse_args()
    tuned, precision = conditions(arguments.device, threads=1)
    execution = dataclasses.replace(tuned, engine=arguments.engine)
    on_gpu = execution.device != "cpu"
    counts = FULL_COUNTS if arguments.full else COUNTS["cuda" if on_gpu else "cpu"]
    source = images_from(arguments.data_dir)
    packing = Packing(source, execution, precision, arguments.seconds, GPU_SLICE if on_gpu else SLICE)
    figures: list[Figure] = []
    with tutorial.torchvision_folder(source) as folder:
        bench = Bench(source, folder, {"alone": conditions(arguments.device)}, (0, 2), arguments.rounds, 1.0)
        for batch_size in arguments.batch_size:
            figures += equal(packing, bench, Case("standard", batch_size), counts)
    slower = dataclasses.replace(packing, images=packing.images // 2)
    figures += mixed(slower, counts, arguments.rounds)
    settings = {"precision": precision, "engine": execution.engine, "seconds": arguments.seconds}
    result = Result("packing", "the other", tuple(figures), settings, device_slug(execution.device))
    deliver(result, arguments)


def equal(packing: Packing, bench: Bench, case: Case, counts: Sequence[int]) -> Iterator[Figure]:
    """So many trials of one recipe at once, against one of them alone and against one tutorial loop."""
    with contextlib.ExitStack() as stack:
        ways = {str(count): packing.rates(stack, [case] * count) for count in counts}
        tutorials = {f"{n} workers": tutorial_epochs(bench, case, packing.images, n) for n in bench.workers}
        samples = alternate({**ways, **tutorials}, bench.rounds)
    best = max(tutorials, key=lambda way: statistics.median(samples[way]))
    for count in counts:
        what, ours = f"{count} at once, {case}", samples[str(count)]
        note = f"against one tutorial loop with all cores and {best}"
        yield Figure(what, UNIT, ours, samples[best], note=note, headline=count == counts[1])
        if count > 1:
            yield Figure(what, UNIT, ours, samples["1"], note="against one alone")


def mixed(packing: Packing, counts: Sequence[int], rounds: int) -> Iterator[Figure]:
    """So many trials of different recipes at once, against the same ones each alone, on average."""
    with contextlib.ExitStack() as stack:
        cases = {count: [MIXED[number % len(MIXED)] for number in range(count)] for count in counts if count > 1}
        ways = {str(count): packing.rates(stack, chosen) for count, chosen in cases.items()}
        alone = {str(case): packing.rates(stack, [case]) for case in {case for row in cases.values() for case in row}}
        samples = alternate({**ways, **alone}, rounds)
    for count, chosen in cases.items():
        each = [samples[str(case)] for case in chosen]
        average = tuple(statistics.fmean(values) for values in zip(*each, strict=True))
        names = "; ".join(dict.fromkeys(map(str, chosen)))
        yield Figure(f"{count} at once, {names}", UNIT, samples[str(count)], average, note="against each alone")


@dataclasses.dataclass(frozen=True)
class Packing:
    """How trials are run side by side."""

    source: Source
    execution: Execution
    precision: str
    seconds: float
    images: int

    def rates(self, stack: contextlib.ExitStack, cases: Sequence[Case]) -> Iterator[float]:
        """Images a second in all of such trials at once, again and again by the same workers."""
        crew = stack.enter_context(Crew(self.execution, len(cases)))
        changes = {"data.train_images": self.images, "epochs": LONGEST}
        recipes = [case.recipe(self.precision, **changes) for case in cases]
        prepared = prepare(recipes[0].data, self.source, self.execution.device)
        while True:
            window = Window(len(recipes), self.seconds)
            jobs = [Timed(recipe, prepared, window) for recipe in recipes]
            waiting = list(jobs)
            crew.run(lambda waiting=waiting: waiting.pop() if waiting else None)  # type: ignore[misc]
            yield sum(job.rate(self.images) for job in jobs)


class Window:
    """The time in which all of several trainings run: it begins with the first epoch of the slowest."""

    def __init__(self, count: int, seconds: float):
        self.start = self.end = math.inf
        self._count = count
        self._seconds = seconds

    def join(self) -> None:
        """A training has had its first epoch."""
        self._count -= 1
        if not self._count:
            self.start = time.perf_counter()
            self.end = self.start + self._seconds


class Timed:
    """A training that notes when its epochs end, until the window closes."""

    def __init__(self, recipe: Recipe, images: Images, window: Window):
        self.recipe = recipe
        self.images = images
        self._window = window
        self._ends: list[float] = []

    def rate(self, images: int) -> float:
        """Images a second while all trainings ran."""
        inside = [end for end in self._ends if end >= self._window.start]
        return (len(inside) - 1) * images / (inside[-1] - inside[0])

    def report(self, report: EpochReport) -> Decision:
        """Note the end of an epoch."""
        self._ends.append(time.perf_counter())
        if len(self._ends) == 1:
            self._window.join()
        enough = sum(end >= self._window.start for end in self._ends) > 1
        return Decision.PRUNE if enough and self._ends[-1] >= self._window.end else Decision.CONTINUE

    def end(self, result: TrialResult, seconds: float) -> None:
        """A training that fails spoils the measurement."""
        if result.state is State.FAILED:
            raise RuntimeError(result.reason)

    def lost(self, reason: str) -> None:
        """So does a worker that dies."""
        raise RuntimeError(reason)


if __name__ == "__main__":
    entrance(main)
