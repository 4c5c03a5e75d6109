"""What the integration tests share: the command line as users run it, and a small real study."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.store.db.utils as mlflow_db
import pytest
from matplotlib.figure import Figure
from sqlalchemy import Engine

from fmnist_search.cli import main
from fmnist_search.tracking.renderers import RENDERERS
from fmnist_search.training.autotune import autotune
from fmnist_search.workflows import ensemble, registration, single_training
from fmnist_search.workflows.study import promotion, run_logging, session

TINY_STUDY = """
# Does a search run from end to end?
name = "tiny"
question = "Does a search run from end to end?"

[data]
train_images = 1000
validation = 2000

[budget]
trials = 4
epochs = 2

[pruner]
startup_trials = 8

[sampler]
name = "tpe"
startup_trials = 2

[space.common]
batch_size = [50, 100]
optimizer.learning_rate = { low = 3e-3, high = 3e-2, log = true }

[space.cnn]
depth = [1, 2]
width_1 = [4, 8]
width_2 = [8]
kernel_1 = [3, 5]

[finalists]
recipes = 1
seeds = 2
epochs = 2
images = "slice"
refit = "none"

[execution]
precision = "float32"
workers = 1                # each test has processes enough; test_workers.py is about more
"""


@dataclass(frozen=True)
class CommandResult:
    """What a command left: its exit code and the two streams."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]


RunCommand = Callable[..., CommandResult]


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment of a user who has set nothing of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "FMNIST_"))}
    return {**kept, **changes}


def run_command(folder: Path, *arguments: object, **changes: str) -> CommandResult:
    """The command line in a folder, within this process: its own imports would take longer than most commands."""
    before, here = dict(os.environ), Path.cwd()
    stdout, stderr = io.StringIO(), io.StringIO()
    os.environ.clear()
    os.environ.update(clean_environment(**changes))
    os.chdir(folder)
    code: object = 0
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main([*map(str, arguments)])
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
    assert isinstance(code, int)
    return CommandResult(code, stdout.getvalue(), stderr.getvalue())


def start_command(folder: Path, *arguments: object, **changes: str) -> subprocess.Popen[str]:
    """`python -m fmnist_search` as a process of its own, to be watched and signalled."""
    return start_python(folder, "-m", "fmnist_search", *map(str, arguments), **changes)


def start_python(folder: Path, *arguments: str, **changes: str) -> subprocess.Popen[str]:
    """Python as a process of its own, to be watched and signalled."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean_environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session", autouse=True)
def tuned_once() -> Iterator[None]:
    """What is fastest here is found out once, and not by each of a hundred small studies: the answer is the same."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (session, single_training):
            patch.setattr(module, "autotune", functools.cache(autotune))
        yield


@pytest.fixture(scope="session", autouse=True)
def tables_made_once() -> Iterator[None]:
    """MLflow takes over a second to make its tables: a new store of these processes begins as a copy of the first."""
    make, guard = mlflow_db._initialize_tables, threading.Lock()
    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as first:

        def copy(engine: Engine) -> None:
            if engine.dialect.name != "sqlite":
                make(engine)
                return
            with guard, contextlib.closing(engine.raw_connection()) as connection:
                ours = connection.driver_connection
                assert isinstance(ours, sqlite3.Connection)
                if not first.execute("SELECT * FROM sqlite_master").fetchone():
                    make(engine)
                    ours.backup(first)
                else:
                    first.backup(ours)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlflow_db, "_initialize_tables", copy)
            yield


RENDERER_NAMES = {
    run_logging: ("study_figures", "study_page"),
    promotion: ("log_training_plots",),
    registration: ("log_evaluation_plots",),
    single_training: ("log_training_plots",),
    ensemble: ("log_evaluation_plots",),
}
ORIGINAL_RENDERERS = [
    (module, name, getattr(module, name)) for module, names in RENDERER_NAMES.items() for name in names
]
CONFUSION_RENDERER = RENDERERS["confusion"]


@pytest.fixture(scope="session", autouse=True)
def undrawn() -> Iterator[None]:
    """Half the time of a tiny study goes into its pictures; they are drawn where a module looks at them (`drawn`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_logging, "study_figures", lambda *_: {})
        patch.setattr(run_logging, "study_page", lambda *_: "")
        for module, names in RENDERER_NAMES.items():
            for name in names if module is not run_logging else ():
                patch.setattr(module, name, lambda *_: None)
        patch.setitem(RENDERERS, "confusion", lambda _: Figure(figsize=(1, 1)))
        yield


@pytest.fixture(scope="module")
def drawn(undrawn: None) -> Iterator[None]:
    """Studies of this module have their pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, draw in ORIGINAL_RENDERERS:
            patch.setattr(module, name, draw)
        patch.setitem(RENDERERS, "confusion", CONFUSION_RENDERER)
        yield


@pytest.fixture
def command(tmp_path: Path) -> RunCommand:
    """The command line in a folder of the test's own."""

    def in_folder(*arguments: object, **changes: str) -> CommandResult:
        return run_command(tmp_path, *arguments, **changes)

    return in_folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A study file that runs in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_STUDY)
    return path


@dataclass(frozen=True)
class FinishedStudy:
    """A folder in which the tiny study has run to its end."""

    folder: Path
    result: CommandResult

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def run(self, *arguments: object, **changes: str) -> CommandResult:
        return run_command(self.folder, *arguments, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """The tiny study, run once for a module by the command line."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TINY_STUDY)
    outcome = run_command(folder, "search", "tiny.toml")
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)
