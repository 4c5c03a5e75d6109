"""Versions by their addresses, their descriptions, and the record of the test images."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

from fmnist_search.errors import UserError
from fmnist_search.registry.versions import (
    DESCRIPTION_LIMIT,
    get_version,
    read_test_result,
    record_test_evaluation,
    truncate_description,
)
from fmnist_search.results.statistics import wilson
from tests.unit.registry.registered import promote_version


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("models:/missing@champion", "does not exist"),
        ("models:/missing/3", "does not exist"),
        ("models:/missing/latest", "does not exist"),
        *(
            (address, "is not the address of a registered model")
            for address in (
                *("missing", "", "http://127.0.0.1:9/x", "/tmp", "s3://bucket/model", "models:/", "models:/missing"),
                *("models:/missing/1/2", "models:/missing@", "models:/missing/0", "models:/missing/²"),
                *(f"models:/missing/{10**20}", f"models:/m-{'0' * 32}"),
            )
        ),
    ],
)
def test_an_address_without_a_model_gives_one_line_with_a_remedy(uri: str, fault: str, client: MlflowClient) -> None:
    with pytest.raises(UserError) as caught:
        get_version(client, uri)
    (line,) = caught.value.lines
    assert line.startswith(f"model {uri!r}: {fault}")
    assert "models:/fmnist-search" in line
    assert "\n" not in line


def test_the_latest_version_is_the_one_with_the_highest_number(client: MlflowClient, name: str) -> None:
    for _ in range(2):
        promote_version(client, name, 0.9)
    assert get_version(client, f"models:/{name}/latest").version == 2


def test_every_evaluation_on_the_test_images_is_counted(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.9)
    address = f"models:/{name}/1"
    assert read_test_result(get_version(client, address)) is None
    for count in (1, 2):
        assert record_test_evaluation(client, get_version(client, address), wilson(9_000 + count, 10_000)) == count
        assert read_test_result(get_version(client, address)) == (wilson(9_000 + count, 10_000), count)


def test_a_long_description_is_cut_with_a_note(client: MlflowClient, name: str) -> None:
    assert truncate_description("short") == "short"
    assert len(truncate_description("x" * DESCRIPTION_LIMIT)) == DESCRIPTION_LIMIT
    long = truncate_description("x" * (DESCRIPTION_LIMIT + 1))
    assert len(long) == DESCRIPTION_LIMIT
    assert "model_card.md" in long
    assert SqlModelVersion.description.type.length == DESCRIPTION_LIMIT
