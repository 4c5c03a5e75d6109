"""The model versions that a study has registered, and in which state their promotions have left them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils import get_results_from_paginated_fn

from fmnist_search.registry import tags
from fmnist_search.registry.promoters import promoter_is_dead
from fmnist_search.registry.register import is_undecided
from fmnist_search.registry.versions import all_versions

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


def used_seeds(client: MlflowClient, study: str, model: str) -> set[int]:
    """Return the seeds that confirmed the versions of a study and those of a model, as far as their tags tell.

    Earlier versions of this program stored only the seeds of a version's members.
    """
    stored = [version.tags for version in study_versions(client, study)]
    stored += [version.tags for version in all_versions(client, model).values()]
    lists = [version_tags.get(tags.SEEDS) or version_tags.get(tags.MEMBERS, "") for version_tags in stored]
    texts = [text for entries in lists for text in re.split("[,;]", entries)]
    return {int(number[0]) for text in texts if (number := re.search("[0-9]+$", text.strip()))}


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


def registered_runs(client: MlflowClient) -> set[str]:
    """Return the ids of the runs that any registered version comes from, those of an ensemble's members included."""

    def search(count: int, token: str | None) -> list[ModelVersion]:
        return client.search_model_versions(max_results=count, page_token=token)

    found: list[ModelVersion] = get_results_from_paginated_fn(search, PAGE_SIZE)  # type: ignore[no-untyped-call]
    members = (version.tags.get(tags.MEMBER_RUNS, "").split(", ") for version in found)
    return {str(version.run_id) for version in found} | {run_id for run_ids in members for run_id in run_ids if run_id}


def rename_study_of_versions(client: MlflowClient, study: str, renamed: str) -> None:
    """Give the versions that a study has registered its new name."""
    for version in study_versions(client, study):
        client.set_model_version_tag(version.model, str(version.number), tags.STUDY, renamed)
