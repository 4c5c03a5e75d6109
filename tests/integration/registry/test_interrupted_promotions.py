"""Promotions that were killed: the next one goes on with what is there, and registers one version."""

from __future__ import annotations

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from fmnist_search.workspace import Workspace
from tests.integration.conftest import FinishedStudy

MODEL = "fmnist-search"


def versions(study: FinishedStudy) -> list[ModelVersion]:
    found = MlflowClient(study.tracking_uri).search_model_versions(f"name = '{MODEL}'")
    return sorted(found, key=lambda version: int(version.version))


def forget_champion(study: FinishedStudy) -> None:
    """Leave the study as a promotion leaves it that is killed before it stores the champion."""
    url = Workspace.resolve(study.tracking_uri).storage_url
    optuna.load_study(study_name="tiny", storage=url).set_user_attr("champion", {})


@pytest.mark.parametrize("is_decided", [True, False])
def test_a_version_whose_promotion_was_killed_is_used(finished: FinishedStudy, is_decided: bool) -> None:
    client, before = MlflowClient(finished.tracking_uri), versions(finished)[0]
    forget_champion(finished)
    if not is_decided:
        client.delete_registered_model_alias(MODEL, "champion")
        for tag in ("decision", "comparison"):
            client.delete_model_version_tag(MODEL, "1", tag)
    outcome = finished.run("promote", "tiny", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert "version 1 is that of a promotion which was cut short" in outcome.stderr
    assert "finalist" not in outcome.stderr
    (after,) = versions(finished)
    assert {**after.tags, "comparison": ""} == {**before.tags, "comparison": ""}
    assert client.get_model_version_by_alias(MODEL, "champion").version == after.version
    champion = finished.run("status", "tiny", "--json").json["champion"]
    assert champion == outcome.json
    assert (champion["version"], champion["test"]["hits"]) == ("1", int(after.tags["test_hits"]))


def test_a_promotion_that_has_ended_is_repeated_on_request(finished: FinishedStudy) -> None:
    assert finished.run("promote", "tiny").exit_code == 0
    first, second = versions(finished)
    assert first.tags["promotion"] != second.tags["promotion"]
    assert first.tags["promotion"].partition("@")[0] == second.tags["promotion"].partition("@")[0]
