"""Write the latest results as Markdown tables into the pages: `python -m benchmarks.report --write`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks import reference_results
from benchmarks.measure import OTHER_SEARCH, RESULTS_FOLDER, BenchmarkResult

ROOT = Path(__file__).parents[1]
BENCHMARK_ORDER = ("study", "time_to_accuracy", "packing", "throughput", "memory")
"""The order of the rows; other benchmarks follow by name."""
MARKED_SECTION = re.compile(r"(?P<start><!-- (?P<name>\w+) -->\n).*?(?P<end><!-- /(?P=name) -->)", re.DOTALL)
NO_RESULTS = "Nothing has been measured yet.\n"


def main() -> None:
    """Print all figures of the latest results, or write them into the pages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write them into README.md and docs")
    if not parser.parse_args().write:
        print(results_table(latest_results(RESULTS_FOLDER), headlines_only=False), end="")
        return
    for page, tables in page_tables(RESULTS_FOLDER).items():
        page.write_text(replace_tables(page.read_text(), tables))


def page_tables(folder: Path) -> dict[Path, dict[str, str]]:
    """Return the tables by page and by the name of the markers around them."""
    measured, trained = latest_results(folder), reference_results.latest_results(folder)
    return {
        ROOT / "README.md": {"benchmarks": results_table(measured, headlines_only=True)},
        ROOT / "docs" / "performance.md": {"benchmarks": results_table(measured, headlines_only=False)},
        ROOT / "docs" / "reference-results.md": {
            "reference": reference_results.reference_table(trained),
            "variants": reference_results.variants_table(trained),
        },
    }


def latest_results(folder: Path) -> list[BenchmarkResult]:
    """Return the latest result of each benchmark, subject and device.

    Those of published networks have tables of their own, and docs/search.md has the comparisons of two of our searches.
    """
    newest: dict[tuple[str, str, str], BenchmarkResult] = {}
    for path in sorted(folder.glob("*.json")):  # file names start with the date
        found = json.loads(text := path.read_text())
        if "figures" in found and found["benchmark"] != reference_results.BENCHMARK and found["other"] != OTHER_SEARCH:
            result = BenchmarkResult.from_json(text)
            newest[result.benchmark, result.subject, result.device] = result
    return sorted(newest.values(), key=_sort_key)


def results_table(results: Iterable[BenchmarkResult], *, headlines_only: bool) -> str:
    """Return a Markdown table with a row for each figure."""
    rows = [
        f"| {' | '.join((*figure.table_cells, result.machine, result.date))} |"
        for result in results
        for figure in result.figures
        if figure.headline or not headlines_only
    ]
    if not rows:
        return NO_RESULTS
    head = "| What | fmnist-search | tutorial or usual script | ratio | machine | date |"
    return "\n".join([head, "| --- | ---: | ---: | ---: | --- | --- |", *rows]) + "\n"


def replace_tables(page: str, tables: Mapping[str, str]) -> str:
    """Return the page with these tables between the markers of their names."""
    return MARKED_SECTION.sub(lambda found: f"{found['start']}\n{tables[found['name']]}\n{found['end']}", page)


def _sort_key(result: BenchmarkResult) -> tuple[int, str, str, str]:
    place = BENCHMARK_ORDER.index(result.benchmark) if result.benchmark in BENCHMARK_ORDER else len(BENCHMARK_ORDER)
    return place, result.benchmark, result.subject, result.device


if __name__ == "__main__":
    main()
