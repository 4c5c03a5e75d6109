"""The note of a study's MLflow run, in Markdown. Imports neither torch nor MLflow nor Optuna.

Text from outside (the name and the question of a study, findings) is escaped: it shows as it is and adds no markup.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from fmnist_search.config.domain import Boundary, Domain, Range, boundary_of
from fmnist_search.config.sections import Budget
from fmnist_search.recipe.datasets import get_dataset
from fmnist_search.recipe.formatting import format_value_short, short_names
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.tables import Cell, recipe_values
from fmnist_search.results.champion import Champion
from fmnist_search.results.own_costs import cost_label
from fmnist_search.results.study import (
    Importances,
    StudySummary,
    TrialRecord,
    front_trials,
    paused_trials,
    trial_cost,
)
from fmnist_search.results.training import TrialState
from fmnist_search.text import escape_markdown, markdown_table

MAX_LEADERS = 10
MAX_FRONT = 20
MAX_IMPORTANCES = 5


def study_note(
    summary: StudySummary,
    searched: Sequence[str],
    space: Mapping[str, Domain | str],
    *,
    budget: Budget | None = None,
    importances: Importances | None = None,
) -> str:
    """Return the note of a study: question, best trial, budget, findings, leaderboard, search space, next commands.

    A study that minimizes a cost has its Pareto front before the leaderboard. Others have the front of accuracy and
    seconds per epoch behind it.

    Args:
        summary: The study's results.
        searched: Dotted names of the hyperparameters that the leaderboard shows.
        space: The domain, or its text, of each key of the study file. Values at an end of a domain are marked; this
            needs the domain itself.
        budget: The study's limits; None leaves out the table of what was used.
        importances: Importances of the hyperparameters; None if there are too few completed trials.
    """
    parts = [
        f"# {escape_markdown(summary.name)}",
        escape_markdown(summary.question),
        _outcome(summary),
        _trial_counts(summary),
    ]
    if budget:
        parts.append(_budget_table(summary, budget))
    if findings := _findings(summary, importances):
        parts.append("## Findings\n\n" + "\n".join(f"- {escape_markdown(line)}" for line in findings))
    metric = summary.cost_metric
    if metric and summary.front:
        parts += ["## Pareto front", _front(summary.front, searched, metric)]
    if summary.ranked_trials:
        parts += ["## Leaderboard", _leaderboard(summary.ranked_trials[:MAX_LEADERS], searched, metric)]
    if not metric and len(front := front_trials(summary.trials, "seconds_per_epoch")) > 1:
        title = f"## Pareto front of accuracy and {cost_label('seconds_per_epoch')}"
        parts += [title, _front(front, searched, "seconds_per_epoch")]
    if paused := paused_trials(summary.trials):
        parts += ["## Paused trials", _paused(paused[:MAX_LEADERS])]
    parts += ["## Search space", _space_table(summary, space)]
    parts.append("## Next commands\n\n" + "\n".join(f"    {command}" for command in _next_commands(summary)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _outcome(summary: StudySummary) -> str:
    best = summary.best
    if best is None:
        return "No trial has completed yet."
    lines = [f"**Best trial**: {best.number} ({best.recipe.label}), validation accuracy {best.value:.2%}."]
    if champion := summary.champion:
        confirmed, test = champion.confirmed_score, champion.test
        lines.append(
            f"**Confirmed**: trial {confirmed.trial} ({champion.recipe.label}), validation accuracy {confirmed} on "
            f"fresh seeds; test accuracy {test.value:.2%} (95 % interval {test.low:.2%} to {test.high:.2%}), measured "
            f"once. Its model was trained for {_describe_training(champion.recipe)}."
        )
        reason = f": {escape_markdown(champion.verdict)}" if champion.verdict else ""
        lines.append(
            f"**Registered**: {_inline_code(champion.address)}, {champion.alias} when it was compared{reason}."
        )
    return "\n\n".join(lines)


def _describe_training(recipe: Recipe) -> str:
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    images = f"{recipe.data.training_count:,} images of {get_dataset(recipe.data.dataset).title}"
    return f"{epochs} on {images}, schedule {recipe.schedule.name}"


def _trial_counts(summary: StudySummary) -> str:
    counts = ", ".join(f"{summary.count(state)} {state.value}" for state in TrialState if summary.count(state))
    minutes = sum(trial.seconds for trial in summary.trials) / 60
    return (
        f"Trials: {counts or 'none'}, in {minutes:.1f} minutes of training. {summary.stop_reason.value.capitalize()}."
    )


def _budget_table(summary: StudySummary, budget: Budget) -> str:
    counted = [trial for trial in summary.trials if trial.is_final and trial.duplicate_of is None]
    epochs = sum(trial.epochs for trial in (*counted, *paused_trials(summary.trials)))
    rows = [
        ("trials", str(len(counted)), budget.trials),
        ("epochs of all trials", str(epochs), budget.total_epochs),
        ("minutes of search", f"{summary.searched_seconds / 60:.1f}", budget.minutes),
        ("failed trials", str(summary.count(TrialState.FAILED)), budget.failures),
    ]
    body = [[name, used, "no limit" if limit is None else format_value_short(limit)] for name, used, limit in rows]
    return markdown_table([["budget", "used", "limit"], *body])


def _findings(summary: StudySummary, importances: Importances | None) -> list[str]:
    lines = list(summary.boundary_warnings)
    if importances and importances.by_name:
        first = list(importances.by_name.items())[:MAX_IMPORTANCES]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in first)
        lines.insert(0, f"most important, by PED-ANOVA over {importances.trials} completed trials: {shares}")
    return lines


def _front(trials: Sequence[TrialRecord], searched: Sequence[str], metric: str) -> str:
    """Return the most accurate trials of the front, which are at its end, in ascending order of cost."""
    left_out = len(trials) - MAX_FRONT
    note = f"\n\n{left_out} trials with a lower accuracy and a lower cost are left out." if left_out > 0 else ""
    return _leaderboard(trials[-MAX_FRONT:], searched, metric) + note


def _leaderboard(trials: Sequence[TrialRecord], searched: Sequence[str], metric: str | None) -> str:
    names = [name for name in searched if not name.startswith("model.width_")]  # the network's label has its widths
    head = ["trial", "network", "validation accuracy", *([cost_label(metric)] if metric else []), *short_names(names)]
    body = [
        [
            str(trial.number),
            trial.recipe.label,
            f"{trial.value:.2%}",
            *([str(trial_cost(trial, metric) or "-")] if metric else []),
            *map(_format_cell, recipe_values(trial.recipe, names)),
        ]
        for trial in trials
    ]
    return markdown_table([head, *body])


def _paused(trials: Sequence[TrialRecord]) -> str:
    """Return a table of paused trials; the accuracy after their last epoch is predicted with its 90 % interval."""
    head = ["trial", "network", "epochs", "validation accuracy", "predicted"]
    body = [
        [str(t.number), t.recipe.label, str(t.epochs), f"{t.value or 0.0:.2%}", str(t.prediction or "")] for t in trials
    ]
    return markdown_table([head, *body])


def _space_table(summary: StudySummary, space: Mapping[str, Domain | str]) -> str:
    """Return each domain with the values of the winning recipes, marked where they lie at an end of the domain."""
    winners = _winning_recipes(summary.best, summary.champion)
    body = [
        [_inline_code(key), str(domain), *(_format_domain_value(domain, key, recipe) for recipe in winners.values())]
        for key, domain in space.items()
    ]
    return markdown_table([["hyperparameter", "domain", *winners], *body])


def _winning_recipes(best: TrialRecord | None, champion: Champion | None) -> dict[str, Recipe]:
    """Return the recipes of the best and of the confirmed trial, by the heads of their columns."""
    selected = champion.confirmed_score.trial if champion else None
    winners = {}
    if best:
        title = "best and confirmed" if best.number == selected else "best"
        winners[f"trial {best.number}, {title}"] = best.recipe
    if champion and (best is None or best.number != selected):
        winners[f"trial {selected}, confirmed"] = champion.recipe
    return winners


def _format_domain_value(domain: Domain | str, key: str, recipe: Recipe) -> str:
    _, table, name = key.split(".", 2)
    family = recipe.model.family
    if table not in ("common", family):
        return "-"
    dotted_name = f"model.{name}" if table == family or name == "family" else name
    (value,) = recipe_values(recipe, [dotted_name])
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


def _format_cell(value: Cell) -> str:
    return "-" if value is None else format_value_short(value)


def _inline_code(text: str) -> str:
    return f"`{text}`"
