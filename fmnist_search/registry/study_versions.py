"""The model versions that a study has registered, and in which state their promotions have left them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils import get_results_from_paginated_fn

from fmnist_search.registry import tags
from fmnist_search.registry.promoters import promoter_is_dead
from fmnist_search.registry.register import is_undecided

PAGE_SIZE = 1_000


@dataclass(frozen=True)
class StudyVersion:
    """A version of a registered model that a study has registered.

    It is abandoned if the promotion that was to decide about it has ended.
    """

    model: str
    number: int
    tags: Mapping[str, str]
    is_abandoned: bool

    @property
    def uri(self) -> str:
        """The address of the version."""
        return f"models:/{self.model}/{self.number}"

    @property
    def is_tested(self) -> bool:
        """Whether it was evaluated on the test images."""
        return tags.TEST_HITS in self.tags

    @property
    def promotion(self) -> str | None:
        """The key of its promotion; None if an earlier version of this program has registered it."""
        return self.tags.get(tags.PROMOTION)


def study_versions(client: MlflowClient, study: str) -> list[StudyVersion]:
    """Return the versions that the studies of this name have registered, by model and number."""

    def search(count: int, token: str | None) -> list[ModelVersion]:
        return client.search_model_versions(f"tags.`{tags.STUDY}` = '{study}'", count, page_token=token)

    found: list[ModelVersion] = get_results_from_paginated_fn(search, PAGE_SIZE)  # type: ignore[no-untyped-call]
    versions = [
        StudyVersion(
            str(version.name),
            int(version.version),
            version.tags,
            is_undecided(version) and promoter_is_dead(version.tags[tags.PROMOTER], version.creation_timestamp),
        )
        for version in found
    ]
    return sorted(versions, key=lambda version: (version.model, version.number))
