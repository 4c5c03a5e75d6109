"""Tests of `reporting.tables`."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from typing import Any

import pandas as pd

from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.tables import class_scores_csv, leaderboard_columns, leaderboard_csv
from fmnist_search.results.objectives import TrialCost
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import TrialState


def make_trial(
    number: int, state: TrialState = TrialState.COMPLETED, value: float | None = 0.9, **changes: Any
) -> TrialRecord:
    recipe = Recipe().replace({"seed": number, "optimizer.learning_rate": 0.123456789})
    return dataclasses.replace(TrialRecord(number, state, value, 3, recipe, seconds=30.0), **changes)


FINISHED_TRIALS = (
    make_trial(0, value=0.8),
    make_trial(1, TrialState.PRUNED, 0.85),
    make_trial(2, value=0.9, parameters=99, mult_adds=55, seconds_per_epoch=9.5),
    make_trial(3, duplicate_of=2),
)
HYPERPARAMETER_NAMES = ["model.depth", "optimizer.name", "optimizer.nesterov"]


def test_the_leaderboard_has_completed_trials_first_and_its_numbers_are_numbers() -> None:
    assert leaderboard_columns(FINISHED_TRIALS, HYPERPARAMETER_NAMES) == {
        "rank": [1, 2, None],
        "trial": [2, 0, 1],
        "state": ["completed", "completed", "pruned"],
        "val_accuracy": [0.9, 0.8, 0.85],
        "network": ["cnn 32-64-128"] * 3,
        "parameters": [99, None, None],
        "mult_adds": [55, None, None],
        "seconds_per_epoch": [9.5, None, None],
        "epochs": [3, 3, 3],
        "seconds": [30.0, 30.0, 30.0],
        "model.depth": [3, 3, 3],
        "optimizer.name": ["adamw"] * 3,
        "optimizer.nesterov": [None] * 3,  # a hyperparameter of sgd only
        "run_id": [None] * 3,
    }


def test_the_leaderboard_of_a_study_that_minimizes_a_cost_has_its_front() -> None:
    costs = [(0.8, 10.0), (0.7, 20.0), (0.9, 30.0)]
    trials = [make_trial(n, value=value, cost=TrialCost("mult_adds", cost)) for n, (value, cost) in enumerate(costs)]
    columns = leaderboard_columns([*trials, make_trial(3, TrialState.FAILED, None)], [])
    assert columns["trial"] == [2, 0, 1, 3]
    assert columns["pareto_front"] == [True, True, False, False]


def test_mlflow_can_store_the_leaderboard_as_a_table() -> None:
    frame = pd.DataFrame(leaderboard_columns(FINISHED_TRIALS, HYPERPARAMETER_NAMES))
    stored = json.loads(frame.to_json(orient="split"))
    assert stored["data"][0] == [1, 2, "completed", 0.9, "cnn 32-64-128", 99, 55, 9.5, 3, 30.0, 3, "adamw", None, None]


def test_the_csv_has_the_values_of_the_leaderboard() -> None:
    head, *body = csv.reader(leaderboard_csv(FINISHED_TRIALS, HYPERPARAMETER_NAMES).splitlines())
    columns = leaderboard_columns(FINISHED_TRIALS, HYPERPARAMETER_NAMES)
    assert head == list(columns)
    assert body[0] == [
        "1",
        "2",
        "completed",
        "0.9",
        "cnn 32-64-128",
        "99",
        "55",
        "9.5",
        "3",
        "30.0",
        "3",
        "adamw",
        "",
        "",
    ]
    assert len(body) == 3
    assert leaderboard_csv((), HYPERPARAMETER_NAMES).splitlines() == [",".join(columns)]


def test_class_names_with_a_comma_are_quoted() -> None:
    assert list(csv.reader(class_scores_csv([[3, 1], [0, 0]], ["a, b", "c"]).splitlines())) == [
        ["class", "precision", "recall", "f1", "support"],
        ["a, b", "1.0", "0.75", "0.8571", "4"],
        ["c", "0.0", "0.0", "0.0", "0"],
    ]


def test_what_commands_read_with_needs_no_heavy_library() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'mlflow', 'optuna', 'matplotlib', 'plotly', 'torchinfo'): sys.modules[name] = None\n"
        "import fmnist_search.reporting.chart_data, fmnist_search.reporting.model_card\n"
        "import fmnist_search.reporting.model_summary, fmnist_search.reporting.study_note\n"
        "from fmnist_search.reporting.tables import leaderboard_csv\n"
        "print(leaderboard_csv((), ['model.depth']), end='')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == leaderboard_csv((), ["model.depth"]), done.stderr
