"""A backend whose workers follow recorded learning curves on a simulated clock, without threads and without training.

It calls the methods of jobs as a pool of workers does, and measures the CPU time that they take in this thread. That is
the work of the driver: the search, the storage and the outbox.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

import torch

from benchmarks.curves.recorded import RecordedRecipes
from benchmarks.curves.table import CurveTable
from fmnist_search.execution.job import Job
from fmnist_search.execution.pool import Result
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState

CURVE_NOISE = 0.002
"""Standard deviation that is added to each recorded accuracy: two trials with one curve get different values."""
CLASSES = 10
END_STATES = {
    Decision.PRUNE: TrialState.PRUNED,
    Decision.PAUSE: TrialState.PAUSED,
    Decision.INTERRUPT: TrialState.INTERRUPTED,
}


class CurveSource:
    """Gives each recipe the recorded curve of the nearest recipe, with noise that follows from the recipe's seed."""

    def __init__(self, table: CurveTable):
        self._recorded = RecordedRecipes(table, "seconds")
        self._all = set(range(len(self._recorded.curves)))

    def reports(self, recipe: Recipe) -> list[EpochReport]:
        """Return the report of each epoch of a training with this recipe."""
        number = self._recorded.nearest_recipe(recipe.to_flat_dict(), self._all)
        noise = random.Random(recipe.seed)
        accuracies = [value + noise.gauss(0.0, CURVE_NOISE) for value in self._recorded.curves[number]]
        return [
            EpochReport(epoch, 1.0 - value, value, 1.0 - value, value, recipe.optimizer.learning_rate, seconds)
            for epoch, (value, seconds) in enumerate(
                zip(accuracies, self._recorded.seconds[number], strict=True), start=1
            )
        ]


class CallKind(Enum):
    """What a backend calls in the driver's thread."""

    ASK = "ask"
    REPORT = "report"
    END = "end"


@dataclass(frozen=True)
class Call:
    """One call: CPU seconds of the driver's thread, the time by the clock at its end, and the epoch of a report.

    `found` is false if a free worker asked for a job and there was none.
    """

    kind: CallKind
    cpu_seconds: float
    ended_at: float
    epoch: int = 0
    found: bool = True


class DriverMeter:
    """The calls of a simulation, in their order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._cpu = 0.0

    def start(self) -> None:
        """Begin to measure a call."""
        self._cpu = time.thread_time()

    def stop(self, kind: CallKind, epoch: int = 0, *, found: bool = True) -> None:
        """End the measurement of a call."""
        self.calls.append(Call(kind, time.thread_time() - self._cpu, time.perf_counter(), epoch, found))


@dataclass
class _Training:
    """A simulated training: its job and the reports that are still to come."""

    job: Job
    reports: list[EpochReport]
    started: float
    done: int = 0


class SimulatedBackend:
    """Runs jobs on simulated workers.

    A simulation with the same jobs and the same curves is the same: events at one time are in the order of their
    workers.
    """

    def __init__(self, execution: Execution, size: int, curves: CurveSource, meter: DriverMeter):
        self._execution = execution
        self._size = size
        self._curves = curves
        self._meter = meter
        self._weights = {"weight": torch.zeros(1000)}
        self._is_stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def execution(self) -> Execution:
        """How jobs are run."""
        return self._execution

    @property
    def size(self) -> int:
        """How many jobs run at a time."""
        return self._size

    def configure(self, execution: Execution) -> None:
        """Take the execution of the study."""
        self._execution = execution

    @property
    def images_device(self) -> str:
        """The device of the images, of which simulated workers need none."""
        return "cpu"

    def run_on_worker(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return what a function returns on this machine."""
        return function(*arguments)

    def wait_until_ready(self) -> None:
        """Return at once."""

    def stop(self) -> None:
        """End all trainings."""
        self._is_stopped = True

    def run(self, next_job: Callable[[], Job | None]) -> None:
        """Run jobs until `next_job` returns None and all have ended."""
        events: list[tuple[float, int]] = []
        running: dict[int, _Training] = {}
        free, now = list(range(self._size)), 0.0
        while not self._is_stopped:
            while free and (job := self._next_job(next_job)) is not None:
                worker = heapq.heappop(free)
                job.worker, job.worker_name = worker, str(worker)
                running[worker] = _Training(job, self._curves.reports(job.recipe), now)
                heapq.heappush(events, (now + running[worker].reports[0].seconds, worker))
            if not events:
                return
            now, worker = heapq.heappop(events)
            training = running[worker]
            decision = self._report(training)
            if decision is Decision.CONTINUE and training.done < training.job.recipe.epochs:
                heapq.heappush(events, (now + training.reports[training.done].seconds, worker))
                continue
            del running[worker]
            heapq.heappush(free, worker)
            self._end(training, END_STATES.get(decision, TrialState.COMPLETED), now - training.started)

    def _next_job(self, next_job: Callable[[], Job | None]) -> Job | None:
        self._meter.start()
        job = next_job()
        self._meter.stop(CallKind.ASK, found=job is not None)
        return job

    def _report(self, training: _Training) -> Decision:
        report = training.reports[training.done]
        training.done += 1
        self._meter.start()
        decision = training.job.on_epoch(report)
        self._meter.stop(CallKind.REPORT, report.epoch)
        return decision

    def _end(self, training: _Training, state: TrialState, seconds: float) -> None:
        result = self._result(training, state)
        self._meter.start()
        training.job.on_result(result, seconds)
        self._meter.stop(CallKind.END)

    def _result(self, training: _Training, state: TrialState) -> TrialResult:
        reports = tuple(training.reports[: training.done])
        best = max(reports, key=lambda report: report.val_accuracy or 0.0).epoch
        confusion = tuple(tuple(100 * (row == column) for column in range(CLASSES)) for row in range(CLASSES))
        trained = sum(report.seconds for report in reports)
        return TrialResult(state, reports, trained, 10_000, best, confusion, weights=self._weights)
