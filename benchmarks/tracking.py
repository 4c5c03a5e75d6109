"""Measure what tracking in MLflow costs: the time of a search with and without it, and the bytes that it writes.

Both searches are run alternately from the command line, without finalists, each in a new folder. They train the same
recipes for the same epochs: the sampler is random and nothing is pruned.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient

from benchmarks.machine import device_slug
from benchmarks.measure import BenchmarkResult, Measurement, make_parser, report_result, run_main
from benchmarks.ours import data_source
from benchmarks.study import QUICK_STUDY, run_and_monitor
from benchmarks.tutorial import torchvision_folder
from fmnist_search.config.study_config import StudyConfig

UNLIMITED_MINUTES = 100_000
PRUNING_CHANGES = {
    "data.train_images": 256,
    "data.validation": 256,
    "budget.epochs": 3,
    "pruner": "median",
    "pruner.startup_trials": 2,
    "sampler": "random",
}
PRUNED_TRIALS = 60


def main() -> None:
    """Measure the wall time of a search with and without MLflow, and the bytes on disk per trial."""
    parser = make_parser(main.__doc__)
    parser.add_argument("study", nargs="?", type=Path, default=QUICK_STUDY, help="study file")
    parser.add_argument("--trials", type=int, default=12, help="trials of each search")
    parser.add_argument("--rounds", type=int, default=2, help="searches with and without MLflow, one seed each")
    arguments = parser.parse_args()
    spent: dict[str, list[SearchTime]] = {"tracked": [], "untracked": []}
    with torchvision_folder(data_source(arguments.data_dir)) as images:
        for number in range(arguments.rounds):
            ways = list(spent) if number % 2 == 0 else list(reversed(spent))
            for way in ways:
                changes = {"budget.trials": arguments.trials, "sampler": "random", "pruner": "none", "seed": number}
                spent[way].append(_measure_search(arguments.study, changes, images, tracked=way == "tracked"))
        files, rows = _measure_bytes(arguments.study, images)
    job = f"search of {arguments.trials} trials"
    figures = (
        *_measurements(
            f"{job}, wall time",
            [each.wall_seconds for each in spent["tracked"]],
            [s.wall_seconds for s in spent["untracked"]],
        ),
        *_measurements(
            f"{job}, CPU time",
            [each.cpu_seconds for each in spent["tracked"]],
            [s.cpu_seconds for s in spent["untracked"]],
        ),
        Measurement("files of a pruned trial", "kB", files, better=""),
        Measurement("rows of a trial in both databases", "kB", (rows,), better=""),
    )
    settings = {"study": arguments.study.name, "rounds": arguments.rounds}
    report_result(BenchmarkResult("tracking", "without MLflow", figures, settings, device_slug("cpu")), arguments)


class SearchTime(NamedTuple):
    """Wall time and CPU time of a search in seconds; other programs disturb the CPU time less."""

    wall_seconds: float
    cpu_seconds: float


def _measurements(name: str, tracked: list[float], untracked: list[float]) -> Iterator[Measurement]:
    yield Measurement(name, "s", tuple(tracked), tuple(untracked), better="lower")
    shares = tuple(100 * (1 - without / with_it) for with_it, without in zip(tracked, untracked, strict=True))
    yield Measurement("share of the record in it", "%", shares, better="")


def _measure_search(study: Path, changes: dict[str, Any], images: Path, *, tracked: bool) -> SearchTime:
    with tempfile.TemporaryDirectory() as folder:
        before = _children_cpu_seconds()
        wall = _run_search(study, changes, images, Path(folder), *([] if tracked else ["--no-tracking"]))
        return SearchTime(wall, _children_cpu_seconds() - before)


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run_search(study: Path, changes: dict[str, Any], images: Path, folder: Path, *options: str) -> float:
    every = {"finalists.recipes": 0, "budget.minutes": UNLIMITED_MINUTES, **changes}
    (folder / "study.toml").write_text(StudyConfig.load(study, every).to_toml())
    command = [sys.executable, "-m", "fmnist_search", "search", "study.toml", "--data-dir", str(images), *options]
    return run_and_monitor(command, folder)[0]


def _measure_bytes(study: Path, images: Path) -> tuple[tuple[float, ...], float]:
    """Return the kB of each pruned trial's files, and of a trial's rows in the databases of MLflow and Optuna."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        databases = [folder / "mlflow.db", folder / "fmnist-search" / "optuna.db"]
        _create_stores(*databases)
        before = sum(map(_disk_bytes, databases))
        _run_search(study, {**PRUNING_CHANGES, "budget.trials": PRUNED_TRIALS}, images, folder)
        rows = (sum(map(_disk_bytes, databases)) - before) / PRUNED_TRIALS
        client = MlflowClient(f"sqlite:///{databases[0]}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, "tags.state = 'pruned'")
        files = tuple(_disk_bytes(Path(run.info.artifact_uri)) / 1000 for run in runs)
        return files, rows / 1000


def _create_stores(mlflow_path: Path, optuna_path: Path) -> None:
    """Create empty stores in other processes, so that their tables do not count for trials."""
    for made in (
        f"import mlflow; mlflow.MlflowClient('sqlite:///{mlflow_path}').search_experiments()",
        f"from fmnist_search.search.storage import open_storage; open_storage('sqlite:///{optuna_path}')",
    ):
        subprocess.run([sys.executable, "-c", made], check=True, capture_output=True)


def _disk_bytes(path: Path) -> int:
    """Return the bytes of a file with its journal, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    run_main(main)
