"""The public names of the package, and the help of its commands, which imports no large library."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import Any

import pytest
import typer

import fmnist_search
from fmnist_search.cli import app

PUBLIC_NAMES = [
    *("Decision", "EpochReport", "Progress", "Recipe", "StudyConfig", "Workspace"),
    *("load_model", "run_study", "train"),
]
HEAVY_PACKAGES = ["torch", "torchvision", "mlflow", "optuna", "matplotlib", "numpy"]


def run_python(code: str, *arguments: str) -> str:
    """Return what a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -------------------------------------------------------------------------------------- the names


def test_public_names() -> None:
    assert fmnist_search.__all__ == PUBLIC_NAMES
    assert set(PUBLIC_NAMES) <= set(dir(fmnist_search))
    namespace: dict[str, Any] = {}
    exec("from fmnist_search import *", namespace)
    assert sorted(name for name in namespace if not name.startswith("__")) == sorted(PUBLIC_NAMES)


def test_public_names_are_the_functions_of_their_modules() -> None:
    from fmnist_search.workflows.single_training import train
    from fmnist_search.workflows.study.api import run_study
    from fmnist_search.workflows.trained_models import load_model

    # Twice: a module of the same name would take its place after the first import.
    for _ in range(2):
        assert fmnist_search.load_model is load_model
        assert fmnist_search.run_study is run_study
        assert fmnist_search.train is train


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_names_have_docstrings(name: str) -> None:
    value = getattr(fmnist_search, name)
    assert inspect.isclass(value) is name[0].isupper()
    assert inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fmnist_search' has no attribute 'serach'"):
        _ = fmnist_search.serach


# Torch and MLflow are loaded once, the modules of this package anew for every order.
IMPORT_ORDER_SCRIPT = """
import json, sys
for order in json.loads(sys.argv[1]):
    for module in [name for name in sys.modules if name.partition(".")[0] == "fmnist_search"]:
        del sys.modules[module]
    import fmnist_search
    for name in order * 2:
        exec(f"from fmnist_search import {name}")
        value = getattr(fmnist_search, name)
        print(value.__name__, type(value).__name__)
"""


@pytest.mark.slow
def test_public_names_are_importable_in_any_order() -> None:
    # Each name is the first once; the others follow in the order of the list or backwards.
    orders = [PUBLIC_NAMES[first:] + PUBLIC_NAMES[:first] for first in range(len(PUBLIC_NAMES))]
    orders[1::2] = [[first, *others[::-1]] for first, *others in orders[1::2]]
    kinds = dict.fromkeys(("EpochReport", "Progress", "Recipe", "Workspace"), "type")
    kinds |= {"Decision": "EnumType", "StudyConfig": "ModelMetaclass"}
    expected = [f"{name} {kinds.get(name, 'function')}" for order in orders for name in order * 2]
    assert run_python(IMPORT_ORDER_SCRIPT, json.dumps(orders)).splitlines() == expected


def test_the_version_needs_no_large_library() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); import fmnist_search as p; print(p.__version__)"
    )
    assert run_python(code, *HEAVY_PACKAGES).strip() == fmnist_search.__version__


# --------------------------------------------------------------------------------------- the help

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

# None in sys.modules makes an import fail.
HELP_SCRIPT = """
import contextlib, io, json, runpy, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
shown = {}
for command in json.loads(sys.argv[2]):
    sys.argv = ["fmnist-search", *command, "--help"]
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        try:
            runpy.run_module("fmnist_search", run_name="__main__")
        except SystemExit as ended:
            code = ended.code
    shown[" ".join(command)] = (code, stream.getvalue())
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int | None, str]]:
    """Return exit code and text of every --help in a process that can import no large library."""
    commands = [[], *([name] for name in COMMANDS)]
    parsed: dict[str, tuple[int | None, str]] = json.loads(
        run_python(HELP_SCRIPT, json.dumps(HEAVY_PACKAGES), json.dumps(commands))
    )
    return parsed


def test_help_needs_no_large_library(helps: dict[str, tuple[int | None, str]]) -> None:
    assert {code for code, _ in helps.values()} <= {0, None}
    assert len(helps) == len(COMMANDS) + 1
    overview = helps[""][1]
    for name in COMMANDS:
        assert f"\n  {name} " in overview
        assert f"fmnist-search {name} " in helps[name][1]


def test_the_program_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fmnist_search", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "fmnist-search studies copy quick" in done.stdout
    # The help shows one name, however the program was started.
    assert done.stdout.startswith("Usage: fmnist-search [OPTIONS] COMMAND")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_every_option_has_a_help_text(name: str, helps: dict[str, tuple[int | None, str]]) -> None:
    command = COMMANDS[name]
    assert command.help
    first = command.help.splitlines()[0]
    assert first.endswith((".", ":"))
    assert first in " ".join(helps[name][1].split())
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"{name}: {parameter.name}"
