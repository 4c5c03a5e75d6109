"""Every parameter of every command with hostile texts: one line a mistake, a documented exit code, within seconds.

The commands and their parameters come from the application itself, so a new command is covered without a change here.
Nothing is trained: commands that train get a folder without images.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmnist_search.cli.app import CommandSettings, main
from fmnist_search.cli.output import ExitCode
from tests.golden.project import unpack
from tests.integration.conftest import clean_environment
from tests.support.commands import leaf_commands

EXIT_CODES = set(ExitCode) - {ExitCode.UNEXPECTED_ERROR}
CPU_SECONDS, SECONDS = 10, 120
"""The limit of a command, and the time after which it counts as hanging on a machine that is busy with other things."""

VALID = {
    "study": "golden.toml",
    "file": "golden.toml",
    "files": "golden.toml",
    "runs": "0",
    "run": "0",
    "recipes": "lenet",
    "name": "lenet",
    "names": "quick",
    "folder": "new",
    "output": "new.png",
    "new": "renamed",
}
"""A valid value for each parameter that some command requires."""

BASE_OPTIONS = {"data_dir": "no-images", "dry_run": True, "recipe": "lenet", "onnx": "new.onnx", "test_images": "0:3"}
"""Values of parameters that keep a command from training, or bring it to where it uses its other parameters."""

WITHOUT_DRY_RUN = {"tracking_uri", "workdir", "data_dir", "tensorboard", "output", "no_tracking", "device", "workers"}
"""Parameters that a dry run does not use."""

NAMES = [
    "batch_size", "seed", "name", "question", "experiment", "budget.trials", "budget.epochs", "space.cnn.depth",
    "space.common.family", "start.recipes", "model.family", "model.depth", "optimizer.learning_rate", "data.dataset",
    "data.train_images", "sampler", "pruner.min_epochs", "finalists.seeds", "execution.device", "execution.workers",
    "schema_version",
]  # fmt: skip

NUMBERS = ["-1", "0", "1", "1.5", "²", "٣", "1e3", "1e-320", "nan", "inf", "0x10", "1_000", "9" * 25, "9" * 5_000]
WORDS = ["true", "None", "auto", "best", "champion", "cpu", "meta", "cuda:99", "tpe", "none", "lenet", "mnist"]
SYNTAX = [
    "{}",
    "[]",
    "a = 1",
    "[" * 1_000,
    "*.toml",
    "a\nb",
    "a\x1b[31mb",
    "\udcff",
    "$(id)",
    "'",
    ":",
    "1,nan",
    "1,1",
    "f" * 32,
]
PATHS = [
    ".", "..", "~", "golden.toml", "golden.toml/x", "/proc/nothing/x.png", "/dev/null/x", "nowhere/none.png",
    "x" * 300, "fmnist-search", "mlflow.db", "mlruns/", "preset:nothing", "study:nothing", "0:100000000000", "0:1",
]  # fmt: skip
ADDRESSES = [
    "models:/", "models:/x@y", "models:/fmnist-search/99999999999999999999", "models:/fmnist-search@champion",
    "runs:/x", "http://127.0.0.1:1", "http://[", "http://", "https://x:y", "sqlite://", "sqlite:///",
    "sqlite:///golden.toml", "file:///x", "nothing://x", "databricks",
]  # fmt: skip
TEXTS = [*NUMBERS, *WORDS, *SYNTAX, *PATHS, *ADDRESSES]


def safe_texts() -> st.SearchStrategy[str]:
    """Return a strategy of texts that name no place outside the folder of the test, in which commands may write."""
    characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    random = st.text(characters, max_size=20).filter(lambda text: not text.startswith("/") and ".." not in text)
    numbers = st.one_of(st.integers().map(str), st.floats().map(str))
    return st.one_of(st.sampled_from(TEXTS), random, numbers)


class Parameter(NamedTuple):
    """A parameter of a command, by the words of the command and its name."""

    command: str
    name: str


COMMANDS = leaf_commands()
PARAMETERS = [Parameter(name, option.name) for name, command in COMMANDS.items() for option in command.params]


def command_line(parameter: Parameter, text: str) -> list[str]:
    """Return the words of a command with this text for one parameter, and valid values for those that it requires."""
    arguments: list[str] = []
    options: list[str] = []
    for option in COMMANDS[parameter.command].params:
        value: Any = BASE_OPTIONS.get(option.name)
        if option.name == "dry_run" and parameter.name in WITHOUT_DRY_RUN:
            value = None
        if option.required:
            value = VALID[option.name]
        if option.name == parameter.name:
            value = text
        if option.param_type_name == "argument":
            arguments += [] if value is None else [value]
        elif value is True or (getattr(option, "is_flag", False) and value is not None):
            options.append(option.opts[0] if value is True else f"{option.opts[0]}={value}")
        elif value is not None:
            options += [option.opts[0], value]
    return [*parameter.command.split(), *options, "--", *arguments]


class Outcome(NamedTuple):
    """What a command did."""

    code: object
    stdout: str
    stderr: str
    cpu_seconds: float


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with studies, runs and a registered model, in which all libraries have been imported once."""
    folder = unpack(tmp_path_factory.mktemp("hostile")) / "project"
    (folder / "no-images").mkdir()
    run(folder, ["predict", "--test-image", "0"])
    run(folder, ["train", "lenet", "--data-dir", "no-images"])
    run(folder, ["search", "golden.toml", "--data-dir", "no-images"])
    return folder


def run(folder: Path, words: list[str]) -> Outcome:
    """Run a command in a folder within this process; a command that hangs is interrupted by an exception."""

    def interrupt(*_: object) -> None:
        raise TimeoutError(f"after {SECONDS} seconds")

    before, here = dict(os.environ), Path.cwd()
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    handler = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    os.environ.clear()
    os.environ.update(clean_environment(XDG_DATA_HOME=str(folder / "home")))
    os.chdir(folder)
    started, code = time.process_time(), None
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main(words, CommandSettings(plots=False, run_server=lambda *_: 0, serve=lambda _: None))
    except SystemExit as ended:
        code = ended.code
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
    seconds = time.process_time() - started
    out, err = (stream.buffer.getvalue().decode() for stream in (stdout, stderr))  # type: ignore[attr-defined]
    return Outcome(code, out, err, seconds)


def check(project: Path, parameter: Parameter, text: str) -> None:
    words = command_line(parameter, text)
    outcome = run(project, words)
    allowed = EXIT_CODES | ({ExitCode.UNEXPECTED_ERROR} if parameter.command == "doctor" else set())
    assert outcome.code in allowed, (words, outcome)
    assert "unexpected" not in outcome.stderr, (words, outcome)
    assert "Traceback" not in outcome.stderr, (words, outcome)
    lines = outcome.stderr.split("\n")[:-1]
    errors = [line for line in lines if line.startswith("error: ")]
    if outcome.code == ExitCode.USAGE_ERROR:
        assert errors, (words, outcome)
        assert lines[-len(errors) :] == errors, (words, outcome)
        assert outcome.stdout == "" or parameter.command in ("studies check", "studies list", "gc"), (words, outcome)
    assert outcome.cpu_seconds < CPU_SECONDS, (words, outcome)


FOUND = [
    ("doctor", "tracking_uri", "http://["),
    ("evaluate", "model", ""),
    ("models recipes", "folder", "/proc/nothing/x"),
    ("predict", "model", "http://127.0.0.1:1"),
    ("predict", "test_images", "0:100000000000"),
    ("search", "device", "meta"),
    ("search", "minutes", "1e-320"),
    ("search", "settings", f"batch_size={'9' * 5_000}"),
    ("search", "settings", f"batch_size={'[' * 1_000}"),
    ("search", "settings", "seed=9223372036854775808"),
    ("search", "threads", "9999"),
    ("search", "trials", "99999999999999999999999"),
    ("search", "workers", "²"),
    ("train", "epochs", "0"),
    ("train", "resume", ""),
    ("train", "seeds", "99999999999999999999999"),
]
"""Texts that once ended in an unexpected error, were ignored, or kept a command from ending."""


@pytest.mark.parametrize(("command", "name", "text"), FOUND, ids=lambda value: value[:30])
def test_a_text_that_once_went_wrong_is_one_line(project: Path, command: str, name: str, text: str) -> None:
    check(project, Parameter(command, name), text)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parameter=st.sampled_from(PARAMETERS), text=safe_texts(), set_name=st.sampled_from(NAMES))
def test_hostile_texts_are_refused_in_one_line(project: Path, parameter: Parameter, text: str, set_name: str) -> None:
    check(project, parameter, f"{set_name}={text}" if parameter.name == "settings" else text)


@pytest.mark.slow
@pytest.mark.parametrize("parameter", PARAMETERS, ids=" ".join)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=safe_texts(), set_name=st.sampled_from(NAMES))
def test_many_hostile_texts_are_refused_in_one_line(
    project: Path, parameter: Parameter, text: str, set_name: str
) -> None:
    check(project, parameter, f"{set_name}={text}" if parameter.name == "settings" else text)
