"""MLflow's UI: a saved view that shows the main columns of trials, and the addresses of pages.

By default the UI shows neither accuracies nor hyperparameters nor whether a trial was pruned. It stores saved views as
tags of the experiment. A later version that cannot read a view leaves it out of its list; nothing else depends on it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fmnist_search.tracking import metric_names, tag_names

VIEW_NAME = "trials"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_NAME}"
MAX_VIEW_HYPERPARAMETERS = 16
"""Older servers hold 5,000 characters in a tag. The other hyperparameters can be shown with the button Columns."""

WORKFLOW_QUERY = "?workflowType=machine_learning"
"""Without this a page opens with the menus for language models."""

CHART_SECTION = "learning curves"
VIEW_CURVES = (
    metric_names.VAL_ACCURACY,
    metric_names.VAL_LOSS,
    metric_names.TRAIN_ACCURACY,
    metric_names.TRAIN_LOSS,
)
LEARNING_RATE = "optimizer.learning_rate"
MAX_SCATTER_RUNS, MAX_PARALLEL_AXES = 100, 3

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
        **_charts_state(shown),
    }
    now = int(time.time() * 1000)
    return {VIEW_TAG: json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})}


def _charts_state(hyperparameters: Sequence[str]) -> dict[str, object]:
    """Return the first charts of the view: the curves, accuracy over the hyperparameters, and that of the study.

    Without them, charts are sorted by the names of their metrics, and figures of one point come first. All are in one
    section, because the UI hides charts without data, such as those of trials while their study is not expanded, but
    no section.
    """
    accuracy = metric_names.VAL_ACCURACY
    charts = [_line_chart(key) for key in VIEW_CURVES]
    if LEARNING_RATE in hyperparameters:
        axes = {"xaxis": {"key": LEARNING_RATE, "type": "PARAM"}, "yaxis": {"key": accuracy, "type": "METRIC"}}
        charts.append({"type": "SCATTER", **axes, "runsCountToCompare": MAX_SCATTER_RUNS})
    first = sorted(hyperparameters, key=lambda name: name != LEARNING_RATE)[:MAX_PARALLEL_AXES]
    charts.append({"type": "PARALLEL", "selectedParams": first, "selectedMetrics": [accuracy]})
    charts.append(_line_chart(metric_names.BEST_VAL_ACCURACY))
    place = {"metricSectionId": CHART_SECTION, "deleted": False}
    section = {"uuid": CHART_SECTION, "name": CHART_SECTION, "display": True, "isReordered": True}
    return {
        "compareRunCharts": [{**chart, **place, "uuid": f"chart-{number}"} for number, chart in enumerate(charts)],
        "compareRunSections": [section],
        "isAccordionReordered": True,  # else sections are sorted by their names
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _line_chart(metric: str) -> dict[str, Any]:
    return {"type": "LINE", "metricKey": metric, "displayName": metric, "lineSmoothness": 0, "xAxisKey": "step"}


def runs_page_url(server: str, experiment_id: str, experiment_tags: Mapping[str, str]) -> str:
    """Return the address of an experiment's runs, in the view of trials if it has one."""
    view = f"&viewStateShareKey={VIEW_NAME}" if VIEW_TAG in experiment_tags else ""
    return f"{_experiment_url(server, experiment_id)}/runs{WORKFLOW_QUERY}{view}"


def run_page_url(server: str, experiment_id: str, run_id: str) -> str:
    """Return the address of the page of a run."""
    return f"{_experiment_url(server, experiment_id)}/runs/{run_id}{WORKFLOW_QUERY}"


def _experiment_url(server: str, experiment_id: str) -> str:
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}"
