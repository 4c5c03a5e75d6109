"""What a turn of the conversation between driver and worker costs, by backend: small trainings, one at a time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cluster.ray_nodes import local_cluster
from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.execution.backend import Backend
from fmnist_search.execution.job import LossCause
from fmnist_search.execution.process_backend import ProcessBackend
from fmnist_search.execution.ray_backend import RayBackend
from fmnist_search.execution.ray_settings import RayResources, RaySettings
from fmnist_search.execution.thread_backend import ThreadBackend
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult
from fmnist_search.workspace import image_cache_folder

SMALL_RECIPE = {
    "data.train_images": 512,
    "data.validation": 512,
    "batch_size": 256,
    "model.depth": 1,
    "model.width_1": 4,
    "precision": "float32",
}
WARM_UP_TRIALS = 3


@dataclass(eq=False)
class TimedJob:
    """A training that measures what its driver waits for besides training and validation.

    `turn_seconds` has the time from the answer to a report until the next report, without the seconds of its epoch;
    `overhead_seconds` is the time from when the worker was free until the result, without those of all epochs.
    """

    recipe: Recipe
    images: Images
    worker: int = 0
    worker_name: str = ""
    checkpoint: Mapping[str, Any] | None = None
    checkpoint_seconds: float | None = None
    turn_seconds: list[float] = field(default_factory=list)
    overhead_seconds: float = 0.0
    _answered_at: float | None = None

    def on_epoch(self, report: EpochReport) -> Decision:
        """Measure the turn, and let the training continue."""
        if self._answered_at is not None:
            self.turn_seconds.append(time.perf_counter() - self._answered_at - report.seconds)
        self._answered_at = time.perf_counter()
        return Decision.CONTINUE

    def on_checkpoint(self, content: bytes) -> None:
        """Do nothing: the job takes no checkpoints."""

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Measure the trial."""
        self.overhead_seconds = seconds - sum(report.seconds for report in result.epochs)

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        """Raise an error: no worker may be lost here."""
        raise RuntimeError(f"a worker was lost: {reason}")


@dataclass(frozen=True)
class TurnCosts:
    """Milliseconds of a turn and of a trial besides its training: median, and the range of the middle half."""

    turn_ms: tuple[float, float, float]
    trial_ms: tuple[float, float, float]
    turns: int
    trials: int


def measure_turns(make: Callable[[], Backend], trials: int, epochs: int) -> TurnCosts:
    """Return the costs of trainings that a backend with one worker runs one after the other."""
    recipe = Recipe().replace({**SMALL_RECIPE, "epochs": epochs})
    images = load_images(recipe.data, DataSource(image_cache_folder()))
    jobs = [TimedJob(recipe.replace({"seed": seed}), images) for seed in range(WARM_UP_TRIALS + trials)]
    queue = iter(jobs)
    with make() as backend:
        backend.wait_until_ready()
        backend.run(lambda: next(queue, None))
    measured = jobs[WARM_UP_TRIALS:]
    turns = [seconds for job in measured for seconds in job.turn_seconds]
    return TurnCosts(
        _quartiles(turns), _quartiles([job.overhead_seconds for job in measured]), len(turns), len(measured)
    )


def measure_backends(trials: int, epochs: int) -> dict[str, Any]:
    """Return the costs with a thread, a process and an actor of Ray, each on this machine.

    Processes and Ray are measured alternately, twice each, so that a change of the machine's load affects both.
    """
    execution = Execution(threads=1)
    backends: dict[str, Callable[[], Backend]] = {
        "thread": lambda: ThreadBackend(execution, 1),
        "process": lambda: ProcessBackend(execution, 1),
    }
    with local_cluster(1) as cluster:
        settings = RaySettings(cluster.address, RayResources(memory=0), allow_no_token=True)
        backends["ray"] = lambda: RayBackend(execution, 1, settings)
        order = ["thread", "process", "ray", "ray", "process"]
        measured = [(name, measure_turns(backends[name], trials, epochs)) for name in order]
    return {
        **{f"{name}, {number}": dataclasses.asdict(costs) for number, (name, costs) in enumerate(measured, start=1)},
        "Ray against processes": {
            f"{name}, {second + 1}": difference(measured[first][1], measured[second][1])
            for name, first, second in (("first", 2, 1), ("second", 3, 4))
        },
    }


def _quartiles(seconds: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return round(1000 * middle, 2), round(1000 * low, 2), round(1000 * high, 2)


def difference(ours: TurnCosts, other: TurnCosts) -> dict[str, float]:
    """Return how many milliseconds more the first takes, in the median."""
    names = [each.name for each in dataclasses.fields(TurnCosts) if each.name.endswith("_ms")]
    return {name: round(getattr(ours, name)[0] - getattr(other, name)[0], 2) for name in names}
