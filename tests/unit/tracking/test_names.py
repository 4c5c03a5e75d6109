"""Names that are written out instead of imported from MLflow, and metric keys that others rely on."""

from __future__ import annotations

import mlflow.utils.mlflow_tags as mlflow_names

from fmnist_search.tracking import metric_names, tag_names


def test_the_tags_of_mlflow_have_mlflows_names() -> None:
    assert tag_names.PARENT_RUN_ID == mlflow_names.MLFLOW_PARENT_RUN_ID
    assert tag_names.NOTE == mlflow_names.MLFLOW_RUN_NOTE
    assert tag_names.LOGGED_ARTIFACTS == mlflow_names.MLFLOW_LOGGED_ARTIFACTS
    assert tag_names.SOURCE_NAME == mlflow_names.MLFLOW_SOURCE_NAME
    assert tag_names.SOURCE_TYPE == mlflow_names.MLFLOW_SOURCE_TYPE
    assert tag_names.GIT_COMMIT == mlflow_names.MLFLOW_GIT_COMMIT
    assert tag_names.USER == mlflow_names.MLFLOW_USER


def test_no_two_names_are_the_same() -> None:
    for module in (metric_names, tag_names):
        constants = {name: value for name, value in vars(module).items() if isinstance(value, str) and name.isupper()}
        names = [value for name, value in constants.items() if not name.endswith("_RUN")]
        assert len(names) == len(set(names))
