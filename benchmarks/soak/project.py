"""The project of a soak test: its study, its folder, the servers behind it, and its commands."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from benchmarks.soak.commands import Command, CommandRunner
from benchmarks.soak.servers import MlflowServer, PostgresServer, SmallDisk, make_small_disk
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.workspace import STORAGE_FILE, Workspace, sqlite_uri

STUDY, SECOND_STUDY = "soak", "second"
HEARTBEAT_SECONDS, LEASE_SECONDS = 2.0, 8.0
DISK_MEGABYTES = 384
TRIALS_PER_STAGE = 16

STUDY_FILE = f"""
# What is left of a study whose processes, servers and disk fail?
name = "{{name}}"
question = "What is left of a study whose processes, servers and disk fail?"

[data]
train_images = 2000
validation = 500

[budget]
trials = {TRIALS_PER_STAGE}
epochs = 3
failures = 1000            # each worker that is killed may be one

[start]
recipes = [{{{{ batch_size = 100, "optimizer.learning_rate" = 0.01 }}}}]

[sampler]
name = "tpe"
startup_trials = 10

[pruner]
name = "median"
startup_trials = 5

[space.common]
batch_size = [50, 100]
optimizer.learning_rate = {{{{ low = 1e-3, high = 1e-1, log = true }}}}

[space.cnn]
depth = [1, 2]
width_1 = [4, 8]
width_2 = [8, 16]
kernel_1 = [3, 5]

[finalists]
recipes = 2
seeds = 2
epochs = 2
images = "slice"
refit = "none"
model_name = "{{name}}"

[execution]
precision = "float32"
workers = {{workers}}
threads = 1
checkpoint_seconds = 0.5
heartbeat_seconds = {HEARTBEAT_SECONDS}
lease_seconds = {LEASE_SECONDS}
"""


class Project:
    """A folder with study files, an MLflow server, and SQLite or PostgreSQL as Optuna's storage.

    The folder of the program's files is a small file system of its own, which can be filled, where that is possible.
    """

    def __init__(self, folder: Path, storage: str = "sqlite"):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.workdir = folder / "workdir"
        self.disk: SmallDisk | None = make_small_disk(self.workdir, DISK_MEGABYTES)
        self.workdir.mkdir(exist_ok=True)
        self.mlflow = MlflowServer(folder / "server")
        self.postgresql = PostgresServer(folder / "postgresql") if storage == "postgresql" else None
        storage_url = self.postgresql.url if self.postgresql else sqlite_uri(self.workdir / STORAGE_FILE)
        environment = {"MLFLOW_TRACKING_URI": self.mlflow.url, "FMNIST_SEARCH_HOME": str(self.workdir)}
        if self.postgresql:
            environment["FMNIST_SEARCH_STORAGE"] = storage_url
        self.storage_url = storage_url
        self.commands = CommandRunner(folder, environment)
        for name, workers in ((STUDY, 2), (SECOND_STUDY, 1)):
            (folder / f"{name}.toml").write_text(STUDY_FILE.format(name=name, workers=workers))

    @property
    def workspace(self) -> Workspace:
        """The workspace that the commands use."""
        return Workspace(self.mlflow.url, self.workdir)

    def search(self, trials: int, *, name: str = STUDY, file: str = STUDY) -> Command:
        """Start to search the study, or continue it, until it has this many trials."""
        arguments = ("search", f"{file}.toml", "--name", name, "--trials", str(trials))
        return self.commands.start("search", *arguments)

    def pending_events(self) -> tuple[int, dict[str, int]]:
        """Return the number of events that MLflow has not got, and the number of rejected ones by reason."""
        with contextlib.closing(Outbox(self.workspace.outbox_path, self.mlflow.url)) as outbox:
            return outbox.pending_count(), outbox.rejected_counts()

    def close(self) -> None:
        """Kill what still runs, stop the servers, and give the small file system back."""
        self.commands.kill_all()
        self.mlflow.kill()
        if self.postgresql:
            self.postgresql.close()
        if self.disk:
            self.disk.close()


def small_disks_work() -> bool:
    """Return whether this process may be able to mount a small file system."""
    return hasattr(os, "geteuid") and os.geteuid() == 0
