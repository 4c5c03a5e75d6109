"""Markdown and tables from plain results; knows neither MLflow nor Optuna.

Whatever a text holds (a pipe, a backtick, a new line), the Markdown stays what it was meant to be.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from fmnist_search.config.domain import Boundary, Domain, Range, boundary_of
from fmnist_search.config.sections import Budget
from fmnist_search.recipe.datasets import get_dataset
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value_short, short_names
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe, is_active
from fmnist_search.results.champion import Champion
from fmnist_search.results.study import Importances, StudySummary, TrialRecord, rank_trials
from fmnist_search.results.training import EpochReport, TrialState
from fmnist_search.text import markdown_table
from fmnist_search.training.evaluation import class_scores

MAX_LEADERS = 10
MAX_IMPORTANCES = 5

Cell = Value | None

_SPECIAL_CHARACTERS = re.compile(r"([\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w))")
_BLOCK_START = re.compile(r"^(\d*)([#+\-=.)])")


# --------------------------------------------------------------------------------- of a whole study


def study_note(
    summary: StudySummary,
    searched: Sequence[str],
    space: Mapping[str, Domain | str],
    *,
    budget: Budget | None = None,
    importances: Importances | None = None,
) -> str:
    """What the study's run says of itself: question, winner, budget, space, findings, leaders, and the next command.

    `searched` names the hyperparameters of the leaders' table. `space` has each domain, or its text, under its key in
    the study file; only of a domain can be told whether a value lies at its end.
    """
    parts = [
        f"# {_escape_markdown(summary.name)}",
        _escape_markdown(summary.question),
        _outcome(summary),
        _trial_counts(summary),
    ]
    if budget:
        parts.append(_budget_table(summary, budget))
    if found := _findings(summary, importances):
        parts.append("## Found out\n\n" + "\n".join(f"- {_escape_markdown(line)}" for line in found))
    if summary.ranked_trials:
        parts += ["## Leaders", _leaders_table(summary.ranked_trials[:MAX_LEADERS], searched)]
    parts += ["## Space", _space_table(summary, space)]
    parts.append("## Next\n\n" + "\n".join(f"    {command}" for command in _next_commands(summary)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _outcome(summary: StudySummary) -> str:
    best = summary.best
    if best is None:
        return "No trial has completed yet."
    lines = [f"**Best trial**: {best.number} ({best.recipe.label}), validation accuracy {best.value:.2%}."]
    if champion := summary.champion:
        lines.append(
            f"**Chosen**: trial {champion.confirmed_score.trial} ({champion.recipe.label}), confirmed at "
            f"{champion.confirmed_score} on fresh seeds; {champion.test.value:.2%} on the test images "
            f"(95 % interval {champion.test.low:.2%} to {champion.test.high:.2%}), looked at once. "
            f"Its model was trained for {_describe_training(champion.recipe)}. Registered as "
            f"{_inline_code(champion.model)} "
            f"version {champion.version}, alias {_inline_code(champion.alias)}."
        )
    return "\n\n".join(lines)


def _describe_training(recipe: Recipe) -> str:
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    images = f"{recipe.data.training_count:,} images of {get_dataset(recipe.data.dataset).title}"
    return f"{epochs} on {images}, schedule {recipe.schedule.name}"


def _trial_counts(summary: StudySummary) -> str:
    counts = ", ".join(f"{summary.count(state)} {state.value}" for state in TrialState if summary.count(state))
    minutes = sum(row.seconds for row in summary.trials) / 60
    return (
        f"Trials: {counts or 'none'}, in {minutes:.1f} minutes of training. {summary.stop_reason.value.capitalize()}."
    )


def _budget_table(summary: StudySummary, budget: Budget) -> str:
    counted = [row for row in summary.trials if row.is_final and row.duplicate_of is None]
    epochs = sum(row.epochs for row in counted)
    rows = [
        ("trials", str(len(counted)), budget.trials),
        ("epochs of all trials", str(epochs), budget.total_epochs),
        ("minutes of searching", f"{summary.searched_seconds / 60:.1f}", budget.minutes),
        ("failed trials", str(summary.count(TrialState.FAILED)), budget.failures),
    ]
    return markdown_table(
        [["budget", "spent", "of"], *([name, spent, _format_limit(limit)] for name, spent, limit in rows)]
    )


def _format_limit(limit: float | None) -> str:
    return "no limit" if limit is None else format_value_short(limit)


def _findings(summary: StudySummary, importances: Importances | None) -> list[str]:
    lines = list(summary.boundary_warnings)
    if importances and importances.by_name:
        first = list(importances.by_name.items())[:MAX_IMPORTANCES]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in first)
        lines.insert(0, f"what decides, by PED-ANOVA over {importances.trials} completed trials: {shares}")
    return lines


def _leaders_table(trials: Sequence[TrialRecord], searched: Sequence[str]) -> str:
    names = [name for name in searched if not name.startswith("model.width_")]  # the network's name says its widths
    head = ["trial", "network", "validation accuracy", *short_names(names)]
    body = [
        [
            str(row.number),
            row.recipe.label,
            f"{row.value:.2%}",
            *(_format_cell(cell) for cell in _recipe_values(row.recipe, names)),
        ]
        for row in trials
    ]
    return markdown_table([head, *body])


def _space_table(summary: StudySummary, space: Mapping[str, Domain | str]) -> str:
    """Each domain beside the winners' values, with a mark where they lie at its end."""
    winners = _winning_recipes(summary.best, summary.champion)
    body = [
        [_inline_code(key), str(domain), *(_format_domain_value(domain, key, recipe) for recipe in winners.values())]
        for key, domain in space.items()
    ]
    return markdown_table([["hyperparameter", "domain", *winners], *body])


def _winning_recipes(best: TrialRecord | None, champion: Champion | None) -> dict[str, Recipe]:
    chosen = champion.confirmed_score.trial if champion else None
    winners = {}
    if best:
        title = "best and chosen" if best.number == chosen else "the best"
        winners[f"trial {best.number}, {title}"] = best.recipe
    if champion and (best is None or best.number != chosen):
        winners[f"trial {chosen}, chosen"] = champion.recipe
    return winners


def _format_domain_value(domain: Domain | str, key: str, recipe: Recipe) -> str:
    _, table, name = key.split(".", 2)
    family = recipe.model.family
    if table not in ("common", family):
        return "-"
    dotted = f"model.{name}" if table == family or name == "family" else name
    (value,) = _recipe_values(recipe, [dotted])
    end = _boundary_of(domain, value)
    return f"{_format_cell(value)} ({end})" if end else _format_cell(value)


def _boundary_of(domain: Domain | str, value: Cell) -> str | None:
    boundary = None if value is None or isinstance(domain, str) else boundary_of(domain, value)
    if boundary is None:
        return None
    if isinstance(domain, Range):
        return f"{boundary.value} end"
    return "smallest" if boundary is Boundary.LOWER else "largest"


def _next_commands(summary: StudySummary) -> list[str]:
    name = shlex.quote(summary.name)
    commands = [f"fmnist-search leaderboard {name}"]
    if summary.best and not summary.champion:
        commands.append(f"fmnist-search promote {name}")
    return [*commands, "fmnist-search ui"]


# ------------------------------------------------------------------------------- tables for machines


def leaderboard_columns(trials: Sequence[TrialRecord], searched: Sequence[str]) -> dict[str, list[Cell]]:
    """All trials as columns, the completed ones first and of these the best; numbers stay numbers.

    Trials that were answered from an equal one are left out; None stands for what a trial does not have.
    """
    leaders = rank_trials(trials)
    known = {row.number for row in leaders}
    others = [row for row in trials if row.duplicate_of is None and row.number not in known]
    ordered = [*leaders, *sorted(others, key=lambda row: row.number)]
    columns: dict[str, list[Cell]] = {
        "rank": [*range(1, len(leaders) + 1), *([None] * len(others))],
        "trial": [row.number for row in ordered],
        "state": [row.state.value for row in ordered],
        "val_accuracy": [row.value for row in ordered],
        "network": [row.recipe.label for row in ordered],
        "parameters": [row.parameters or None for row in ordered],
        "epochs": [row.epochs for row in ordered],
        "seconds": [row.seconds for row in ordered],
    }
    values = [_recipe_values(row.recipe, searched) for row in ordered]
    columns |= {name: [cells[place] for cells in values] for place, name in enumerate(searched)}
    return {**columns, "run_id": [row.run_id for row in ordered]}


def leaderboard_csv(trials: Sequence[TrialRecord], searched: Sequence[str]) -> str:
    """The same as CSV."""
    columns = leaderboard_columns(trials, searched)
    return _csv([list(columns), *map(list, zip(*columns.values(), strict=True))])


def origins_csv(origins: Mapping[str, str]) -> str:
    """Where each value of a study comes from, as CSV."""
    return _csv([["key", "origin"], *map(list, origins.items())])


def epochs_csv(epochs: Sequence[EpochReport]) -> str:
    """The figures of each epoch, as CSV; what there is none of is empty."""
    names = [field.name for field in dataclasses.fields(EpochReport)]
    return _csv([names, *([getattr(report, name) for name in names] for report in epochs)])


def class_scores_csv(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Precision, recall, F1 and images of each class, as CSV; what is undefined is 0."""
    body: list[list[Cell]] = [
        [name, *(round(share, 4) for share in (score.precision, score.recall, score.f1)), score.support]
        for name, score in zip(classes, class_scores(confusion), strict=True)
    ]
    return _csv([["class", "precision", "recall", "f1", "support"], *body])


def _recipe_values(recipe: Recipe, names: Sequence[str]) -> list[Cell]:
    """A recipe's values; None for what its network does not have."""
    flat = recipe.to_flat_dict()
    family = FAMILIES[recipe.model.family]
    return [flat[name] if name in flat and is_active(name, family, flat) else None for name in names]


def _csv(rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# ---------------------------------------------------------------------------------------- Markdown


def _format_cell(value: Cell) -> str:
    return "-" if value is None else format_value_short(value)


def _escape_markdown(text: str) -> str:
    """A text as one line that Markdown shows as it is."""
    return _BLOCK_START.sub(r"\1\\\2", _SPECIAL_CHARACTERS.sub(r"\\\1", " ".join(text.split())))


def _inline_code(text: str) -> str:
    """A name in the type of code, in a table too."""
    return f"`{text}`"
