"""The table that `benchmarks.latency` prints."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks.measure import BenchmarkResult, Measurement


def table(results: Mapping[str, BenchmarkResult]) -> str:
    """Return the figures as a table, with two columns per checkout: its seconds and their ratio to the yardstick."""
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
    """Return the ratio of a command's seconds to its yardstick's: the median of the rounds, and their range."""
    ratios = [ours / theirs for ours, theirs in zip(figure.ours, figure.theirs, strict=False)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}..{max(ratios):.2f})" if ratios else "-"
