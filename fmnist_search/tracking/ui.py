"""How an experiment looks in MLflow's UI: a saved view that shows at once what trials are about; addresses of pages.

By itself the UI shows neither accuracies nor hyperparameters nor whether a trial was pruned. It keeps saved views as
tags of the experiment; one that a later version cannot read is left out of its list, and nothing else depends on it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

VIEW_NAME = "trials"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_NAME}"
MAX_VIEW_HYPERPARAMETERS = 16
"""The tag shall be short: older servers hold 5,000 characters. What is left out is behind the button Columns."""

WORKFLOW_QUERY = "?workflowType=machine_learning"
"""Without it a page opens among the menus for language models."""

FIRST_COLUMNS = ("tags.`state`", "metrics.`best/val_accuracy`")
LAST_COLUMNS = ("metrics.`model/parameters`", "attributes.`Duration`")
NAME_COLUMN, NAME_COLUMN_WIDTH, METRIC_COLUMN_WIDTH = "attributes.`Run Name`", 260, 135
"""Pixels, enough for the names of our runs and of our metrics."""


def trials_view_tags(hyperparameters: Sequence[str]) -> dict[str, str]:
    """The tag of an experiment that makes the view: state and accuracy, then these hyperparameters, newest run first.

    Widths are left out: a run's name says them. The UI nests trials below their study only where runs are sorted by
    their time; and of many runs it loads the first hundred, which are to be of the last study.
    """
    shown = [name for name in hyperparameters if not name.startswith("model.width_")][:MAX_VIEW_HYPERPARAMETERS]
    columns = [*FIRST_COLUMNS, *(f"params.`{name}`" for name in shown), *LAST_COLUMNS]
    state = {
        "selectedColumns": columns,
        "columnOrder": [NAME_COLUMN, *columns],
        "columnWidths": {
            NAME_COLUMN: NAME_COLUMN_WIDTH,
            **{column: METRIC_COLUMN_WIDTH for column in columns if column.startswith("metrics.")},
        },
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "runsHiddenMode": "SHOW_ALL",  # in charts; else the first ten
    }
    now = int(time.time() * 1000)
    return {VIEW_TAG: json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})}


def runs_page_url(server: str, experiment_id: str, experiment_tags: Mapping[str, str]) -> str:
    """The address of an experiment's runs, in the view of trials where it has one."""
    view = f"&viewStateShareKey={VIEW_NAME}" if VIEW_TAG in experiment_tags else ""
    return f"{_experiment_url(server, experiment_id)}/runs{WORKFLOW_QUERY}{view}"


def run_page_url(server: str, experiment_id: str, run_id: str) -> str:
    """The address of a run."""
    return f"{_experiment_url(server, experiment_id)}/runs/{run_id}{WORKFLOW_QUERY}"


def _experiment_url(server: str, experiment_id: str) -> str:
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}"
