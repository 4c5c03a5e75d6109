"""Make all checks and measurements that need a GPU, in less than ten minutes.

    python -m benchmarks.gpu --data-dir FOLDER --save FOLDER

It needs only torch and torchvision. Measurements that need packages that are missing are skipped with a message.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import checks
from benchmarks.machine import machine, versions
from benchmarks.ours import data_source

TOTAL_SECONDS = 540.0
"""Seconds after which no further measurement starts."""
MAX_BENCHMARK_SECONDS = 150.0
"""Time limit of one measurement, in seconds."""
SEARCH_PACKAGES = ("mlflow", "optuna", "typer", "pydantic")
BENCHMARKS = (
    ("throughput --only standard --rounds 3", ()),
    ("packing --engine graph --batch-size 64 128 256 --rounds 3 --seconds 2", ()),
    ("packing --engine plain --rounds 2 --seconds 2", ()),
    ("time_to_accuracy", ()),
    (
        "study studies/baseline.toml --trials 100 --rounds 1 --engine graph --alone",
        ("mlflow", "optuna", "typer", "pydantic"),
    ),
)
"""Measurements, the most important first, each with the packages that it needs besides torch."""


def main() -> int:
    """Run the checks and the measurements; return the exit code, 1 if a check fails."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data-dir", type=Path, metavar="FOLDER", help="folder with the files of the dataset")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="folder for result files")
    parser.add_argument("--checks-only", action="store_true", help="run only the checks")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch finds no CUDA device", file=sys.stderr)
        return 2
    started = time.monotonic()
    # cuBLAS reads this when it is first used; without it, its results are not reproducible.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    print(f"{machine()}; {versions()}", flush=True)
    hold = checks.print_checks(
        checks.run_all_checks(data_source(arguments.data_dir)), lambda line: print(line, flush=True)
    )
    for command, needs in () if arguments.checks_only else BENCHMARKS:
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        left = TOTAL_SECONDS - (time.monotonic() - started)
        if missing or left <= 0:
            why = f"{', '.join(missing)} not installed" if missing else "no time left"
            print(f"\nskipped: {command} ({why})", flush=True)
            continue
        _run_benchmark(command, arguments, min(left, MAX_BENCHMARK_SECONDS))
    return 0 if hold else 1


def _run_benchmark(command: str, arguments: argparse.Namespace, seconds: float) -> None:
    name, *options = command.split()
    options += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    options += ["--save", str(arguments.save)] if arguments.save else []
    print(f"\n== {command}", flush=True)
    try:
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds:.0f} s", flush=True)
        return
    if done.returncode:
        print(f"failed with exit code {done.returncode}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
