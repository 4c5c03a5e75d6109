"""Search a study while faults are injected, then check its stores: `python -m benchmarks.soak --minutes 60 --every 20`.

The search is started again whenever it ends. At the end nothing may be lost, doubled or left behind; the exit code is 1
if an invariant is broken.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.soak.checks import check_all
from benchmarks.soak.faults import inject
from benchmarks.soak.plan import FaultKind, make_plan
from benchmarks.soak.project import Project, small_disks_work
from benchmarks.soak.result import format_table, make_result, to_json
from benchmarks.soak.run import Soak
from fmnist_search.files import atomic_write


def main() -> None:
    """Run a soak test."""
    arguments = _parse_arguments()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and processes are ended
    for number in (signal.SIGHUP, signal.SIGQUIT):
        # The searches would inherit that nohup or a shell in the background ignores it, but they inherit no handler.
        signal.signal(number, lambda *_: None)
    kinds = available_kinds(arguments.faults, arguments.storage)
    plan = make_plan(arguments.seed, 60 * arguments.minutes, arguments.every, kinds)
    if arguments.plan:
        for fault in plan:
            print(f"{fault.at:8.2f} s  {fault.kind}{f', {fault.seconds:g} s' if fault.seconds else ''}")
        return
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        started = time.monotonic()
        project = Project(arguments.folder or Path(folder), arguments.storage)
        try:
            project.mlflow.start()
            soak = Soak(project, plan, inject, print_line=_print_now)
            soak.run(60 * arguments.minutes)
            invariants = check_all(soak)
        finally:
            project.close()
    settings = {
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "every": arguments.every,
        "faults": [kind.value for kind in kinds],
        "left_out": [kind.value for kind in FaultKind if kind not in kinds],
        "storage": arguments.storage,
    }
    result = make_result(soak, invariants, settings, time.monotonic() - started)
    if arguments.output:
        with atomic_write(arguments.output) as file:
            file.write(to_json(result).encode())
    print(f"\n{format_table(result)}")
    sys.exit(any(not invariant.holds for invariant in invariants))


def available_kinds(asked: list[FaultKind], storage: str) -> list[FaultKind]:
    """Return the kinds of faults that are asked for, by default all, without those that are impossible here."""
    impossible = set() if storage == "postgresql" else {FaultKind.POSTGRESQL_DOWN}
    impossible |= set() if small_disks_work() else {FaultKind.DISK_FULL}
    return [kind for kind in asked or FaultKind if kind not in impossible]


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="how long faults are injected")
    parser.add_argument("--every", type=float, default=20, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=0, help="seed of the plan: which fault comes when")
    parser.add_argument(
        "--faults", nargs="+", type=FaultKind, default=[], metavar="KIND", help=f"some of: {', '.join(FaultKind)}"
    )
    parser.add_argument("--storage", choices=("sqlite", "postgresql"), default="sqlite", help="storage of Optuna")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--folder", type=Path, help="keep all files in this folder, by default a temporary one")
    parser.add_argument("--plan", action="store_true", help="print the plan and inject nothing")
    return parser.parse_args()


def _print_now(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
