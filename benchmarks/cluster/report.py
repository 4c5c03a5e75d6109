"""All measurements of the cluster benchmark, as a dated file and as the table of docs/cluster.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from benchmarks.measure import RESULTS_FOLDER
from benchmarks.soak.result import git_commit
from fmnist_search.files import atomic_write

MEASUREMENTS = {
    "turns": ("turns", "--trials", "12"),
    "driver, 64 workers, 1,000 trials": ("driver", "--trials", "1000"),
    "driver, 64 workers, 10,000 trials": ("driver", "--trials", "10000"),
    "driver, 1,000 workers, 10,000 trials": ("driver", "--trials", "10000", "--workers", "1000"),
    "record": ("record", "--trials", "1000"),
    "nodes": ("nodes",),
}
"""The measurements by name, each a command of `python -m benchmarks.cluster`."""


def measure_all(path: Path, names: Iterable[str], say: Any) -> dict[str, Any]:
    """Make measurements, each in a process of its own, and add each to the file at once; return the file's content."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    measurements: dict[str, Any] = stored.get("measurements", {})
    about = {"benchmark": "cluster", "date": date.today().isoformat(), "machine": machine()}
    found = {**about, "versions": {**versions(), "ray": version("ray")}, "measurements": measurements}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.cluster", *MEASUREMENTS[name], "--json"]
        load = os.getloadavg()[0]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        measured = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
        measurements[name] = {
            "command": f"python -m benchmarks.cluster {' '.join(MEASUREMENTS[name])}",
            "commit": git_commit(),
            "load_before": round(load, 1),
            "exit_code": done.returncode,
            **{key: value for key, value in measured.items() if key not in ("machine", "versions", "messages")},
        }
        say(f"{name}: {json.dumps(measurements[name])}")
        with atomic_write(path) as file:
            file.write((json.dumps(found, indent=1) + "\n").encode())
    return found


def default_path() -> Path:
    """Return the file of today's results."""
    return RESULTS_FOLDER / f"{date.today().isoformat()}-cluster.json"


def table(found: dict[str, Any]) -> str:
    """Return the table of docs/cluster.md."""
    rows = ["| what | measured |", "| --- | ---: |"]
    rows += [f"| {what} | {value} |" for what, value in _rows(found["measurements"])]
    return "\n".join(rows) + "\n"


def _rows(measured: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if turns := measured.get("turns"):
        costs = {name: turns[name] for name in ("process, 2", "ray, 3", "ray, 4", "process, 5")}
        yield (
            "an epoch's round trip through Ray, median",
            _range(costs[name]["turn_ms"][0] for name in costs if "ray" in name),
        )
        yield (
            "the same with a process of this machine",
            _range(costs[name]["turn_ms"][0] for name in costs if "process" in name),
        )
        yield (
            "overhead of a trial on Ray beyond that of the process backend",
            _range(each["trial_ms"] for each in turns["Ray against processes"].values()),
        )
    for found in measured.values():
        if cost := found.get("driver"):
            window = f"trials {cost['first']:,} to {cost['last']:,}"
            yield (
                f"driver's CPU for a trial of 9 epochs, {cost['workers']:,} workers, {window}",
                f"{cost['whole_trial_ms']:.0f} ms",
            )
            yield f"the same as it happened, with {cost['reports']:.1f} epochs a trial", f"{cost['cpu_ms']:.0f} ms"
    if record := measured.get("record", {}).get("record"):
        share = 100 * (record["reported"] - record["missing"]) / record["reported"]
        yield (
            f"points in MLflow of {record['reported']:,} epochs, 64 workers",
            f"{share:g} %, {record['repeated']} twice",
        )
    runs = [run for name, run in measured.get("nodes", {}).items() if name.startswith("run ")]
    if runs:
        exact = sum(run["trials"] == run["budget"] for run in runs)
        running = sum(run["running_in_optuna"] + run["running_in_mlflow"] for run in runs)
        yield f"a node killed in each of {len(runs)} studies, another joining: budget exact", f"{exact} of {len(runs)}"
        yield "left RUNNING in both stores", f"{running}"
        yield "epochs trained again of a trial, at most", f"{max(run['repeated_epochs'] for run in runs)}"


def _range(values: Iterable[float]) -> str:
    low, *_, high = sorted(values)
    return f"{low:.1f} to {high:.1f} ms"
