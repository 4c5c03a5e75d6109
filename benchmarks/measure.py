"""What a benchmark found: figures with all their repetitions, as a table, as JSON and as a dated file.

Nothing here needs more than torch and the standard library, so that it runs where only the engine does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import machine, versions
from fmnist_search.errors import UserError
from fmnist_search.files import atomic_write

RESULTS_FOLDER = Path(__file__).parent / "results"
NOISE_THRESHOLD = 0.1
"""Repetitions that lie further apart than this share of their median are noise, not agreement."""


# --------------------------------------------------------------------------------------- measuring


def interleave(samplers: Mapping[str, Iterator[float]], rounds: int) -> dict[str, tuple[float, ...]]:
    """Samples of each way, taken in turns so that a busy machine hits all alike; the first of each warms up.

    Every second round goes backwards: what drifts steadily favours none.
    """
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    order = list(samplers)
    for name in order:
        next(samplers[name])
    for _ in range(rounds):
        for name in order:
            samples[name].append(next(samplers[name]))
        order.reverse()
    return {name: tuple(values) for name, values in samples.items()}


# ------------------------------------------------------------------------------------ what was found


class Ratio(NamedTuple):
    """How many times better ours is: the median over rounds, the lowest and the highest of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """One thing that was measured, ours and, where there is one, the other way; their nth repetitions belong together.

    `better` says which values are good, "higher" or "lower"; "" is for what knows no ratio. A `headline` stands in the
    README.
    """

    what: str
    unit: str
    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    better: str = "higher"
    note: str = ""
    headline: bool = False

    @property
    def ratio(self) -> Ratio | None:
        """Round by round, above 1 where ours is better; None where there is nothing to compare."""
        pairs = list(zip(self.ours, self.theirs, strict=False))
        if not self.better or not pairs or not all(map(all, pairs)):
            return None
        ratios = [ours / theirs if self.better == "higher" else theirs / ours for ours, theirs in pairs]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    @property
    def ratio_caveat(self) -> str:
        """What hinders reading the ratio; "" where the two are told apart in every round."""
        ratio = self.ratio
        if ratio is not None and min(len(self.ours), len(self.theirs)) < 2:
            return "measured once, so the spread is not known"
        if ratio is None or not ratio.low <= 1 <= ratio.high:
            return ""
        noisy = max(_relative_range(self.ours), _relative_range(self.theirs)) > NOISE_THRESHOLD
        return "machine too noisy to tell" if noisy else "no difference"

    @property
    def table_cells(self) -> tuple[str, ...]:
        """The columns what, ours, theirs and ratio of every table."""
        unit = f" ({self.unit})" if self.unit else ""
        remarks = "; ".join(filter(None, (self.note, self.ratio_caveat)))
        ratio = self.ratio
        times = f"{_format_number(ratio.median, '')}x{_format_range(ratio.low, ratio.high, '')}" if ratio else "-"
        what = f"{self.what}{unit}" + (f": {remarks}" if remarks else "")
        return what, _format_samples(self.ours, self.unit), _format_samples(self.theirs, self.unit), times


@dataclass(frozen=True)
class BenchmarkResult:
    """A run of a benchmark, with everything that its figures depend on; `device` as `device_slug` says it.

    `subject` is what was measured where a benchmark measures several things apart, each with a file of its own.
    """

    benchmark: str
    other: str
    figures: tuple[Measurement, ...]
    settings: dict[str, Any]
    device: str = "cpu"
    remarks: tuple[str, ...] = ()
    subject: str = ""
    command: str = ""
    date: str = field(default_factory=lambda: date.today().isoformat())
    machine: str = field(default_factory=machine)
    versions: dict[str, str] = field(default_factory=versions)

    def to_json(self) -> str:
        """The result as its file holds it."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> BenchmarkResult:
        """The result that such a file holds."""
        found = json.loads(text)
        figures = tuple(
            Measurement(**{**row, "ours": tuple(row["ours"]), "theirs": tuple(row["theirs"])})
            for row in found["figures"]
        )
        return cls(**{**found, "figures": figures, "remarks": tuple(found["remarks"])})

    @property
    def file_name(self) -> str:
        """Date, benchmark, subject and device: a later run of the same day takes an earlier one's place."""
        return (
            "-".join(filter(None, (self.date, self.benchmark.replace("_", "-"), self.subject, self.device))) + ".json"
        )

    def to_text(self) -> str:
        """The figures as a person reads them: medians, and the lowest and highest repetition in brackets."""
        rows = [("", "fmnist-search", self.other, "ratio"), *(figure.table_cells for figure in self.figures)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{row[0]:<{widths[0]}}  " + "  ".join(map(str.rjust, row[1:], widths[1:])) for row in rows]
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        head = [f"{self.command}  ({self.date})", f"{self.machine}; {packages}", settings]
        return "\n".join([*head, "", *lines, *self.remarks])


def _format_samples(samples: Sequence[float], unit: str) -> str:
    if not samples:
        return "-"
    median, spread = statistics.median(samples), _format_range(min(samples), max(samples), unit)
    return f"{_format_number(median, unit)}{spread} n={len(samples)}"


def _format_range(low: float, high: float, unit: str) -> str:
    return f" ({_format_number(low, unit)}..{_format_number(high, unit)})" if low < high else ""


def _format_number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _relative_range(samples: Sequence[float]) -> float:
    return (max(samples) - min(samples)) / statistics.median(samples)


# ------------------------------------------------------------------------------------ the command line


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    return argparse.ArgumentParser(description=(description or "").splitlines()[0], parents=[_common_options()])


def report_result(result: BenchmarkResult, arguments: argparse.Namespace) -> None:
    """Print a result, with the command that gave it, and keep it where that was asked for."""
    result = dataclasses.replace(result, command=command_line(result.benchmark))
    print(result.to_json() if arguments.json else result.to_text())
    if arguments.save:
        save_result(result, arguments.save)


def save_result(result: BenchmarkResult, folder: Path) -> None:
    """Keep a result as its file in a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / result.file_name) as file:
        file.write((result.to_json() + "\n").encode())


def run_main(main: Callable[[], None]) -> None:
    """Call a benchmark; a user's mistake is one line and no traceback."""
    try:
        main()
    except UserError as error:
        sys.exit("\n".join(f"error: {line}" for line in error.lines))


def _common_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--save",
        nargs="?",
        type=Path,
        const=RESULTS_FOLDER,
        metavar="FOLDER",
        help="keep a dated file, in benchmarks/results",
    )
    parser.add_argument("--data-dir", type=Path, metavar="FOLDER", help="folder that holds the dataset's files")
    return parser


def parse_changes(assignments: Iterable[str]) -> dict[str, Any]:
    """Changes of a recipe by dotted name, of `NAME=VALUE` each; a value that is no JSON is text.

    Raises:
        UserError: one is no assignment.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text!r}: is no NAME=VALUE; write for example epochs=4")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def command_line(benchmark: str) -> str:
    """What was typed, apart from where files lie and what becomes of the output."""
    _, rest = _common_options().parse_known_args(sys.argv[1:])
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *rest])
