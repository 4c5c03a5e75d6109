"""Measure which share of a study's time the checkpoints of its trials take."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from pathlib import Path

import optuna

from benchmarks.machine import device_slug
from benchmarks.measure import BenchmarkResult, Measurement, make_parser, report_result, run_main
from benchmarks.ours import data_source, tuned_settings
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.execution.backend import make_backend
from fmnist_search.execution.channel import PoolChannel, channel_pair
from fmnist_search.execution.job import LossCause
from fmnist_search.execution.messages import CheckpointTaken
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.search.preview import preview_recipes
from fmnist_search.training.async_checkpoint import AsyncCheckpointer
from fmnist_search.training.trial_checkpoints import TrialCheckpoints, parse_checkpoint

QUICK_STUDY = Path(__file__).parents[1] / "studies" / "quick.toml"
REPETITIONS = 10
"""Checkpoints that are taken to measure the processor time of one."""


def main() -> None:
    """Measure which share of a study's time the checkpoints of its trials take."""
    parser = make_parser(main.__doc__)
    parser.add_argument("study", nargs="?", type=Path, default=QUICK_STUDY, help="study file")
    parser.add_argument("--trials", type=int, default=6, help="trials, with the first recipes of the study")
    parser.add_argument("--workers", type=int, default=2, help="trials at a time")
    parser.add_argument("--seconds", type=float, help="execution.checkpoint_seconds instead of the study's")
    parser.add_argument("--device", default="auto")
    report_checkpoints(parser.parse_args())


def report_checkpoints(arguments: argparse.Namespace) -> None:
    """Train the trials, measure a checkpoint of each, and print the figures.

    The share is the processor time of all checkpoints (copy, serialise, send, receive, write) divided by the time of
    all workers: that is how much longer a study takes if no core is idle. It is too small to be seen as a difference of
    two durations.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = StudyConfig.load(arguments.study)
    execution, precision = tuned_settings(arguments.device, threads=1)
    images = load_images(config.data, data_source(arguments.data_dir), execution.device)
    interval = config.execution.checkpoint_seconds if arguments.seconds is None else arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        files = TrialCheckpoints(Path(folder))
        recipes = [preview.recipe for preview in preview_recipes(config, precision, arguments.trials)]
        jobs = [CheckpointedJob(recipe, images, interval, files, number) for number, recipe in enumerate(recipes)]
        seconds = train(jobs, execution, arguments.workers)
        costs = [cpu_seconds(job, files) for job in jobs]
    total = sum(cost * job.count for cost, job in zip(costs, jobs, strict=True))
    figures = (
        Measurement("checkpoints of a trial", "", tuple(float(job.count) for job in jobs), better=""),
        Measurement("size of a checkpoint", "MB", tuple(len(job.last) / 1e6 for job in jobs), better=""),
        Measurement("processor time of a checkpoint", "ms", tuple(1e3 * cost for cost in costs), better=""),
        Measurement("median epoch", "s", tuple(statistics.median(job.epoch_seconds) for job in jobs), better=""),
        Measurement("share of the study's time", "%", (100 * total / (seconds * arguments.workers),), better=""),
    )
    settings = {"study": config.name, "trials": arguments.trials, "workers": arguments.workers, "interval": interval}
    report_result(
        BenchmarkResult("checkpoints", "", figures, settings, device=device_slug(execution.device)), arguments
    )


class CheckpointedJob:
    """A training whose checkpoints are written to files, as those of a trial."""

    worker = 0
    worker_name = "0"
    checkpoint = None

    def __init__(self, recipe: Recipe, images: Images, interval: float, files: TrialCheckpoints, number: int):
        self.recipe = recipe
        self.images = images
        self.checkpoint_seconds = interval
        self.number = number
        self.count = 0
        self.last = b""
        self.epoch_seconds: list[float] = []
        self._files = files

    def on_epoch(self, report: EpochReport) -> Decision:
        """Pause after the last epoch but one, so that there is a checkpoint of every trial to measure."""
        self.epoch_seconds.append(report.seconds)
        return Decision.PAUSE if report.epoch >= self.recipe.epochs - 1 else Decision.CONTINUE

    def on_checkpoint(self, content: bytes) -> None:
        """Write the checkpoint."""
        self.count += 1
        self.last = content
        self._files.save(self.number, content)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        """Raise if the training failed: the measurement is then invalid."""
        if result.state is TrialState.FAILED:
            raise RuntimeError(result.reason)

    def on_worker_lost(self, reason: str, cause: LossCause = LossCause.WORKER) -> None:
        """Raise: the measurement is invalid."""
        raise RuntimeError(reason)


def train(jobs: list[CheckpointedJob], execution: Execution, workers: int) -> float:
    """Run the jobs on so many workers, and return the seconds that it took without the start of the workers."""
    waiting = iter(jobs)
    with make_backend(execution, workers) as backend:
        backend.wait_until_ready()
        started = time.perf_counter()
        backend.run(lambda: next(waiting, None))
        return time.perf_counter() - started


def cpu_seconds(job: CheckpointedJob, files: TrialCheckpoints) -> float:
    """Return the processor time of one checkpoint of a trial, from the copy of its state to the file."""
    checkpoint = parse_checkpoint(job.last)
    pool, worker = channel_pair()
    checkpointer = AsyncCheckpointer(lambda content: worker.send(CheckpointTaken(content)))
    receiver = threading.Thread(target=_write_all, args=(pool, files, job.number))
    receiver.start()
    started = time.process_time()
    with checkpointer.training():
        for _ in range(REPETITIONS):
            checkpointer.take(checkpoint, 0.0)
    worker.close()
    receiver.join()
    return (time.process_time() - started) / REPETITIONS


def _write_all(pool: PoolChannel, files: TrialCheckpoints, number: int) -> None:
    """Write what arrives until the other end is closed."""
    with contextlib.suppress(EOFError):
        while isinstance(message := pool.receive(), CheckpointTaken):
            files.save(number, message.content)


if __name__ == "__main__":
    run_main(main)
