"""How long a command takes from the shell's prompt back to it, and how deep the package's imports go.

Each command is a process of its own, started by the command line alone, so that any checkout can be measured. Each
takes turns with its yardstick: a short script that imports and loads what the command needs and does nothing else.
Several checkouts take turns as well. They share one store, which the first of them makes by a small search.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.import_graph import circles, long_modules, longest_chain, module_files, module_graph, package_graph
from benchmarks.machine import device_slug
from benchmarks.measure import BenchmarkResult, Measurement, interleave, make_parser, run_main, save_result

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "studies"
QUICK = STUDIES / "quick.toml"
PACKAGE = "fmnist_search"
MODULE_LINES = 350
"""A module of more lines counts as long."""

STUDY = """
name = "latency"
question = "How long do commands take?"
[data]
train_images = 300
validation = 300
[budget]
trials = 10
epochs = 1
[sampler]
name = "random"
[space.common]
batch_size = [50, 100]
optimizer.learning_rate = { low = 3e-3, high = 3e-2, log = true }
[space.cnn]
depth = [1, 2]
width_1 = [4, 8]
width_2 = [8]
[finalists]
recipes = 1
seeds = 2
epochs = 1
images = "slice"
refit = "none"
[execution]
workers = 1
"""
"""The search behind the store: as many trials as `importance` needs, and a champion for `predict`."""

LOAD_STUDY = """
import optuna
optuna.load_study(study_name="latency", storage="sqlite:///fmnist-search/optuna.db").trials
"""
IMPORT_LIBRARIES = "import pydantic, typer, rich"
USE_LIBRARIES = """
from pydantic import BaseModel
from rich.console import Console
from typer import Typer
class Model(BaseModel): number: int
Model(number=1), Console(), Typer()
"""
"""`import pydantic` alone loads nearly nothing; this also loads what its models are made of."""
LOAD_MODEL = """
import torch
import mlflow.pyfunc
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.pyfunc.load_model("models:/fmnist-search@champion")
"""
END_AT_ONCE = """
import os
os._exit(0)
"""
"""Python takes more than a second to unload torch and MLflow, which a command need not wait for."""
SHORT_SEARCH = ("--trials", "2", "--set", "budget.epochs=1", "--set", "finalists.recipes=0")


class Command(NamedTuple):
    """What is timed: the arguments after `python -m fmnist_search`, run in a folder with the store or in one without.

    In the arguments {study} stands for the study file.
    """

    what: str
    arguments: str
    in_store: bool = True


class Comparison(NamedTuple):
    """Commands and their yardsticks: Python scripts by what they are called in the table."""

    yardsticks: dict[str, str]
    commands: tuple[Command, ...]


COMPARISONS = (
    Comparison(
        {"a script that loads the study with optuna": LOAD_STUDY},
        (
            Command("status", "status"),
            Command("leaderboard", "leaderboard"),
            Command("show", "show"),
            Command("importance", "importance"),
        ),
    ),
    Comparison(
        {
            f'python -c "{IMPORT_LIBRARIES}"': IMPORT_LIBRARIES,
            "a script that uses pydantic, typer and rich": USE_LIBRARIES,
        },
        (
            Command("studies list", "studies list"),
            Command("studies list, no store", "studies list", in_store=False),
            Command("space", "space {study}", in_store=False),
            Command("models", "models", in_store=False),
        ),
    ),
    Comparison(
        {
            "a script that loads the model with torch and mlflow.pyfunc": LOAD_MODEL,
            "the same script, ended by os._exit": LOAD_MODEL + END_AT_ONCE,
        },
        (Command("predict --test-image 0", "predict --test-image 0"),),
    ),
    Comparison({}, (Command("search --dry-run", "search {study} --dry-run", in_store=False),)),
)
FIRST_EPOCH = "search, seconds before its first epoch, new store"
STRUCTURE = "imports"


class BenchmarkConfig(NamedTuple):
    """Where and how everything is measured."""

    checkouts: dict[str, Path]
    folder: Path
    study: Path
    data_options: list[str]
    rounds: int

    @property
    def store(self) -> Path:
        """The folder in which a study has been run."""
        return self.folder / "store"

    @property
    def empty(self) -> Path:
        """The folder without a store."""
        return self.folder / "empty"


def main() -> None:
    """Seconds that whole commands take, each against a script that does the least that it needs."""
    parser = _parser()
    arguments = parser.parse_args()
    checkouts = {folder.name: folder for folder in arguments.checkout or [ROOT]}
    if len(checkouts) < len(arguments.checkout or [ROOT]):
        parser.error("argument --checkout: two folders have the same name")
    data_options = ["--data-dir", str(arguments.data_dir.resolve())] if arguments.data_dir else []
    load = os.getloadavg()[0]
    figures: dict[str, list[Measurement]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        config = BenchmarkConfig(checkouts, Path(folder), arguments.study.resolve(), data_options, arguments.rounds)
        for found in _measured(config, arguments.only):
            for name, figure in found.items():
                figures[name].append(figure)
    settings = {"study": arguments.study.name, "rounds": arguments.rounds, "load before": f"{load:.1f}"}
    results = [_result(name, config, figures[name], settings) for name in checkouts]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(result) for result in results], indent=1))
    else:
        print(table(dict(zip(checkouts, results, strict=True))))
    for result in results if arguments.save else ():
        save_result(result, arguments.save)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(main.__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each command, after one that warms up")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name holds this text")
    parser.add_argument("--study", type=Path, default=QUICK, help="study file of space, of the dry run and of a search")
    parser.add_argument(
        "--checkout",
        type=_checkout,
        action="append",
        metavar="FOLDER",
        help="measure the package in this folder, by default this one; again for a column each",
    )
    return parser


def _checkout(text: str) -> Path:
    folder = Path(os.path.abspath(text))  # a link keeps its name, which heads a column
    if not (folder / PACKAGE / "__main__.py").exists():
        raise argparse.ArgumentTypeError(f"{text!r} holds no {PACKAGE}/__main__.py")
    return folder


def _measured(config: BenchmarkConfig, only: str) -> Iterator[dict[str, Measurement]]:
    """Yield one row after another: a figure for each checkout."""
    wanted = [
        (yardsticks, tuple(command for command in commands if only in command.what))
        for yardsticks, commands in COMPARISONS
    ]
    for folder in (config.store, config.empty):
        shutil.copytree(STUDIES, folder / "studies")
    if any(command.in_store for _, commands in wanted for command in commands):
        (config.store / "latency.toml").write_text(STUDY)
        search = ["search", "latency.toml", *config.data_options]
        _seconds(["-m", PACKAGE, *search], config.store, next(iter(config.checkouts.values())))
    for yardsticks, commands in wanted:
        if commands:
            yield from _compared(config, yardsticks, commands)
    if only in FIRST_EPOCH:
        ways = {name: _seconds_before_first_epoch(config, folder) for name, folder in config.checkouts.items()}
        samples = interleave(ways, config.rounds)
        yield {name: Measurement(FIRST_EPOCH, "s", samples[name], better="lower") for name in config.checkouts}
    if only in STRUCTURE:
        structures = [_structure(folder) for folder in config.checkouts.values()]
        for row in zip(*structures, strict=True):
            yield dict(zip(config.checkouts, row, strict=True))


# ---------------------------------------------------------------------------------------- commands


def _compared(
    config: BenchmarkConfig, yardsticks: Mapping[str, str], commands: tuple[Command, ...]
) -> Iterator[dict[str, Measurement]]:
    """Yield a row for each command and yardstick; all of them take turns."""
    ways = {text: _script_seconds(config, script) for text, script in yardsticks.items()}
    for command in commands:
        ways |= {f"{name}: {command.what}": _command_seconds(config, command, name) for name in config.checkouts}
    samples = interleave(ways, config.rounds)
    for yardstick in yardsticks or ("",):
        for command in commands:
            yield {
                name: Measurement(
                    command.what,
                    "s",
                    samples[f"{name}: {command.what}"],
                    samples.get(yardstick, ()),
                    "lower",
                    note=f"against {yardstick}" if yardstick else "",
                )
                for name in config.checkouts
            }


def _script_seconds(config: BenchmarkConfig, script: str) -> Iterator[float]:
    while True:
        yield _seconds(["-c", script], config.store, None)


def _command_seconds(config: BenchmarkConfig, command: Command, checkout: str) -> Iterator[float]:
    arguments = [word.format(study=config.study) for word in command.arguments.split()]
    if arguments[0] in ("predict", "search"):
        arguments += config.data_options
    while True:
        folder = config.store if command.in_store else config.empty
        yield _seconds(["-m", PACKAGE, *arguments], folder, config.checkouts[checkout])


def _seconds_before_first_epoch(config: BenchmarkConfig, checkout: Path) -> Iterator[float]:
    """Yield the seconds from a search's start to that of its first epoch, as `benchmarks.study` counts them.

    MLflow has the moment at which an epoch was over, and how long it took.
    """
    while True:
        with tempfile.TemporaryDirectory(dir=config.folder) as name:
            began = time.time()
            search = ["search", str(config.study), *SHORT_SEARCH, *config.data_options]
            _seconds(["-m", PACKAGE, *search], Path(name), checkout)
            with contextlib.closing(sqlite3.connect(Path(name) / "mlflow.db")) as database:
                query = "SELECT MIN(timestamp / 1000.0 - value) FROM metrics WHERE key = 'time/epoch_seconds'"
                (first,) = database.execute(query).fetchone()
        yield first - began


def _seconds(arguments: list[str], folder: Path, checkout: Path | None) -> float:
    """Return the seconds that Python takes with these arguments; what it prints is dropped."""
    dropped = ("MLFLOW_", "FMNIST_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # an installed program has its bytecode
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = {"PYTHONPATH": str(checkout)} if checkout else {}
    command = [sys.executable, *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env={**kept, **path}, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed with code {done.returncode}:\n{done.stderr}")
    return seconds


# --------------------------------------------------------------------------------------- structure


def _structure(checkout: Path) -> list[Measurement]:
    """Return the depth of the package's imports, its circles and its long modules."""
    files = module_files(checkout, PACKAGE)
    modules = module_graph(files)
    packages = package_graph(modules, PACKAGE)
    counts = {
        "import levels, packages": len(longest_chain(packages)),
        "import levels, modules": len(longest_chain(modules)),
        "import circles, packages": len(circles(packages)),
        "import circles, modules": len(circles(modules)),
        f"modules over {MODULE_LINES} lines": len(long_modules(files, MODULE_LINES)),
    }
    return [Measurement(what, "", (count,), better="") for what, count in counts.items()]


def _explained(checkout: Path) -> tuple[str, ...]:
    """Return what the counts of the structure consist of."""
    files = module_files(checkout, PACKAGE)
    modules = module_graph(files)
    chain = longest_chain(package_graph(modules, PACKAGE))
    found = [" and ".join(map(_short, circle)) for circle in circles(modules)]
    long = [f"{_short(name)} {count}" for name, count in long_modules(files, MODULE_LINES).items()]
    return (
        f"longest chain of packages: {' > '.join(' and '.join(map(_short, link)) for link in chain)}",
        f"circles of modules: {'; '.join(found) or 'none'}",
        f"modules over {MODULE_LINES} lines: {', '.join(long) or 'none'}",
    )


def _short(name: str) -> str:
    return name.removeprefix(f"{PACKAGE}.")


# ------------------------------------------------------------------------------------------ output


def _result(
    name: str, config: BenchmarkConfig, figures: list[Measurement], settings: Mapping[str, object]
) -> BenchmarkResult:
    """Return what was measured of a checkout; another than this one has a file of its own, by its folder's name."""
    checkout = config.checkouts[name]
    return BenchmarkResult(
        "latency",
        "yardstick",
        tuple(figures),
        {**settings, "checkout": _version(checkout)},
        device_slug("cuda" if torch.cuda.is_available() else "cpu"),
        _explained(checkout) if any(figure.unit == "" for figure in figures) else (),
        subject="" if checkout == ROOT else name,
        command=_command_line(),
    )


def _version(checkout: Path) -> str:
    """Return the commit of a checkout, "-dirty" after it where files differ from it; "" outside of Git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _command_line() -> str:
    """Return the command that was typed, without the folders of this machine."""
    arguments = _parser().parse_args()
    words = ["--rounds", str(arguments.rounds), *(["--only", arguments.only] if arguments.only else [])]
    words += ["--study", arguments.study.name] if arguments.study != QUICK else []
    words += [word for folder in arguments.checkout or () for word in ("--checkout", folder.name)]
    return shlex.join(["python", "-m", "benchmarks.latency", *words])


def table(results: Mapping[str, BenchmarkResult]) -> str:
    """Return the figures with columns for each checkout: its seconds, and how many times the yardstick's they are."""
    columns = [column for name in results for column in (name, "ratio")]
    rows = [("", "yardstick", *columns)]
    row: tuple[Measurement, ...]
    for row in zip(*(result.figures for result in results.values()), strict=True):
        cells = [cell for figure in row for cell in (figure.table_cells[1], _times(figure))]
        note = f": {row[0].note}" if row[0].note else ""
        rows.append((f"{row[0].what}{' (s)' if row[0].unit else ''}{note}", row[0].table_cells[2], *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{row[0]:<{widths[0]}}  " + "  ".join(map(str.rjust, row[1:], widths[1:])) for row in rows]
    first = next(iter(results.values()))
    packages = ", ".join(f"{name} {number}" for name, number in first.versions.items())
    shared = ", ".join(f"{name} {value}" for name, value in first.settings.items() if name != "checkout")
    versions = ", ".join(f"{name} {result.settings['checkout']}" for name, result in results.items())
    head = [f"{first.command}  ({first.date})", f"{first.machine}; {packages}", f"{shared}; {versions}"]
    remarks = [f"{name}: {remark}" for name, result in results.items() for remark in result.remarks]
    return "\n".join([*head, "", *lines, "", *remarks]).rstrip()


def _times(figure: Measurement) -> str:
    """Return how many times as long as its yardstick a command takes: the median of the rounds, and their range."""
    ratios = [ours / theirs for ours, theirs in zip(figure.ours, figure.theirs, strict=False)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}..{max(ratios):.2f})" if ratios else "-"


if __name__ == "__main__":
    run_main(main)
