"""Decides which version of a registered model is champion.

Several promotions may run at once, on several machines, and any of them may be killed. A version is created in one
step and MLflow numbers versions in one order. So the champion follows from the versions alone, and every promotion
comes to the same answer. A version stays undecided until its promotion has seen that the alias agrees; what a killed
promotion leaves undecided is decided by the next one.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fmnist_search.errors import UserError
from fmnist_search.recipe.formatting import format_value
from fmnist_search.registry import tags
from fmnist_search.registry.champion_rule import ComparisonResult, ValidationScore, compare_with_champion
from fmnist_search.registry.promoters import promoter_is_dead, promotion_lock
from fmnist_search.registry.register import UNDECIDED_NOTE, is_undecided
from fmnist_search.registry.versions import (
    all_versions,
    get_champion,
    read_validation_score,
    truncate_description,
    version_number,
    version_with_alias,
)

ALIAS_ATTEMPTS = 20
MAX_RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class AliasDecision:
    """The alias that a version has got, and the reason in words."""

    alias: str
    reason: str


def decide_alias(client: MlflowClient, name: str, version: str) -> AliasDecision:
    """Decide about a version: it becomes champion if it beats the champion by more than the noise, else challenger.

    MLflow cannot move an alias atomically. Promotions of one machine therefore decide one after the other, and those
    of several machines correct the aliases until they read back what follows from the versions. Earlier decisions do
    not change.

    Raises:
        UserError: if the version has been deleted, or other promotions keep moving the aliases.
    """
    number = int(version)
    with promotion_lock(client.tracking_uri):
        history = _settle_aliases(client, name, number)
        for other, stored in history.versions.items():
            if is_undecided(stored) and (
                other == number or promoter_is_dead(stored.tags[tags.PROMOTER], stored.creation_timestamp)
            ):
                _write_decision(client, stored, history.comparison(other))
    reason = str(client.get_model_version(name, version).tags[tags.COMPARISON])
    champion = version_number(get_champion(client, name))
    if champion == number:
        return AliasDecision(tags.CHAMPION, reason)
    replaced = f"; version {champion} has replaced it" if history.comparison(number).result.is_better else ""
    return AliasDecision(tags.CHALLENGER, reason + replaced)


def _settle_aliases(client: MlflowClient, name: str, number: int) -> ChampionHistory:
    """Set the aliases until they agree with the versions, and return the history that follows from these."""
    scores: dict[int, ValidationScore | None] = {}
    for attempt in range(ALIAS_ATTEMPTS):
        if attempt > 1:
            time.sleep(random.uniform(0, MAX_RETRY_SECONDS))  # so that promotions do not move them in step
        versions = all_versions(client, name)
        if number not in versions:
            raise UserError(f"model {name!r}: version {number} was deleted during its promotion; promote again")
        history = ChampionHistory(client, versions, scores)
        expected = {tags.CHAMPION: history.champion, tags.CHALLENGER: history.challenger}
        wrong = {
            alias: target
            for alias, target in expected.items()
            if target and target != version_number(version_with_alias(client, name, alias))
        }
        if not wrong or tags.DECISION in versions[number].tags:
            return history
        for alias, target in wrong.items():
            _retry_once(functools.partial(client.set_registered_model_alias, name, alias, str(target)))
    raise UserError(
        f"model {name!r}: other promotions keep moving the alias {tags.CHAMPION!r}; wait for them, and promote again"
    )


@dataclass(frozen=True)
class _VersionComparison:
    """The comparison of a promoted version with the champion of the versions before it, if there was one."""

    result: ComparisonResult
    champion: int | None


class ChampionHistory:
    """The champion as it follows from the versions of a model alone.

    Promoted versions are compared in their order, each with the champion of those before it. The first of these
    champions is a tag of the last version that was created while nothing was undecided, so that an alias that was
    moved by hand is respected.
    """

    def __init__(
        self, client: MlflowClient, versions: Mapping[int, ModelVersion], scores: dict[int, ValidationScore | None]
    ):
        self.versions = versions
        self._client = client
        self._scores = scores
        self.champion, compared = self._replay(max(versions))
        self.challenger = max((number for number, made in compared.items() if not made.result.is_better), default=None)

    def comparison(self, number: int) -> _VersionComparison:
        """Return the comparison of a promoted version."""
        return self._replay(number)[1][number]

    def _replay(self, last_number: int) -> tuple[int | None, dict[int, _VersionComparison]]:
        """Return the champion of the versions up to this one, and the comparisons that lead to it."""
        promoted = [
            number
            for number in sorted(self.versions)
            if number <= last_number and self._tags(number).get(tags.PROMOTER)
        ]
        champion, after = None, 0
        for number in promoted:
            if tags.PREVIOUS_CHAMPION in self._tags(number):
                champion = int(self._tags(number)[tags.PREVIOUS_CHAMPION])
                after = int(self._tags(number)[tags.PREVIOUS_VERSIONS])
        champion = champion if champion in self.versions else None  # 0 means none; another may have been deleted
        compared: dict[int, _VersionComparison] = {}
        for number in promoted:
            if number > after:
                compared[number] = _VersionComparison(self._compare(number, champion), champion)
                champion = number if compared[number].result.is_better else champion
        return champion, compared

    def _compare(self, number: int, champion: int | None) -> ComparisonResult:
        if champion is None:
            return ComparisonResult(True, "first", "there was none before")
        selected = tags.SELECTED_ON_VALIDATION
        if selected in self._tags(number) and selected not in self._tags(champion):
            reason = "its weights were selected on its validation images, which the champion's were not"
            return ComparisonResult(
                False, "none", f"{reason}; `fmnist-search evaluate` compares the two on the test images"
            )
        candidate = self._score_of(number)
        if candidate is None:
            return ComparisonResult(False, "none", "its own validation score cannot be read")
        return compare_with_champion(candidate, self._score_of(champion))

    def _score_of(self, number: int) -> ValidationScore | None:
        if number not in self._scores:
            self._scores[number] = read_validation_score(self._client, self.versions[number])
        return self._scores[number]

    def _tags(self, number: int) -> Mapping[str, str]:
        stored: Mapping[str, str] = self.versions[number].tags
        return stored


def _write_decision(client: MlflowClient, version: ModelVersion, comparison: _VersionComparison) -> None:
    """Write the comparison to the description and tags of a version, and the decision itself last."""
    number, result = str(version.version), comparison.result
    if result.is_better:
        role = "champion" if comparison.champion is None else f"champion and replaces version {comparison.champion}"
    else:
        role = f"challenger of version {comparison.champion}"
    text = f"version {number} is {role}: {result.reason}"
    values = {
        tags.COMPARISON: text,
        tags.COMPARED_BY: result.method,
        tags.COMPARED_WITH: str(comparison.champion or "-"),
    }
    if result.difference is not None and result.standard_error is not None:
        values[tags.DIFFERENCE] = format_value(result.difference)
        values[tags.DIFFERENCE_ERROR] = format_value(result.standard_error)
    values[tags.DECISION] = tags.CHAMPION if result.is_better else tags.CHALLENGER
    description = decided_card(version.description or "", str(version.name), number, text, is_champion=result.is_better)
    client.update_model_version(version.name, number, truncate_description(description))
    for key, value in values.items():
        _retry_once(functools.partial(client.set_model_version_tag, version.name, number, key, value))


def decided_card(card: str, name: str, number: str, comparison: str, *, is_champion: bool) -> str:
    """Return a description or a model card with the decision; that of a challenger names the version, not the alias."""
    card = card.replace(UNDECIDED_NOTE, f"{comparison[0].upper()}{comparison[1:]}.")
    return card if is_champion else card.replace(f"models:/{name}@{tags.CHAMPION}", f"models:/{name}/{number}")


def _retry_once(action: Callable[[], None]) -> None:
    """Run the action again if it fails.

    MLflow refuses one of two processes that set an alias or a tag for the first time at once. The second attempt then
    changes the existing one.
    """
    try:
        action()
    except MlflowException:
        action()
