"""Tables of trials, epochs, classes and origins, as columns and as CSV. Imports neither torch nor MLflow nor Optuna."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence

from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe, is_active
from fmnist_search.results.statistics import class_scores
from fmnist_search.results.study import TrialRecord, front_trials, rank_trials
from fmnist_search.results.training import EpochReport

Cell = Value | None
DIGITS = 4


def leaderboard_columns(trials: Sequence[TrialRecord], searched: Sequence[str]) -> dict[str, list[Cell]]:
    """Return the leaderboard as columns: completed trials from the best to the worst, then the others by number.

    `searched` names the hyperparameters that get a column. Numbers stay numbers; a cell is None if a trial has no such
    value. Duplicates of earlier trials are left out. If the study minimizes a cost, its front has a column.
    """
    leaders = rank_trials(trials)
    ranked = {trial.number for trial in leaders}
    others = [trial for trial in trials if trial.duplicate_of is None and trial.number not in ranked]
    ordered = [*leaders, *sorted(others, key=lambda trial: trial.number)]
    columns: dict[str, list[Cell]] = {
        "rank": [*range(1, len(leaders) + 1), *([None] * len(others))],
        "trial": [trial.number for trial in ordered],
        "state": [trial.state.value for trial in ordered],
        "val_accuracy": [trial.value for trial in ordered],
        "network": [trial.recipe.label for trial in ordered],
        "parameters": [trial.parameters or None for trial in ordered],
        "mult_adds": [trial.mult_adds or None for trial in ordered],
        "seconds_per_epoch": [trial.seconds_per_epoch or None for trial in ordered],
        "epochs": [trial.epochs for trial in ordered],
        "seconds": [trial.seconds for trial in ordered],
    }
    if metric := next((trial.cost.metric for trial in leaders if trial.cost), None):
        front = {trial.number for trial in front_trials(trials, metric)}
        columns["pareto_front"] = [trial.number in front for trial in ordered]
    values = [recipe_values(trial.recipe, searched) for trial in ordered]
    columns |= {name: [cells[index] for cells in values] for index, name in enumerate(searched)}
    return {**columns, "run_id": [trial.run_id for trial in ordered]}


def displayed_columns(columns: Mapping[str, Sequence[Cell]]) -> dict[str, list[Cell]]:
    """Return columns to look at: numbers with at most `DIGITS` significant digits, and "" in place of None."""
    return {name: [_displayed(cell) for cell in cells] for name, cells in columns.items()}


def _displayed(cell: Cell) -> Cell:
    if isinstance(cell, float):
        return float(f"{cell:.{DIGITS}g}")
    return "" if cell is None else cell


def leaderboard_csv(trials: Sequence[TrialRecord], searched: Sequence[str]) -> str:
    """Return the columns of `leaderboard_columns` as CSV."""
    columns = leaderboard_columns(trials, searched)
    return _csv([list(columns), *map(list, zip(*columns.values(), strict=True))])


def origins_csv(origins: Mapping[str, str]) -> str:
    """Return the origin of each key of a study, such as a file or an option, as CSV."""
    return _csv([["key", "origin"], *map(list, origins.items())])


def epochs_csv(epochs: Sequence[EpochReport]) -> str:
    """Return the report of each epoch as CSV, with the fields of `EpochReport` as columns; None is an empty cell."""
    names = [field.name for field in dataclasses.fields(EpochReport)]
    return _csv([names, *([getattr(report, name) for name in names] for report in epochs)])


def class_scores_csv(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Return precision, recall, F1 and number of images of each class as CSV; an undefined score is 0.

    `confusion` holds counts of images, rows true and columns predicted.
    """
    body: list[list[Cell]] = [
        [name, *(round(share, 4) for share in (score.precision, score.recall, score.f1)), score.support]
        for name, score in zip(classes, class_scores(confusion), strict=True)
    ]
    return _csv([["class", "precision", "recall", "f1", "support"], *body])


def recipe_values(recipe: Recipe, names: Sequence[str]) -> list[Cell]:
    """Return a recipe's values of hyperparameters; None where its network has no such hyperparameter."""
    flat = recipe.to_flat_dict()
    family = FAMILIES[recipe.model.family]
    return [flat[name] if name in flat and is_active(name, family, flat) else None for name in names]


def _csv(rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
