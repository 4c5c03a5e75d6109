"""Compare the peak memory of a process that trains as a worker does with that of the plain loop in float32."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import device_slug
from benchmarks.measure import BenchmarkResult, Measurement, make_parser, report_result, run_main
from benchmarks.ours import data_source, tuned_settings
from benchmarks.throughput import Case
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import load_images
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import Decision
from fmnist_search.training.autotune import BASELINE
from fmnist_search.training.trial import run_trial

CASES = (Case("standard", 128), Case("standard", 512))
DATA_CHANGES = {"data.validation": 2_048, "data.train_images": 2_048, "epochs": 1}
CHILD_OPTION = "--one"


def main() -> None:
    """Compare the peak memory of a training tuned for this machine with that of the plain loop."""
    if CHILD_OPTION in sys.argv:
        print(_train_and_measure(json.loads(sys.argv[sys.argv.index(CHILD_OPTION) + 1])))
        return
    parser = make_parser(main.__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of each measurement")
    arguments = parser.parse_args()
    tuned, precision = tuned_settings("cpu", threads=1)
    plain = dataclasses.replace(tuned, memory_format=BASELINE[1], allocator="default")
    ways = {"ours": (tuned, precision), "theirs": (plain, BASELINE[0])}
    figures = []
    for case in CASES:
        peaks: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                peaks[name].append(_peak_memory_of_child(case, *way, arguments.data_dir))
        figures.append(
            Measurement(f"peak memory, {case}", "MB", tuple(peaks["ours"]), tuple(peaks["theirs"]), better="lower")
        )
    settings = {"precision": precision, "memory_format": tuned.memory_format, "allocator": tuned.allocator}
    report_result(BenchmarkResult("memory", "plain loop", tuple(figures), settings, device_slug("cpu")), arguments)


def _peak_memory_of_child(case: Case, execution: Execution, precision: str, folder: Path | None) -> float:
    """Return the peak resident memory of a child process that trains, in MB."""
    parameters = {
        "case": list(case),
        "execution": dataclasses.asdict(execution),
        "precision": precision,
        "folder": str(folder) if folder else None,
    }
    command = [sys.executable, "-m", "benchmarks.memory", CHILD_OPTION, json.dumps(parameters)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _train_and_measure(parameters: dict[str, object]) -> float:
    source: DataSource = data_source(Path(str(parameters["folder"])) if parameters["folder"] else None)
    recipe = Case(*parameters["case"]).recipe(str(parameters["precision"]), **DATA_CHANGES)  # type: ignore[misc]
    images = load_images(recipe.data, source)
    run_trial(recipe, images, Execution(**parameters["execution"]), lambda _: Decision.CONTINUE)  # type: ignore[arg-type]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    run_main(main)
