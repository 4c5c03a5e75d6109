"""The latest results as Markdown tables, in the pages that show them: `python -m benchmarks.report --write`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.measure import RESULTS, Result

ROOT = Path(__file__).parents[1]
PAGES = {ROOT / "README.md": True, ROOT / "docs" / "performance.md": False}
"""The pages, and whether they show the headlines alone."""
ORDER = ("study", "time_to_accuracy", "packing", "throughput", "memory")
"""What readers care for first; other benchmarks follow by name."""
MARKED = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)
NOTHING = "Nothing has been measured yet.\n"


def main() -> None:
    """Print every figure of the latest results, or write them into the pages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write them into README.md and docs/performance.md")
    if not parser.parse_args().write:
        print(table(latest(RESULTS), headlines=False), end="")
        return
    for page, headlines in PAGES.items():
        page.write_text(with_table(page.read_text(), table(latest(RESULTS), headlines=headlines)))


def latest(folder: Path) -> list[Result]:
    """The newest result of each benchmark on each device."""
    newest: dict[tuple[str, str], Result] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        if "figures" in json.loads(text := path.read_text()):
            result = Result.from_json(text)
            newest[result.benchmark, result.device] = result
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


def with_table(page: str, rows: str) -> str:
    """The page with these rows between its markers."""
    return MARKED.sub(lambda found: f"{found[1]}\n{rows}\n{found[2]}", page)


def _place(result: Result) -> tuple[int, str, str]:
    place = ORDER.index(result.benchmark) if result.benchmark in ORDER else len(ORDER)
    return place, result.benchmark, result.device


if __name__ == "__main__":
    main()
