"""Results of benchmarks: figures with all their repetitions, as a table, as JSON and as a dated file.

Needs only torch and the standard library.
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
OTHER_SEARCH = "another search"
"""The other implementation where a search is compared with another sampler and pruner, not with other software."""
NOISE_THRESHOLD = 0.1
"""If repetitions differ by more than this share of their median, a difference cannot be measured."""


# --------------------------------------------------------------------------------------- measuring


def interleave(samplers: Mapping[str, Iterator[float]], rounds: int) -> dict[str, tuple[float, ...]]:
    """Return `rounds` samples of each sampler, taken alternately, so that a busy machine affects all alike.

    The first sample of each is a warm-up and is dropped. Every second round is in reverse order, so that a steady drift
    favours none.
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


# ------------------------------------------------------------------------------------------- results


class Ratio(NamedTuple):
    """How many times better ours is: the median, the lowest and the highest ratio over the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """The repetitions of one measurement, of ours and, if there is one, of the other implementation, round by round.

    `better` says which values are good, "higher" or "lower"; with "" there is no ratio. A `headline` is shown in the
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
        """The ratio over the rounds, above 1 if ours is better; None if there is nothing to compare."""
        pairs = list(zip(self.ours, self.theirs, strict=False))
        if not self.better or not pairs or not all(map(all, pairs)):
            return None
        ratios = [ours / theirs if self.better == "higher" else theirs / ours for ours, theirs in pairs]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    @property
    def ratio_caveat(self) -> str:
        """Why the ratio may mean nothing; "" if one of the two is better in every round."""
        ratio = self.ratio
        if ratio is not None and min(len(self.ours), len(self.theirs)) < 2:
            return "measured once, so the spread is not known"
        if ratio is None or not ratio.low <= 1 <= ratio.high:
            return ""
        noisy = max(_relative_range(self.ours), _relative_range(self.theirs)) > NOISE_THRESHOLD
        return "machine too noisy to tell" if noisy else "no difference"

    @property
    def table_cells(self) -> tuple[str, ...]:
        """The cells of a row: what, ours, theirs and ratio."""
        unit = f" ({self.unit})" if self.unit else ""
        remarks = "; ".join(filter(None, (self.note, self.ratio_caveat)))
        ratio = self.ratio
        times = f"{_format_number(ratio.median, '')}x{_format_range(ratio.low, ratio.high, '')}" if ratio else "-"
        what = f"{self.what}{unit}" + (f": {remarks}" if remarks else "")
        return what, _format_samples(self.ours, self.unit), _format_samples(self.theirs, self.unit), times


@dataclass(frozen=True)
class BenchmarkResult:
    """A run of a benchmark, with everything that its figures depend on; `device` is as `device_slug` returns it.

    `subject` is what was measured, for a benchmark that writes a file for each of several things.
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
        """Return the result as JSON, as in its file."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> BenchmarkResult:
        """Return the result of such JSON."""
        found = json.loads(text)
        figures = tuple(
            Measurement(**{**row, "ours": tuple(row["ours"]), "theirs": tuple(row["theirs"])})
            for row in found["figures"]
        )
        return cls(**{**found, "figures": figures, "remarks": tuple(found["remarks"])})

    @property
    def file_name(self) -> str:
        """Date, benchmark, subject and device: a later run of the same day replaces an earlier one."""
        return (
            "-".join(filter(None, (self.date, self.benchmark.replace("_", "-"), self.subject, self.device))) + ".json"
        )

    def to_text(self) -> str:
        """Return the figures as a table: medians, with the lowest and the highest repetition in brackets."""
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
    """Return a parser with the options that every benchmark has."""
    return argparse.ArgumentParser(description=(description or "").splitlines()[0], parents=[_common_options()])


def report_result(result: BenchmarkResult, arguments: argparse.Namespace) -> None:
    """Print a result with the command that was run, and save it if `--save` was given."""
    result = dataclasses.replace(result, command=command_line(result.benchmark))
    print(result.to_json() if arguments.json else result.to_text())
    if arguments.save:
        save_result(result, arguments.save)


def save_result(result: BenchmarkResult, folder: Path) -> None:
    """Write a result as a file into a folder, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / result.file_name) as file:
        file.write((result.to_json() + "\n").encode())


def run_main(main: Callable[[], None]) -> None:
    """Call a benchmark; print a `UserError` as lines, without a traceback."""
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
        help="write a dated file, by default into benchmarks/results",
    )
    parser.add_argument("--data-dir", type=Path, metavar="FOLDER", help="folder with the files of the dataset")
    return parser


def parse_changes(assignments: Iterable[str]) -> dict[str, Any]:
    """Return changes of a recipe by dotted name from texts `NAME=VALUE`; a value that is not JSON is a string.

    Raises:
        UserError: if a text is not an assignment.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text!r}: is not NAME=VALUE; write for example epochs=4")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def command_line(benchmark: str) -> str:
    """Return the command that was run, without the options for folders and output."""
    _, rest = _common_options().parse_known_args(sys.argv[1:])
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *rest])
