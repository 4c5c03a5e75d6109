"""Studies of real trainings on a Ray cluster, each of which loses a node to SIGKILL while another one joins."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from benchmarks.cluster.ray_nodes import LocalCluster, local_cluster
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import EpochReport
from fmnist_search.search.storage import open_storage
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workspace import Workspace

EPOCHS = 3
NODES = 3
RUN_SECONDS = 300
STUDY_TABLES: dict[str, Any] = {
    "name": "losses",
    "data": {"train_images": 4096, "validation": 2048},
    "budget": {"epochs": EPOCHS},
    "pruner": "none",
    "space": {
        "common": {"batch_size": [64, 128], "optimizer": {"learning_rate": {"low": 1e-3, "high": 3e-2, "log": True}}},
        "cnn": {"depth": [1, 2], "width_1": [8, 16], "width_2": [16]},
    },
    "finalists": {"recipes": 0},
    "execution": {"backend": "ray", "device": "cpu", "precision": "float32", "checkpoint_seconds": 0},
}


@dataclass(frozen=True)
class NodeLoss:
    """What a study is like in whose course a node was killed.

    `repeated_epochs` are those that were reported before the node was lost and trained again, at most, of one trial.
    """

    seed: int
    trials: int
    budget: int
    running_in_optuna: int
    running_in_mlflow: int
    points: int
    points_missing_or_twice: int
    lost_trials: int
    repeated_epochs: int
    exit_code: int
    seconds: float

    @property
    def problems(self) -> list[str]:
        """What must not be so."""
        checks = {
            f"{self.trials} trials instead of {self.budget}": self.trials != self.budget,
            f"{self.running_in_optuna} trials run in Optuna": bool(self.running_in_optuna),
            f"{self.running_in_mlflow} runs are open in MLflow": bool(self.running_in_mlflow),
            f"{self.points_missing_or_twice} points are missing or there twice": bool(self.points_missing_or_twice),
            f"{self.repeated_epochs} epochs of a trial were trained again": self.repeated_epochs > 1,
            f"the search ended with exit code {self.exit_code}": bool(self.exit_code),
        }
        return [text for text, is_so in checks.items() if is_so]


def lose_nodes(seed: int, runs: int, trials: int, folder: Path) -> list[NodeLoss]:
    """Run studies with these numbers of trials on a cluster, one after the other, and return what became of each."""
    with local_cluster(NODES) as cluster:
        return [lose_a_node(cluster, number, trials, folder / f"run-{number}") for number in range(seed, seed + runs)]


def lose_a_node(cluster: LocalCluster, seed: int, trials: int, folder: Path) -> NodeLoss:
    """Run a study; after a number of epochs that follows from the seed a node is killed, and another one joins."""
    rng = random.Random(seed)
    kill_after = rng.randint(2, max(3, trials * EPOCHS // 2))
    started, seen = time.monotonic(), 0
    epochs: Counter[tuple[str, int]] = Counter()
    with _search(cluster.address, seed, trials, folder) as search:
        for name, epoch in _reported_epochs(search):
            epochs[name, epoch] += 1
            seen += 1
            if seen == kill_after:
                cluster.kill_node(rng.randrange(len(cluster.nodes)))
                cluster.add_node()
        exit_code = search.wait()
    return _examine(seed, trials, folder, epochs, exit_code, time.monotonic() - started)


def _search(address: str, seed: int, trials: int, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.cluster.node_losses", address, str(seed), str(trials), str(folder)]
    errors = (folder / "search.log").open("w")
    with errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)


def _reported_epochs(search: subprocess.Popen[str]) -> Iterator[tuple[str, int]]:
    """Yield name and epoch of each report that the driver handles; end the search if it takes too long."""
    assert search.stdout is not None
    deadline = time.monotonic() + RUN_SECONDS
    for line in search.stdout:
        with suppress(ValueError):
            name, epoch = json.loads(line)
            yield name, epoch
        if time.monotonic() > deadline:
            search.kill()


def _examine(
    seed: int, budget: int, folder: Path, epochs: Counter[tuple[str, int]], exit_code: int, seconds: float
) -> NodeLoss:
    study = optuna.load_study(study_name="losses", storage=open_storage(_workspace(folder).storage_url))
    reported = {(trial.number, epoch) for trial in study.trials for epoch in trial.intermediate_values}
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        points = database.execute(
            "SELECT tags.value, metrics.step FROM metrics "
            "JOIN tags ON tags.run_uuid = metrics.run_uuid AND tags.key = ? WHERE metrics.key = ?",
            (tag_names.TRIAL, metric_names.VAL_ACCURACY),
        ).fetchall()
        (open_runs,) = database.execute("SELECT COUNT(*) FROM runs WHERE status = 'RUNNING'").fetchone()
    recorded = Counter((int(number), int(step)) for number, step in points)
    repeated: Counter[str] = Counter()
    for (name, _), count in epochs.items():
        repeated[name] += count - 1
    return NodeLoss(
        seed=seed,
        trials=sum(trial.state.is_finished() for trial in study.trials),
        budget=budget,
        running_in_optuna=sum(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in study.trials),
        running_in_mlflow=int(open_runs),
        points=len(points),
        points_missing_or_twice=len(reported ^ recorded.keys()) + sum(count - 1 for count in recorded.values()),
        lost_trials=(folder / "search.log").read_text().count("it goes on from its last checkpoint"),
        repeated_epochs=max(repeated.values(), default=0),
        exit_code=exit_code,
        seconds=round(seconds, 1),
    )


# --------------------------------------------------------------------------------- the search, a process of its own


def _workspace(folder: Path) -> Workspace:
    return Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}", folder / "files")


class _Reports(StudyCallback):
    """Prints the name and the epoch of each report to the output, and messages to the errors."""

    def on_epoch_end(self, name: str, report: EpochReport) -> None:
        print(json.dumps([name, report.epoch]), flush=True)

    def on_training_start(self, name: str, recipe: Recipe) -> None:
        print(f"{name} starts", file=sys.stderr, flush=True)

    def on_message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def search(arguments: Iterable[str]) -> None:
    """Run the study on the cluster at an address."""
    address, seed, trials, folder = arguments
    tables = {
        **STUDY_TABLES,
        "seed": int(seed),
        "budget": {**STUDY_TABLES["budget"], "trials": int(trials)},
        "execution": {**STUDY_TABLES["execution"], "ray": {"address": address, "allow_no_token": True}},
    }
    tracking = TrackingOptions(plot_interval=None)
    config = StudyConfig.from_dict(tables)
    run_study(config, workspace=_workspace(Path(folder)), tracking=tracking, callback=_Reports())


if __name__ == "__main__":
    search(sys.argv[1:])
