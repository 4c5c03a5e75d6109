"""The stored results of `benchmarks.reference`, and their tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import BenchmarkResult
from fmnist_search.models.presets import PRESETS, Preset
from fmnist_search.recipe.recipe import Recipe

BENCHMARK = "reference"
COLUMN_ALIGNMENTS = {
    "network": "---",
    "published": "---",
    "test accuracy": "---:",
    "test loss": "---:",
    "validation": "---:",
    "training": "---:",
    "epochs, ours / author's": "---:",
    "images": "---:",
    "seconds a training": "---:",
    "machine": "---",
    "date": "---",
}
TEST_ACCURACY, TEST_LOSS, VALIDATION_ACCURACY, TRAINING_ACCURACY, TRAINING_SECONDS = (
    "test accuracy",
    "test loss",
    "validation accuracy",
    "training accuracy",
    "a training",
)


def latest_results(folder: Path) -> list[BenchmarkResult]:
    """Return the latest result of each network, set of changes and device, in the order of the presets."""
    newest: dict[tuple[str, str], BenchmarkResult] = {}
    for path in sorted(folder.glob(f"*-{BENCHMARK}-*.json")):  # file names start with the date
        result = BenchmarkResult.from_json(path.read_text())
        newest[result.subject, result.device] = result
    order = list(PRESETS)
    return sorted(newest.values(), key=lambda r: (order.index(r.settings["preset"]), r.subject, r.device))


def reference_table(results: Iterable[BenchmarkResult]) -> str:
    """Return the table of all presets as their authors trained them, including those that were not trained yet."""
    found = [result for result in results if not result.settings["changes"]]
    trained = {result.settings["preset"] for result in found}
    missing = [_unmeasured_cells(preset) for name, preset in PRESETS.items() if name not in trained]
    return "\n".join(filter(None, [_markdown_table([*map(_table_cells, found), *missing]), _format_versions(found)]))


def variants_table(results: Iterable[BenchmarkResult]) -> str:
    """Return the table of trainings with changes, and their commands."""
    found = [result for result in results if result.settings["changes"]]
    if not found:
        return "Nothing has been measured yet.\n"
    commands = dict.fromkeys(result.command for result in found)
    return "\n".join(
        [_markdown_table(map(_table_cells, found)), "```console", *(f"$ {line}" for line in commands), "```\n"]
    )


def results_table(results: Iterable[BenchmarkResult]) -> str:
    """Return a table with a row for each result."""
    return _markdown_table(map(_table_cells, results))


def _markdown_table(rows: Iterable[Sequence[str]]) -> str:
    lines = [tuple(COLUMN_ALIGNMENTS), tuple(COLUMN_ALIGNMENTS.values()), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _table_cells(result: BenchmarkResult) -> tuple[str, ...]:
    settings = result.settings
    preset, recipe = PRESETS[settings["preset"]], Recipe().replace(settings["recipe"])
    figures = {figure.what: figure.ours for figure in result.figures}
    network = ", ".join([f"`{preset.name}`", *format_changes(settings["changes"])])
    return (
        "; ".join([network, *result.remarks]),
        preset.published_accuracy,
        f"{_format_mean_and_std(figures[TEST_ACCURACY], '.2f')} (n={len(figures[TEST_ACCURACY])})",
        _format_mean_and_std(figures[TEST_LOSS], ".3f"),
        _format_mean_and_std(figures.get(VALIDATION_ACCURACY, ()), ".2f"),
        _format_mean_and_std(figures[TRAINING_ACCURACY], ".2f"),
        f"{recipe.epochs} / {_published_epochs(preset)}",
        f"{recipe.data.training_count:,} of {recipe.data.dataset}",
        f"{_format_mean_and_std(figures[TRAINING_SECONDS], ',.0f')}; {settings['workers']} at once",
        result.machine,
        result.date,
    )


def _unmeasured_cells(preset: Preset) -> tuple[str, ...]:
    blank = ["not measured yet" if column == TEST_ACCURACY else "-" for column in COLUMN_ALIGNMENTS]
    known = {"network": f"`{preset.name}`", "published": preset.published_accuracy}
    return tuple(known.get(column, cell) for column, cell in zip(COLUMN_ALIGNMENTS, blank, strict=True))


def _published_epochs(preset: Preset) -> str:
    return "not said" if "epochs" in preset.assumed_names else str(preset.recipe.epochs)


def _format_mean_and_std(samples: Sequence[float], format_spec: str) -> str:
    """Return mean and standard deviation as text."""
    if not samples:
        return "-"
    mean = format(statistics.fmean(samples), format_spec)
    return mean if len(samples) == 1 else f"{mean} ± {format(statistics.stdev(samples), format_spec)}"


def _format_versions(results: Iterable[BenchmarkResult]) -> str:
    """Return a line for each machine and its versions."""
    lines = (f"{r.machine}: python {r.versions['python']}, torch {r.versions['torch']}" for r in results)
    return "".join(f"- {line}\n" for line in dict.fromkeys(lines))


def format_changes(changes: dict[str, Any]) -> list[str]:
    """Return each changed hyperparameter with its value."""
    return [f"{name} {value}" for name, value in changes.items()]
