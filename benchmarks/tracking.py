"""What the record in MLflow costs: a search with it against the same search without, and the bytes that it leaves.

Both are the command line as users run it, without finalists, each in a process and a folder of its own, in turns. They
train the same recipes for the same epochs: the sampler is random and nothing is pruned.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from benchmarks.measure import Figure, Result, deliver, entrance, options
from benchmarks.ours import images_from
from benchmarks.study import QUICK, watched
from benchmarks.tutorial import torchvision_folder
from fmnist_search.config import StudyConfig
from fmnist_search.search.storage import open_storage

ENDLESS = 100_000
PRUNING = {
    "data.train_images": 1_000,
    "data.validation": 1_000,
    "budget.epochs": 3,
    "pruner": "median",
    "pruner.startup_trials": 2,
    "sampler": "random",
}
PRUNED_TRIALS = 12


def main() -> None:
    """Wall time of a search with its record in MLflow and without, and bytes on disk of a trial."""
    parser = options(main.__doc__)
    parser.add_argument("study", nargs="?", type=Path, default=QUICK, help="study file")
    parser.add_argument("--trials", type=int, default=6, help="trials of each search")
    parser.add_argument("--rounds", type=int, default=3, help="searches of each way, a seed each")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"tracked": [], "untracked": []}
    with torchvision_folder(images_from(arguments.data_dir)) as images:
        for number in range(arguments.rounds):
            ways = list(seconds) if number % 2 == 0 else list(reversed(seconds))
            for way in ways:
                changes = {"budget.trials": arguments.trials, "sampler": "random", "pruner": "none", "seed": number}
                seconds[way].append(_seconds(arguments.study, changes, images, tracked=way == "tracked"))
        files, rows = _bytes(arguments.study, images)
    tracked, untracked = (tuple(seconds[way]) for way in ("tracked", "untracked"))
    shares = tuple(100 * (1 - without / with_it) for with_it, without in zip(tracked, untracked, strict=True))
    figures = (
        Figure(f"search of {arguments.trials} trials, wall time", "s", tracked, untracked, better="lower"),
        Figure("share of the record in it", "%", shares, better=""),
        Figure("files of a pruned trial", "kB", files, better=""),
        Figure("rows of a trial in both databases", "kB", (rows,), better=""),
    )
    settings = {"study": arguments.study.name, "rounds": arguments.rounds}
    deliver(Result("tracking", "without MLflow", figures, settings), arguments)


def _seconds(study: Path, changes: dict[str, Any], images: Path, *, tracked: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return _search(study, changes, images, Path(folder), *([] if tracked else ["--no-tracking"]))


def _search(study: Path, changes: dict[str, Any], images: Path, folder: Path, *options: str) -> float:
    every = {"finalists.recipes": 0, "budget.minutes": ENDLESS, **changes}
    (folder / "study.toml").write_text(StudyConfig.load(study, every).to_toml())
    command = [sys.executable, "-m", "fmnist_search", "search", "study.toml", "--data-dir", str(images), *options]
    return watched(command, folder)[0]


def _bytes(study: Path, images: Path) -> tuple[tuple[float, ...], float]:
    """Kilobytes of the files of each pruned trial, and of a trial's rows in MLflow's and Optuna's databases."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        databases = [folder / "mlflow.db", folder / "fmnist-search" / "optuna.db"]
        _prepare(*databases)
        before = sum(map(_size, databases))
        _search(study, {**PRUNING, "budget.trials": PRUNED_TRIALS}, images, folder)
        rows = (sum(map(_size, databases)) - before) / PRUNED_TRIALS
        client = MlflowClient(f"sqlite:///{databases[0]}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, "tags.state = 'pruned'")
        files = tuple(_size(Path(run.info.artifact_uri)) / 1000 for run in runs)
        return files, rows / 1000


def _prepare(mlflow: Path, optuna: Path) -> None:
    """Empty stores, whose tables are no trial's."""
    subprocess.run(
        [sys.executable, "-c", f"import mlflow; mlflow.MlflowClient('sqlite:///{mlflow}').search_experiments()"],
        check=True,
        capture_output=True,
    )
    open_storage(f"sqlite:///{optuna}")


def _size(path: Path) -> int:
    """Bytes of a file, its journal with it, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    entrance(main)
