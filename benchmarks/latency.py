"""Measure how long commands take as whole processes, and how deep the package's imports are.

Commands are started through the command line only, so that any checkout can be measured. Each is run alternately with
its yardstick, a short script that only imports and loads what the command needs. Several checkouts are also measured
alternately. They share one store, which the first of them creates by a small search.
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.import_graph import circles, long_modules, longest_chain, module_files, module_graph, package_graph
from benchmarks.latency_commands import COMPARISONS, STUDY, Command
from benchmarks.latency_table import table
from benchmarks.machine import device_slug
from benchmarks.measure import BenchmarkResult, Measurement, interleave, make_parser, run_main, save_result

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "studies"
QUICK = STUDIES / "quick.toml"
PACKAGE = "fmnist_search"
MODULE_LINES = 350
"""A module with more lines counts as long."""

SHORT_SEARCH = ("--trials", "2", "--set", "budget.epochs=1", "--set", "finalists.recipes=0")
FIRST_EPOCH = "search, seconds before its first epoch, new store"
STRUCTURE = "imports"


class BenchmarkConfig(NamedTuple):
    """Settings of all measurements."""

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
    """Measure the seconds of whole commands, each compared with a script that does the minimum."""
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
        for found in _measured(config, arguments.only or [""]):
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
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each command, after a warm-up")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only rows whose name contains this text; repeat it for more"
    )
    parser.add_argument("--study", type=Path, default=QUICK, help="study file for space, the dry run and the search")
    parser.add_argument(
        "--checkout",
        type=_checkout,
        action="append",
        metavar="FOLDER",
        help="folder of the package to measure, by default this one; repeat it for more columns",
    )
    return parser


def _checkout(text: str) -> Path:
    folder = Path(os.path.abspath(text))  # not resolved: the name of a link is the title of its column
    if not (folder / PACKAGE / "__main__.py").exists():
        raise argparse.ArgumentTypeError(f"{text!r} does not contain {PACKAGE}/__main__.py")
    return folder


def _measured(config: BenchmarkConfig, only: Sequence[str]) -> Iterator[dict[str, Measurement]]:
    """Yield the rows whose name contains one of these texts: for each a figure by checkout."""

    def is_wanted(name: str) -> bool:
        return any(text in name for text in only)

    wanted = [
        (yardsticks, tuple(command for command in commands if is_wanted(command.what)))
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
    if is_wanted(FIRST_EPOCH):
        ways = {name: _seconds_before_first_epoch(config, folder) for name, folder in config.checkouts.items()}
        samples = interleave(ways, config.rounds)
        yield {name: Measurement(FIRST_EPOCH, "s", samples[name], better="lower") for name in config.checkouts}
    if is_wanted(STRUCTURE):
        structures = [_structure(folder) for folder in config.checkouts.values()]
        for row in zip(*structures, strict=True):
            yield dict(zip(config.checkouts, row, strict=True))


# ---------------------------------------------------------------------------------------- commands


def _compared(
    config: BenchmarkConfig, yardsticks: Mapping[str, str], commands: tuple[Command, ...]
) -> Iterator[dict[str, Measurement]]:
    """Yield a row for each command and yardstick, which are measured alternately."""
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
    """Yield the seconds from the start of a search to the start of its first epoch, as in `benchmarks.study`.

    They follow from the end and the duration of the epoch in MLflow.
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
    """Run Python with these arguments and return its seconds; its output is discarded."""
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
    """Return the modules behind the counts of the structure."""
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
    """Return the result of a checkout; each other checkout has a file of its own, named after its folder."""
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
    """Return the commit of a checkout, with "-dirty" if files differ from it; "" outside of Git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _command_line() -> str:
    """Return the command that was run, without the folders of this machine."""
    arguments = _parser().parse_args()
    words = ["--rounds", str(arguments.rounds), *(word for text in arguments.only or () for word in ("--only", text))]
    words += ["--study", arguments.study.name] if arguments.study != QUICK else []
    words += [word for folder in arguments.checkout or () for word in ("--checkout", folder.name)]
    return shlex.join(["python", "-m", "benchmarks.latency", *words])


if __name__ == "__main__":
    run_main(main)
