"""Peak memory of a process that trains: as a worker trains here, against the plain loop in float32."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Figure, Result, deliver, entrance, options
from benchmarks.ours import conditions, images_from
from benchmarks.throughput import Case
from fmnist_search.data.loading import Source, prepare
from fmnist_search.recipe.recipe import Execution
from fmnist_search.results.study import Decision
from fmnist_search.training.autotune import PLAIN
from fmnist_search.training.trial import run_trial

CASES = (Case("standard", 128), Case("standard", 512))
DATA = {"data.validation": 2_048, "data.train_images": 2_048, "epochs": 1}
ONE_OF_US = "--one"


def main() -> None:
    """Peak memory of a training, tuned for this machine and plain."""
    if ONE_OF_US in sys.argv:
        print(_peak(json.loads(sys.argv[sys.argv.index(ONE_OF_US) + 1])))
        return
    parser = options(main.__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of each measurement")
    arguments = parser.parse_args()
    tuned, precision = conditions("cpu", threads=1)
    plain = dataclasses.replace(tuned, memory_format=PLAIN[1], allocator="default")
    ways = {"ours": (tuned, precision), "theirs": (plain, PLAIN[0])}
    figures = []
    for case in CASES:
        peaks: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                peaks[name].append(_measured(case, *way, arguments.data_dir))
        figures.append(
            Figure(f"peak memory, {case}", "MB", tuple(peaks["ours"]), tuple(peaks["theirs"]), better="lower")
        )
    settings = {"precision": precision, "memory_format": tuned.memory_format, "allocator": tuned.allocator}
    deliver(Result("memory", "plain loop", tuple(figures), settings), arguments)


def _measured(case: Case, execution: Execution, precision: str, folder: Path | None) -> float:
    """Megabytes that a process of its own held at most."""
    what = {
        "case": list(case),
        "execution": dataclasses.asdict(execution),
        "precision": precision,
        "folder": str(folder) if folder else None,
    }
    command = [sys.executable, "-m", "benchmarks.memory", ONE_OF_US, json.dumps(what)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _peak(what: dict[str, object]) -> float:
    source: Source = images_from(Path(str(what["folder"])) if what["folder"] else None)
    recipe = Case(*what["case"]).recipe(str(what["precision"]), **DATA)  # type: ignore[misc]
    images = prepare(recipe.data, source)
    run_trial(recipe, images, Execution(**what["execution"]), lambda _: Decision.CONTINUE)  # type: ignore[arg-type]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    entrance(main)
