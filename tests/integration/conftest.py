"""Fixtures of the integration tests: commands as users run them, and a small real study."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fmnist_search.cli.app import CommandSettings, main
from fmnist_search.workspace import image_cache_folder
from tests.golden.project import move_addresses
from tests.support.command_server import CommandServer, ForkedCommand

if TYPE_CHECKING:
    from mlflow import MlflowClient

TINY_STUDY = """
# Does a search run from end to end?
name = "tiny"
question = "Does a search run from end to end?"

[data]
train_images = 500
validation = 500

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
workers = 1                # one worker keeps the tests small; test_concurrent_trials.py uses more
threads = 1                # as many as torch may use in a test process
"""


@dataclass(frozen=True)
class CommandResult:
    """The exit code and the output of a command."""

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
    """Return the environment of a user who has set no variable of MLflow or of this program."""
    others = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "FMNIST_"))}
    return {**others, **changes}


def link_image_cache(folder: Path) -> Path:
    """Return the folder as a new XDG_CACHE_HOME that has the images, and in which no plugins are remembered."""
    (folder / "fmnist-search").mkdir(parents=True)
    (folder / "fmnist-search/images").symlink_to(image_cache_folder())
    return folder


OWN_PROCESSES = "TEST_COMMANDS_IN_PROCESSES"
"""Environment variable, set by `make test-processes`: `run_command` starts processes, which draw all figures."""

_command_shares_this_process = False
"""Whether the running test has the mark `in_process`."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note the mark before the fixtures of the test, which run commands too."""
    global _command_shares_this_process
    _command_shares_this_process = item.get_closest_marker("in_process") is not None


def _starts_processes() -> bool:
    return bool(os.environ.get(OWN_PROCESSES)) and not _command_shares_this_process


def _result(process: ForkedCommand) -> CommandResult:
    output = process.communicate(timeout=600)
    return CommandResult(process.wait(), *output)


def run_command(folder: Path, *arguments: object, plots: bool = False, **changes: str) -> CommandResult:
    """Run a command in a folder, within this process: imports in a new one would take longer than most commands.

    Figures take half the time of a tiny study, so they are rendered only with `plots`.
    """
    if _starts_processes():
        return _result(fork_command(folder, *arguments, **changes))
    before, here = dict(os.environ), Path.cwd()
    stdout, stderr = io.StringIO(), io.StringIO()
    os.environ.clear()
    os.environ.update(clean_environment(**changes))
    os.chdir(folder)
    code: object = 0
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main([*map(str, arguments)], CommandSettings(plots=plots))
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
    assert isinstance(code, int)
    return CommandResult(code, stdout.getvalue(), stderr.getvalue())


def run_interrupted_command(folder: Path, *arguments: object, until: Callable[[], bool]) -> CommandResult:
    """Run a command as `run_command` does, and send it SIGINT, as Ctrl-C does, once the condition is true."""
    if _starts_processes():
        process = fork_command(folder, *arguments)
        while not until() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        return _result(process)
    ended = threading.Event()

    def watch() -> None:
        while not until():
            if ended.wait(0.02):
                return
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # else pytest would be interrupted
            os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return run_command(folder, *arguments)
    finally:
        ended.set()
        watcher.join()


def start_command(folder: Path, *arguments: object, **changes: str) -> subprocess.Popen[str]:
    """Start `python -m fmnist_search` as a process that a test can watch and signal."""
    return start_python(folder, "-m", "fmnist_search", *map(str, arguments), **changes)


def fork_command(folder: Path, *arguments: object, **changes: str) -> ForkedCommand:
    """Start a command as `start_command` does, but in a process that does not import the libraries again."""
    return _command_server().start(folder, [*map(str, arguments)], clean_environment(**changes))


@functools.cache
def _command_server() -> CommandServer:
    server = CommandServer()
    atexit.register(server.close)
    return server


def start_python(folder: Path, *arguments: str, **changes: str) -> subprocess.Popen[str]:
    """Start Python as a process that a test can watch and signal."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean_environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


COMMANDS_SCRIPT = """
import json, sys
from fmnist_search.cli.app import CommandSettings, main

plots, *commands = map(json.loads, sys.argv[1:])
for words in commands:
    try:
        main(words, CommandSettings(plots=plots))
    except SystemExit as ended:
        if ended.code:
            raise
"""


def python_arguments(*commands: Sequence[object], plots: bool = False) -> list[str]:
    """Return the arguments with which Python runs commands one after the other, until one fails.

    A process for each of them would import all libraries again.
    """
    return ["-c", COMMANDS_SCRIPT, json.dumps(plots), *(json.dumps([*map(str, words)]) for words in commands)]


@pytest.fixture
def command(tmp_path: Path) -> RunCommand:
    """A function that runs a command in the temporary folder of the test."""

    def in_folder(*arguments: object, **changes: str) -> CommandResult:
        return run_command(tmp_path, *arguments, **changes)

    return in_folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The file of a study that runs in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_STUDY)
    return path


@dataclass(frozen=True)
class FinishedStudy:
    """A folder in which the tiny study has run to its end, with the result of the command."""

    folder: Path
    result: CommandResult

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def run(self, *arguments: object, plots: bool = False, **changes: str) -> CommandResult:
        return run_command(self.folder, *arguments, plots=plots, **changes)


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """The tiny study, run once by the command line. Tests take a copy of it."""
    return run_tiny_study(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(tiny_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A copy of the finished tiny study for each module, which its tests may change."""
    return copy_study(tiny_study, tmp_path_factory.mktemp("finished"))


def read_artifact(client: MlflowClient, run_id: str, path: str) -> str:
    """Return the text of an artifact; MLflow's `load_text` would read from the store of this process."""
    return Path(client.download_artifacts(run_id, path)).read_text()


def copy_study(study: FinishedStudy, folder: Path) -> FinishedStudy:
    """Copy the folder of a study, and let the stores in it refer to the copy."""
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    # MLflow remembers in a process where the artifacts of a run are, by its id, which the runs of the copy have too.
    _artifact_repos_cache.clear()
    shutil.copytree(study.folder, folder, dirs_exist_ok=True)
    move_addresses(folder, str(study.folder), str(folder))
    return FinishedStudy(folder, study.result)


def run_tiny_study(folder: Path, *, plots: bool = False) -> FinishedStudy:
    """Run the tiny study in a folder to its end."""
    (folder / "tiny.toml").write_text(TINY_STUDY)
    outcome = run_command(folder, "search", "tiny.toml", plots=plots)
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)
