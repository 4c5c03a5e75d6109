"""MLflow's UI: a saved view that shows the main columns of trials, and the addresses of pages.

By default the UI shows neither accuracies nor hyperparameters nor whether a trial was pruned. It stores saved views as
tags of the experiment. A later version that cannot read a view leaves it out of its list; nothing else depends on it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from fmnist_search.tracking import metric_names, tag_names

VIEW_NAME = "trials"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_NAME}"
MAX_VIEW_HYPERPARAMETERS = 16
"""Older servers hold 5,000 characters in a tag. The other hyperparameters can be shown with the button Columns."""

WORKFLOW_QUERY = "?workflowType=machine_learning"
"""Without this a page opens with the menus for language models."""

FIRST_COLUMNS = (f"tags.`{tag_names.STATE}`", f"metrics.`{metric_names.BEST_VAL_ACCURACY}`")
LAST_COLUMNS = (f"metrics.`{metric_names.PARAMETER_COUNT}`", "attributes.`Duration`")
NAME_COLUMN, NAME_COLUMN_WIDTH, METRIC_COLUMN_WIDTH = "attributes.`Run Name`", 260, 135
"""Widths in pixels, enough for the names of our runs and metrics."""


def trials_view_tags(hyperparameters: Sequence[str]) -> dict[str, str]:
    """Return the experiment tag of the view: state and accuracy, then the hyperparameters, the newest run first.

    Widths are left out because the name of a run contains them. The UI nests trials below their study only if runs
    are sorted by time, and it loads the first hundred runs, which should be those of the last study.
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
        "runsHiddenMode": "SHOW_ALL",  # in charts; by default the first ten
    }
    now = int(time.time() * 1000)
    return {VIEW_TAG: json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})}


def runs_page_url(server: str, experiment_id: str, experiment_tags: Mapping[str, str]) -> str:
    """Return the address of an experiment's runs, in the view of trials if it has one."""
    view = f"&viewStateShareKey={VIEW_NAME}" if VIEW_TAG in experiment_tags else ""
    return f"{_experiment_url(server, experiment_id)}/runs{WORKFLOW_QUERY}{view}"


def run_page_url(server: str, experiment_id: str, run_id: str) -> str:
    """Return the address of the page of a run."""
    return f"{_experiment_url(server, experiment_id)}/runs/{run_id}{WORKFLOW_QUERY}"


def _experiment_url(server: str, experiment_id: str) -> str:
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}"
