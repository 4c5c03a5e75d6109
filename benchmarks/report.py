"""The latest results as Markdown tables, in the pages that show them: `python -m benchmarks.report --write`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks import reference
from benchmarks.measure import RESULTS, Result

ROOT = Path(__file__).parents[1]
ORDER = ("study", "time_to_accuracy", "packing", "throughput", "memory")
"""What readers care for first; other benchmarks follow by name."""
MARKED = re.compile(r"(?P<start><!-- (?P<name>\w+) -->\n).*?(?P<end><!-- /(?P=name) -->)", re.DOTALL)
NOTHING = "Nothing has been measured yet.\n"


def main() -> None:
    """Print every figure of the latest results, or write them into the pages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write them into README.md and the pages of docs")
    if not parser.parse_args().write:
        print(table(latest(RESULTS), headlines=False), end="")
        return
    for page, tables in pages(RESULTS).items():
        page.write_text(with_tables(page.read_text(), tables))


def pages(folder: Path) -> dict[Path, dict[str, str]]:
    """The pages that show results, and what stands between which of their markers."""
    measured, trained = latest(folder), reference.latest(folder)
    return {
        ROOT / "README.md": {"benchmarks": table(measured, headlines=True)},
        ROOT / "docs" / "performance.md": {"benchmarks": table(measured, headlines=False)},
        ROOT / "docs" / "reference-results.md": {
            "reference": reference.record(trained),
            "variants": reference.variants(trained),
        },
    }


def latest(folder: Path) -> list[Result]:
    """The newest result of each benchmark and subject on each device; published networks have a page of their own."""
    newest: dict[tuple[str, str, str], Result] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        found = json.loads(text := path.read_text())
        if "figures" in found and found["benchmark"] != reference.BENCHMARK:
            result = Result.from_json(text)
            newest[result.benchmark, result.subject, result.device] = result
    return sorted(newest.values(), key=_place)


def table(results: Iterable[Result], *, headlines: bool) -> str:
    """One row a figure: medians of n repetitions, the lowest and the highest in brackets."""
    rows = [
        f"| {' | '.join((*figure.cells, result.machine, result.date))} |"
        for result in results
        for figure in result.figures
        if figure.headline or not headlines
    ]
    if not rows:
        return NOTHING
    head = "| What | fmnist-search | tutorial or usual script | ratio | machine | date |"
    return "\n".join([head, "| --- | ---: | ---: | ---: | --- | --- |", *rows]) + "\n"


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with these tables between the markers of their names."""
    return MARKED.sub(lambda found: f"{found['start']}\n{tables[found['name']]}\n{found['end']}", page)


def _place(result: Result) -> tuple[int, str, str, str]:
    place = ORDER.index(result.benchmark) if result.benchmark in ORDER else len(ORDER)
    return place, result.benchmark, result.subject, result.device


if __name__ == "__main__":
    main()
