"""The saved view of trials fits into a tag, and addresses name it. test_ui_in_browser.py displays it."""

from __future__ import annotations

import json

from fmnist_search.tracking.ui import MAX_VIEW_HYPERPARAMETERS, VIEW_TAG, run_page_url, runs_page_url, trials_view_tags

MAX_TAG_LENGTH = 5_000
"""Characters of an experiment's tag on older servers of MLflow."""


def test_the_view_of_any_number_of_hyperparameters_fits_into_a_tag() -> None:
    names = [f"model.hyperparameter_with_a_long_name_{number}" for number in range(200)]
    (view,) = trials_view_tags(names).values()
    assert len(view) <= MAX_TAG_LENGTH
    columns = json.loads(json.loads(view)["state"])["selectedColumns"]
    assert [f"params.`{name}`" for name in names[:MAX_VIEW_HYPERPARAMETERS]] == columns[2:-2]


def test_widths_have_no_column_because_the_name_of_a_run_holds_them() -> None:
    (view,) = trials_view_tags(["model.depth", "model.width_1", "batch_size"]).values()
    state = json.loads(json.loads(view)["state"])
    assert "params.`model.width_1`" not in state["selectedColumns"]
    assert {"params.`model.depth`", "params.`batch_size`"} < set(state["selectedColumns"])


def test_the_address_names_the_view_only_if_there_is_one() -> None:
    bare = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    assert runs_page_url("http://127.0.0.1:5000/", "1", {}) == bare
    assert runs_page_url("http://127.0.0.1:5000", "1", {VIEW_TAG: "{}"}) == f"{bare}&viewStateShareKey=trials"
    assert run_page_url("http://127.0.0.1:5000", "1", "abc") == bare.replace("runs", "runs/abc")
