"""What the record in MLflow costs: a search with it against the same search without, and the bytes that it leaves.

Both are the command line as users run it, without finalists, each in a process and a folder of its own, in turns. They
train the same recipes for the same epochs: the sampler is random and nothing is pruned.
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

from benchmarks.measure import Figure, Result, deliver, entrance, options
from benchmarks.ours import images_from
from benchmarks.study import QUICK, watched
from benchmarks.tutorial import torchvision_folder
from fmnist_search.config.study_config import StudyConfig

ENDLESS = 100_000
PRUNING = {
    "data.train_images": 256,
    "data.validation": 256,
    "budget.epochs": 3,
    "pruner": "median",
    "pruner.startup_trials": 2,
    "sampler": "random",
}
PRUNED_TRIALS = 60


def main() -> None:
    """Wall time of a search with its record in MLflow and without, and bytes on disk of a trial."""
    parser = options(main.__doc__)
    parser.add_argument("study", nargs="?", type=Path, default=QUICK, help="study file")
    parser.add_argument("--trials", type=int, default=12, help="trials of each search")
    parser.add_argument("--rounds", type=int, default=2, help="searches of each way, a seed each")
    arguments = parser.parse_args()
    spent: dict[str, list[Spent]] = {"tracked": [], "untracked": []}
    with torchvision_folder(images_from(arguments.data_dir)) as images:
        for number in range(arguments.rounds):
            ways = list(spent) if number % 2 == 0 else list(reversed(spent))
            for way in ways:
                changes = {"budget.trials": arguments.trials, "sampler": "random", "pruner": "none", "seed": number}
                spent[way].append(_spent(arguments.study, changes, images, tracked=way == "tracked"))
        files, rows = _bytes(arguments.study, images)
    job = f"search of {arguments.trials} trials"
    figures = (
        *_compared(f"{job}, wall time", [each.wall for each in spent["tracked"]], [s.wall for s in spent["untracked"]]),
        *_compared(f"{job}, CPU time", [each.cpu for each in spent["tracked"]], [s.cpu for s in spent["untracked"]]),
        Figure("files of a pruned trial", "kB", files, better=""),
        Figure("rows of a trial in both databases", "kB", (rows,), better=""),
    )
    settings = {"study": arguments.study.name, "rounds": arguments.rounds}
    deliver(Result("tracking", "without MLflow", figures, settings), arguments)


class Spent(NamedTuple):
    """Seconds of a search: of the clock, and of all its processes on all cores, which others disturb less."""

    wall: float
    cpu: float


def _compared(what: str, tracked: list[float], untracked: list[float]) -> Iterator[Figure]:
    yield Figure(what, "s", tuple(tracked), tuple(untracked), better="lower")
    shares = tuple(100 * (1 - without / with_it) for with_it, without in zip(tracked, untracked, strict=True))
    yield Figure("share of the record in it", "%", shares, better="")


def _spent(study: Path, changes: dict[str, Any], images: Path, *, tracked: bool) -> Spent:
    with tempfile.TemporaryDirectory() as folder:
        before = _cpu_of_children()
        wall = _search(study, changes, images, Path(folder), *([] if tracked else ["--no-tracking"]))
        return Spent(wall, _cpu_of_children() - before)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    """Empty stores, whose tables are no trial's; made by other processes, which let go of them."""
    for made in (
        f"import mlflow; mlflow.MlflowClient('sqlite:///{mlflow}').search_experiments()",
        f"from fmnist_search.search.storage import open_storage; open_storage('sqlite:///{optuna}')",
    ):
        subprocess.run([sys.executable, "-c", made], check=True, capture_output=True)


def _size(path: Path) -> int:
    """Bytes of a file, its journal with it, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    entrance(main)
