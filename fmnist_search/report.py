"""Markdown and tables from plain results; knows neither MLflow nor Optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fmnist_search.recipe import short_text
from fmnist_search.results import State, StudySummary, TrialRow

LEADERS_SHOWN = 10


def study_note(summary: StudySummary, searched: Sequence[str], space: Mapping[str, str]) -> str:
    """What the study's run says of itself: question, winner, leaders, space, and the next command."""
    parts = [f"# {summary.name}", summary.question, _outcome(summary), _spent(summary)]
    if summary.leaders:
        parts.append(_table([*_leader_rows(summary.leaders[:LEADERS_SHOWN], searched)]))
    if summary.edges:
        parts.append("## At an edge\n\n" + "\n".join(f"- {line}" for line in summary.edges))
    parts.append("## Space")
    parts.append(_table([["hyperparameter", "domain"], *([f"`{name}`", domain] for name, domain in space.items())]))
    parts.append(f"## Next\n\n    fmnist-search leaderboard {summary.name!r}\n    fmnist-search ui")
    return "\n\n".join(part for part in parts if part) + "\n"


def _outcome(summary: StudySummary) -> str:
    best = summary.best
    if best is None:
        return "No trial has completed yet."
    lines = [f"**Best trial**: {best.number} ({best.recipe.label}), validation accuracy {best.value:.2%}."]
    if champion := summary.champion:
        lines.append(
            f"**Chosen**: trial {champion.confirmed.trial} ({champion.recipe.label}), confirmed at "
            f"{champion.confirmed} on fresh seeds; {champion.test.value:.2%} on the test images "
            f"(95 % interval {champion.test.low:.2%} to {champion.test.high:.2%}), looked at once. "
            f"Registered as `{champion.model}` version {champion.version}, alias `{champion.alias}`."
        )
    return "\n".join(lines)


def _spent(summary: StudySummary) -> str:
    counts = ", ".join(f"{summary.count(state)} {state.value}" for state in State if summary.count(state))
    minutes = sum(row.seconds for row in summary.trials) / 60
    return f"Trials: {counts or 'none'}, in {minutes:.1f} minutes of training. {summary.ended_by.value.capitalize()}."


def _leader_rows(rows: Sequence[TrialRow], searched: Sequence[str]) -> list[list[str]]:
    head = ["trial", "network", "validation accuracy", *searched]
    return [head, *([str(row.number), row.recipe.label, f"{row.value:.2%}", *_values(row, searched)] for row in rows)]


def _values(row: TrialRow, names: Sequence[str]) -> list[str]:
    flat = row.recipe.flat()
    return [short_text(flat[name]) if name in flat else "-" for name in names]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
