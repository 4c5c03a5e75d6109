"""Make the golden copies: a small project folder, and what every command with --json prints about it.

The copies in this folder were made with commit b246c5e, the last one before the modules became packages. The script
touches nothing of the package but its command line, `python -m fmnist_search` in a process of its own, and takes
whatever `fmnist_search` is importable, so that they can be made again from an older checkout:

    git worktree add ../old b246c5e
    python -m tests.golden.make ../old

The argument is the checkout that the commands run from. The contents of pictures and of the interactive page are left
out of the archive, also where they wait in the outbox: no command reads them, and they are most of its size.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.golden.project import (
    ARCHIVE,
    FOLDER,
    MADE_WITH,
    NEW,
    OUTPUTS,
    Output,
    machine,
    move_addresses,
    normalised,
    unpack,
    write_output,
)

GOLDEN = """
# Two families, a trial that diverges, one that is answered from an equal one, and a champion.
name = "golden"
question = "Which small network learns best from a thousand images?"

[data]
train_images = 1000
validation = 1000

[budget]
trials = 8
epochs = 3

[sampler]
name = "tpe"
startup_trials = 3

[pruner]
name = "halving"
min_epochs = 1
startup_trials = 2

[start]
outside = "try"

[[start.recipes]]            # it diverges
model = { family = "mlp", depth = 1, width = 8 }
optimizer = { name = "sgd", learning_rate = 100.0 }
batch_size = 50

[[start.recipes]]
model = { family = "cnn", depth = 2, width_1 = 8, width_2 = 8, kernel_1 = 3 }
optimizer.learning_rate = 0.02
batch_size = 50

[[start.recipes]]            # the same once more, in another order
batch_size = 50
optimizer.learning_rate = 0.02
model = { family = "cnn", depth = 2, width_1 = 8, width_2 = 8, kernel_1 = 3 }

[space.common]
family = ["cnn", "mlp"]
batch_size = [50, 100]
optimizer.learning_rate = { low = 1e-3, high = 3e-2, log = true }

[space.cnn]
depth = [1, 2]
width_1 = [4, 8]
width_2 = [8]
kernel_1 = [3, 5]

[space.mlp]
depth = 1
width = [8, 16]

[finalists]
recipes = 1
seeds = 2
epochs = 2
images = "slice"
refit = "none"

[execution]
device = "cpu"
threads = 1
workers = 1
precision = "float32"
"""
RATES = """
# Enough completed trials for importances.
name = "rates"
question = "Which rate learns anything in one epoch?"

[data]
train_images = 500
validation = 500

[budget]
trials = 10
epochs = 1

[sampler]
name = "grid"

[pruner]
name = "none"

[space.common]
family = "mlp"
batch_size = 50
optimizer.learning_rate = [1e-6, 1e-4, 1e-3, 3e-3, 1e-2]

[space.mlp]
depth = 1
width = [4, 8]

[finalists]
recipes = 0

[execution]
device = "cpu"
threads = 1
workers = 1
precision = "float32"
"""
BROKEN = RATES.replace("depth = 1", "dpeth = 1").replace('"rates"', '"broken"')
RECIPE = """
epochs = 2
batch_size = 50
seed = 5
[model]
family = "cnn"
depth = 2
width_1 = 4
width_2 = 8
[optimizer]
learning_rate = 0.01
[data]
train_images = 1000
validation = 1000
"""
UNSENT = """
name = "unsent"

[data]
train_images = 6000
validation = 1000

[budget]
trials = 6
epochs = 3

[pruner]
name = "none"

[space.common]
family = "mlp"
batch_size = 50
optimizer.learning_rate = { low = 1e-3, high = 3e-2, log = true }

[space.mlp]
depth = 1
width = 8

[finalists]
recipes = 0

[execution]
device = "cpu"
threads = 1
workers = 1
precision = "float32"
"""
CONDITIONS = ("--device", "cpu", "--threads", "1")
PICTURES = (".png", ".html")
TEXTS = ("", ".csv", ".json", ".md", ".toml", ".txt", ".yaml")


class Program:
    """The command line of a checkout, in processes of its own."""

    def __init__(self, checkout: Path):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "FMNIST_"))}
        own = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TZ": "UTC", "LOGNAME": "golden"}
        self.environment = {**kept, **own}

    def start(self, folder: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a folder."""
        print("$", *arguments, flush=True)
        command = [sys.executable, "-m", "fmnist_search", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, folder: Path, *arguments: str, code: int = 0) -> str:
        """Run a command in a folder; return what it printed."""
        stdout, stderr = (process := self.start(folder, *arguments)).communicate()
        assert process.returncode == code, (arguments, process.returncode, stdout, stderr)
        return stdout

    def json(self, folder: Path, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json in a folder; return what it printed."""
        return json.loads(self.run(folder, *arguments, "--json", code=code))


# ------------------------------------------------------------------------------------------ the folder


def make_project(program: Program, folder: Path) -> dict[str, str]:
    """Run two studies and single trainings in a folder; return the ids of runs that commands are to name."""
    folder.mkdir()
    for name, text in (("golden", GOLDEN), ("rates", RATES), ("broken", BROKEN), ("recipe", RECIPE)):
        (folder / f"{name}.toml").write_text(text)
    program.run(folder, "search", "rates.toml")
    studied = program.json(folder, "search", "golden.toml")
    states = {trial["state"] for trial in studied["trials"]}
    assert states == {"completed", "pruned", "failed"}, states
    assert any(trial["duplicate_of"] is not None for trial in studied["trials"])
    trained = program.json(folder, "train", "recipe.toml", *CONDITIONS)["run_id"]
    seeds = program.json(folder, "train", "recipe.toml", "--seeds", "2", *CONDITIONS, "--workers", "1")
    first, second = (run["run_id"] for run in seeds["runs"])
    program.run(folder, "ensemble", first, second, "--register")
    return {"trained": trained, "first": first, "second": second}


def make_unsent(program: Program, folder: Path) -> None:
    """Run a study whose store is locked by somebody else after its first trial, and interrupt it."""
    folder.mkdir()
    (folder / "unsent.toml").write_text(UNSENT)
    process = program.start(folder, "search", "unsent.toml")
    _wait_for_trials(folder, 1)
    with closing(sqlite3.connect(folder / "mlflow.db", timeout=60, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        _wait_for_trials(folder, 3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130, (process.returncode, stderr)
    with closing(sqlite3.connect(folder / "fmnist-search" / "outbox.db")) as database:
        (count,) = database.execute("SELECT COUNT(*) FROM events").fetchone()
    assert count > 10, (count, stderr)


def _wait_for_trials(folder: Path, count: int) -> None:
    """Wait until so many trials have ended."""
    path, deadline = folder / "fmnist-search" / "optuna.db", time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                query = "SELECT COUNT(*) FROM trials WHERE state NOT IN ('RUNNING', 'WAITING')"
                if database.execute(query).fetchone()[0] >= count:
                    return
        except sqlite3.OperationalError:  # it is not there yet
            pass
        time.sleep(0.02)
    raise TimeoutError(f"{path}: {count} trials have not ended")


def pack(folder: Path, checkout: Path) -> None:
    """Write the folder to the archive, without the paths of this machine and the name of its system."""
    places = {
        str(folder): FOLDER,
        str(checkout): f"{FOLDER}/checkout",
        sysconfig.get_path("purelib"): f"{FOLDER}/site-packages",
        platform.platform(): platform.system(),
    }
    move_addresses(folder, str(folder), FOLDER)
    for path in sorted(folder.rglob("*")):
        if path.suffix in PICTURES:
            path.write_bytes(b"")
        elif path.name == "outbox.db":
            _drop_pictures(path)
        elif path.suffix == ".lock":
            path.unlink()
        elif path.is_file() and path.suffix in TEXTS:
            path.write_text(_neutral(path.read_text(), places))
        elif path.suffix == ".pt2":
            _rewrite_program(path, places)
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name, filter=_anonymous)


def _neutral(text: str, places: Mapping[str, str]) -> str:
    for before, now in places.items():
        text = text.replace(before, now)
    return text


def _rewrite_program(path: Path, places: Mapping[str, str]) -> None:
    """Replace the paths in the stack traces that torch.export stores beside each operation."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in members.items():
            is_text = name.endswith("models/model.json")
            new.writestr(name, _neutral(content.decode(), places).encode() if is_text else content)


def _drop_pictures(outbox: Path) -> None:
    with closing(sqlite3.connect(outbox, isolation_level=None)) as database:
        for suffix in PICTURES:
            database.execute(f"UPDATE events SET content = x'' WHERE JSON_EXTRACT(body, '$.path') LIKE '%{suffix}'")
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member without its owner; an hour old at least, as `gc` asks."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 1_577_836_800  # 2020-01-01
    return member


# ----------------------------------------------------------------------------------------- the outputs


def outputs(program: Program, project: Path, ids: Mapping[str, str]) -> dict[str, Output]:
    """Return every command that has --json, for this folder; what it prints is not filled in yet."""
    trials = program.json(project, "leaderboard", "golden", "--top", "100")
    best, other = (str(trial["number"]) for trial in trials[:2])
    trained, first = ids["trained"], ids["first"]
    return {**_reading(best, other, trained, first), **_changing(best, trained), **_training(trained)}


def _reading(best: str, other: str, trained: str, first: str) -> dict[str, Output]:
    return {
        "status": Output(("status",)),
        "status-rates": Output(("status", "rates")),
        "status-unsent": Output(("status",), "unsent"),
        "leaderboard": Output(("leaderboard", "--top", "3")),
        "leaderboard-rates": Output(("leaderboard", "rates")),
        "show": Output(("show",)),
        **{f"show-{number}": Output(("show", str(number))) for number in range(9)},
        "importance": Output(("importance", "rates")),
        "space": Output(("space", "golden.toml")),
        "space-set": Output(("space", "golden.toml", "--set", "model.family=cnn", "--sampler", "gp")),
        "studies-list": Output(("studies", "list", ".")),
        "studies-check": Output(("studies", "check", "golden.toml", "broken.toml"), code=2),
        "search-dry-run": Output(("search", "golden.toml", "--dry-run"), volatile=("seconds",), trained=True),
        "models": Output(("models",)),
        "models-show": Output(("models", "show", "lenet", "--set", "model.width_1=8")),
        "compare": Output(("compare", best, other)),
        "compare-runs": Output(("compare", trained, first, "--all")),
        "evaluate": Output(("evaluate",)),
        "evaluate-two": Output(("evaluate", "models:/fmnist-search/1", "models:/fmnist-search/2")),
        "predict": Output(("predict", "--test-images", "0:20", "--top", "3")),
        "predict-ensemble": Output(("predict", "--test-images", "0:5", "--model", "models:/fmnist-search/2")),
        "reproduce": Output(("reproduce", trained, "--no-record"), volatile=("reason", "environment"), trained=True),
        "gc": Output(("gc", "--keep", "1")),
        "data": Output(("data",)),
        "doctor": Output(("doctor",)),
        "train-dry-run": Output(("train", "recipe.toml", "--epochs", "3", "--dry-run")),
    }


def _changing(best: str, trained: str) -> dict[str, Output]:
    return {
        "evaluate-again": Output(("evaluate", "--again"), changes=True),
        "sync": Output(("sync",), "unsent", changes=True),
        "gc-delete": Output(("gc", "--keep", "1", "--delete", "--yes"), changes=True),
        "ensemble": Output(("ensemble", best, trained), volatile=("run_id",), changes=True),
        "export": Output(("export", "--onnx", "model.onnx"), volatile=("bytes", "largest_difference"), changes=True),
    }


def _training(trained: str) -> dict[str, Output]:
    once = ("recipe.toml", "--epochs", "1", "--device", "cpu", "--threads", "1")
    commands = {
        "train": ("train", *once),
        "train-resume": ("train", "--resume", trained, "--epochs", "4"),
        "train-seeds": ("train", *once, "--seeds", "2", "--workers", "1"),
        "sweep-lr": ("sweep-lr", *once, "--factors", "1,2", "--seeds", "1", "--workers", "1"),
        "promote": ("promote", "golden", "--seeds", "1", "--epochs", "1"),
        "search-continued": ("search", "golden.toml", "--trials", "10"),
    }
    return {name: Output(given, volatile=NEW, trained=True, changes=True) for name, given in commands.items()}


def make_outputs(program: Program, named: Mapping[str, Output], below: Path) -> None:
    """Run every command in a folder that is unpacked for it, and write what it prints."""
    for path in OUTPUTS.glob("*.json"):
        path.unlink()
    for name, output in named.items():
        folder = unpack(below / name)
        printed = program.json(folder / output.folder, *output.arguments, code=output.code)
        found = normalised(printed, folder, output.volatile)
        write_output(name, dataclasses.replace(output, printed=found))
        shutil.rmtree(folder)


def main(arguments: Sequence[str]) -> None:
    """Make everything anew with the code of a checkout."""
    checkout = Path(arguments[0]).resolve()
    program = Program(checkout)
    OUTPUTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (Path(temporary) / "folder").resolve()
        folder.mkdir()
        ids = make_project(program, folder / "project")
        make_unsent(program, folder / "unsent")
        named = outputs(program, folder / "project", ids)
        pack(folder, checkout)
        commit = subprocess.run(
            ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        made_with = {"commit": commit.stdout.strip(), "machine": machine(), "runs": ids}
        MADE_WITH.write_text(json.dumps(made_with, indent=1) + "\n")
        make_outputs(program, named, Path(temporary) / "unpacked")
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size:,} bytes; {len(named)} outputs")


if __name__ == "__main__":
    main(sys.argv[1:])
