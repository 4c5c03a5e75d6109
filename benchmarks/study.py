"""Compare a whole search from the command line with a typical search script, `benchmarks.usual`.

Both have the same space, images, epochs and validation images, and the same number of trials or the same time. They are
run alternately, each in a new folder. Ours runs without finalists. The time in which nothing trained is computed from
the MLflow store that each leaves. With `--against`, the same study with another sampler takes the place of the script.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.machine import device_slug
from benchmarks.measure import (
    OTHER_SEARCH,
    BenchmarkResult,
    Measurement,
    make_parser,
    parse_changes,
    report_result,
    run_main,
)
from benchmarks.ours import data_source
from benchmarks.tutorial import torchvision_folder
from fmnist_search.config.study_config import StudyConfig

ROOT = Path(__file__).parents[1]
QUICK_STUDY = ROOT / "studies" / "quick.toml"
UNLIMITED_TRIALS, UNLIMITED_EPOCHS, UNLIMITED_MINUTES = 10_000, 1_000_000, 100_000
DEFAULT_TRIALS = 5
"""Trials by default: both searches, twice each, take about six minutes on two cores."""
MEMORY_POLL_SECONDS = 0.25
"""Seconds between two measurements of a process's memory."""

Interval = tuple[float, float]


class SearchRun(NamedTuple):
    """A finished search: start, wall time in seconds, peak memory in bytes, and the content of its store."""

    start_time: float
    seconds: float
    peak_memory: int
    trials: int
    epoch_intervals: tuple[Interval, ...]
    best_accuracy: float

    @property
    def seconds_to_first_epoch(self) -> float:
        """Seconds until the first epoch started."""
        return min(start for start, _ in self.epoch_intervals) - self.start_time

    @property
    def idle_share(self) -> float:
        """The share of the wall time in which no epoch ran."""
        return 1 - covered_seconds(self.epoch_intervals) / self.seconds


def main() -> None:
    """Compare wall time, memory and accuracy of a search with those of the typical script."""
    arguments = _parse_arguments()
    device = device_slug("cuda" if torch.cuda.is_available() else "cpu")
    other = arguments.against or "usual"
    jobs: dict[str, list[SearchRun]] = {"ours": [], other: []}
    with torchvision_folder(data_source(arguments.data_dir)) as images:
        for number in range(arguments.rounds):
            ways = ("ours", other) if number % 2 == 0 else (other, "ours")
            for way in ("ours",) if arguments.alone else ways:
                overrides = {**_config_overrides(arguments), "seed": number}
                if way == arguments.against:
                    overrides["sampler"] = arguments.against
                config = StudyConfig.load(arguments.study, overrides)
                jobs[way].append(_run_search(way, config, images, arguments))
    settings = {
        "study": arguments.study.name,
        "images": config.data.training_count,
        "epochs": config.budget.epochs,
        other: "search" if arguments.against else f"script, {arguments.workers} workers",
        "rounds": arguments.rounds,
    }
    result = BenchmarkResult(
        "study",
        OTHER_SEARCH if arguments.against else "usual script",
        tuple(_measurements(jobs["ours"], jobs[other], arguments.seconds or None)),
        settings,
        device,
        subject=_subject(arguments),
    )
    report_result(result, arguments)


def _subject(arguments: argparse.Namespace) -> str:
    """Return what tells this comparison from others: ours alone, the other sampler, and an end by time."""
    other = "alone" if arguments.alone else arguments.against
    return "-".join(filter(None, (other, "seconds" if arguments.seconds else "")))


def _parse_arguments() -> argparse.Namespace:
    parser = make_parser(main.__doc__)
    parser.add_argument(
        "study", nargs="?", type=Path, default=QUICK_STUDY, help="study file with the space that both search"
    )
    parser.add_argument("--full", action="store_true", help="as many trials as the study has")
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument("--trials", type=int, help="trials of each search")
    ends.add_argument("--seconds", type=float, help="time of each search, instead of a number of trials")
    parser.add_argument("--epochs", type=int, help="epochs of a full trial; by default the study's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a key of the study, for both"
    )
    parser.add_argument("--rounds", type=int, default=2, help="searches of each kind, one seed each")
    parser.add_argument("--workers", type=int, default=0, help="num_workers of the usual script's DataLoader")
    parser.add_argument("--engine", default="plain", choices=("plain", "graph"), help="engine of our trials")
    parser.add_argument(
        "--against",
        default="",
        metavar="SAMPLER",
        help="compare with this sampler, and its pruner, not with the script",
    )
    parser.add_argument("--alone", action="store_true", help="only our search, without the script")
    arguments = parser.parse_args()
    if not arguments.trials and not arguments.seconds:
        arguments.trials = StudyConfig.load(arguments.study).budget.trials if arguments.full else DEFAULT_TRIALS
    return arguments


def _config_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the changes of the study: its budget, no finalists, and those of `--set`."""
    minutes = arguments.seconds / 60 if arguments.seconds else UNLIMITED_MINUTES
    changes = {"finalists.recipes": 0, "budget.trials": arguments.trials or UNLIMITED_TRIALS, "budget.minutes": minutes}
    if StudyConfig.load(arguments.study).budget.total_epochs:
        changes["budget.total_epochs"] = UNLIMITED_EPOCHS
    changes |= {"budget.epochs": arguments.epochs} if arguments.epochs else {}
    return changes | parse_changes(arguments.set)


def _run_search(implementation: str, config: StudyConfig, images: Path, arguments: argparse.Namespace) -> SearchRun:
    """Run one search in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.toml").write_text(config.to_toml())
        if implementation != "usual":
            command = ["fmnist_search", "search", "study.toml", "--data-dir", str(images)]
            command += ["--engine", arguments.engine]
        else:
            end = ("--seconds", arguments.seconds) if arguments.seconds else ("--trials", arguments.trials)
            command = ["benchmarks.usual", "study.toml", "--images", str(images), "--workers", str(arguments.workers)]
            command += map(str, end)
        began = time.time()
        seconds, peak = run_and_monitor([sys.executable, "-m", *command], folder)
        return SearchRun(began, seconds, peak, *_read_store(f"sqlite:///{folder / 'mlflow.db'}"))


def _read_store(tracking_uri: str) -> tuple[int, tuple[Interval, ...], float]:
    """Return the number of trials, the intervals of their epochs, and the best value of a completed trial."""
    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs: list[Run] = client.search_runs(experiments, max_results=50_000)
    trials = [run for run in runs if "time/epoch_seconds" in run.data.metrics]
    marks = [mark for run in trials for mark in client.get_metric_history(run.info.run_id, "time/epoch_seconds")]
    epochs = tuple((mark.timestamp / 1000 - mark.value, mark.timestamp / 1000) for mark in marks)
    completed = [run for run in trials if run.info.status == "FINISHED"]
    best = max((run.data.metrics["val/accuracy"] for run in completed), default=0.0)
    return len(trials), epochs, best


def covered_seconds(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of intervals, in seconds."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _measurements(ours: list[SearchRun], baseline: list[SearchRun], seconds: float | None) -> Iterator[Measurement]:
    """Yield the figures of searches of so many seconds, or if it is None, of a number of trials."""
    same_time = seconds is not None
    job = f"search of {seconds:g} seconds" if same_time else f"search of {ours[0].trials} trials"

    def figure(
        what: str, unit: str, value: Callable[[SearchRun], float], better: str, headline: bool = False
    ) -> Measurement:
        samples, others = tuple(map(value, ours)), tuple(map(value, baseline))
        return Measurement(f"{job}, {what}", unit, samples, others, better, headline=headline and bool(baseline))

    yield figure("wall time", "s", lambda job: job.seconds, "" if same_time else "lower", not same_time)
    yield figure("trials an hour", "", lambda job: 3600 * job.trials / job.seconds, "higher", same_time)
    yield figure("epochs an hour", "", lambda job: 3600 * len(job.epoch_intervals) / job.seconds, "higher")
    yield figure("seconds to the first epoch", "s", lambda job: job.seconds_to_first_epoch, "lower")
    yield figure("wall time in which nothing trained", "%", lambda job: 100 * job.idle_share, "lower")
    yield figure("peak memory", "MB", lambda job: job.peak_memory / 1e6, "lower", True)
    yield figure("best validation accuracy", "%", lambda job: 100 * job.best_accuracy, "", True)


# ------------------------------------------------------------------------------------- the process


def run_and_monitor(command: list[str], folder: Path) -> tuple[float, int]:
    """Run a command in a folder; return its seconds, and the peak memory of all its processes in bytes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "FMNIST_"))}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    peak = 0
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**kept, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                peak = max(peak, _session_memory(process.pid))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(MEMORY_POLL_SECONDS)
            seconds = time.perf_counter() - started
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{errors.read()}")
    return seconds, peak


def _session_memory(session_id: int) -> int:
    """Return the bytes of memory of all processes of a session; shared pages count once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
            if session == session_id:
                total += _proportional_set_size(folder)
    return total


def _proportional_set_size(process: Path) -> int:
    lines = (process / "smaps_rollup").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    run_main(main)
