"""The aliases follow from the versions of a model, in any order of decisions and with promotions that are killed."""

from __future__ import annotations

import os
import socket

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DATASETS
from fmnist_search.registry import tags
from fmnist_search.registry.aliases import decide_alias
from fmnist_search.registry.champion_rule import CorrectnessRecord
from fmnist_search.registry.register import UNDECIDED_NOTE, register_version
from fmnist_search.registry.tags import CHALLENGER, CHAMPION
from fmnist_search.registry.versions import get_champion
from tests.unit.registry.registered import (
    DEAD_PROCESS,
    IMAGE_COUNT,
    MISSING_MODEL_URI,
    MISSING_RUN_ID,
    create_version,
    promote_version,
    version_tags,
)


def alias_versions(client: MlflowClient, name: str) -> list[str]:
    """Return the versions that are champion and challenger."""
    return [str(client.get_model_version_by_alias(name, alias).version) for alias in (CHAMPION, CHALLENGER)]


def test_the_first_version_is_champion_and_a_later_one_if_it_is_better_by_more_than_noise(
    client: MlflowClient, name: str
) -> None:
    assert get_champion(client, name) is None
    assert promote_version(client, name, 0.90, 0.90) == ("1", CHAMPION)
    # Better, but not by more than two standard errors.
    assert promote_version(client, name, 0.903, 0.903) == ("2", CHALLENGER)
    assert promote_version(client, name, 0.93, 0.93, split_digest="another") == ("3", CHALLENGER)
    assert alias_versions(client, name) == ["1", "3"]
    assert promote_version(client, name, 0.93, 0.93) == ("4", CHAMPION)
    assert alias_versions(client, name) == ["4", "3"]


def test_tags_and_description_of_a_version_hold_the_decision_and_its_reason(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.90, 0.90)
    promote_version(client, name, 0.905, 0.905)
    promote_version(client, name, 0.93, 0.93, dataset_digest="another")
    first, second, third = (client.get_model_version(name, number) for number in "123")
    assert first.tags["decision"] == CHAMPION
    assert first.tags["comparison"] == "version 1 is champion: there was none before"
    assert second.tags["decision"] == CHALLENGER
    assert (second.tags["compared_by"], second.tags["compared_with"]) == ("unpaired", "1")
    assert float(second.tags["difference"]) == pytest.approx(0.005)
    assert f"{2e2 * float(second.tags['difference_error']):.2f}" in second.tags["comparison"]
    assert second.description == f"A card. V{second.tags['comparison'][1:]}."
    assert "version 3 is challenger of version 1: the champion was evaluated on other data" in third.tags["comparison"]
    assert "difference" not in third.tags


def test_a_model_of_another_dataset_never_replaces_the_champion(client: MlflowClient, name: str) -> None:
    fashion, digits = (DATASETS[dataset].digest for dataset in ("fashion-mnist", "mnist"))
    assert promote_version(client, name, 0.90, 0.90, dataset_digest=fashion) == ("1", CHAMPION)
    assert promote_version(client, name, 0.99, 0.99, dataset_digest=digits) == ("2", CHALLENGER)
    assert promote_version(client, name, 0.93, 0.93, dataset_digest=fashion) == ("3", CHAMPION)
    comparison = client.get_model_version(name, "2").tags["comparison"]
    assert comparison.endswith("on other data (Fashion-MNIST, here MNIST), so the two cannot be compared")


def test_versions_whose_runs_hold_a_record_are_compared_image_by_image(client: MlflowClient, name: str) -> None:
    # The two differ in forty images, all in favour of one: too few for the means, enough image by image.
    correct = np.arange(IMAGE_COUNT) < 0.9 * IMAGE_COUNT
    better = correct.copy()
    better[-40:] = True
    aliases = []
    for row in (correct, better):
        run = client.create_run("0").info.run_id
        record = CorrectnessRecord(np.stack([row] * 2), "d", "s")
        client.log_text(run, record.to_json(), tags.CORRECTNESS_FILE)
        own_tags = version_tags(*record.accuracies, **{tags.CORRECTNESS: tags.CORRECTNESS_FILE})
        version = register_version(client, name, MISSING_MODEL_URI, run, own_tags, "")
        aliases.append(decide_alias(client, name, version).alias)
    assert aliases == [CHAMPION, CHAMPION]
    assert client.get_model_version(name, "2").tags["compared_by"] == "paired"
    # A record that cannot be read, or is about other images, is not used.
    for text in ("{}", CorrectnessRecord(np.stack([better]), "d", "other").to_json()):
        run = client.create_run("0").info.run_id
        client.log_text(run, text, tags.CORRECTNESS_FILE)
        own_tags = version_tags(0.99, 0.99, **{tags.CORRECTNESS: tags.CORRECTNESS_FILE})
        version = register_version(client, name, MISSING_MODEL_URI, run, own_tags, "")
        decide_alias(client, name, version)
        assert client.get_model_version(name, version).tags["compared_by"] == "unpaired"


SCORE_TAGS = ("confirmed_mean", "confirmed_deviation", "confirmed_seeds", "validation_images")


@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, value) for key in SCORE_TAGS for value in (None, "a lot")), *((key, "0") for key in SCORE_TAGS[2:])],
)
def test_a_champion_without_a_validation_score_is_not_replaced(
    client: MlflowClient, name: str, key: str, value: str | None
) -> None:
    own_tags = {k: v for k, v in version_tags(0.5, 0.5).items() if k != key} | ({key: value} if value else {})
    client.create_registered_model(name)
    client.create_model_version(name, source=MISSING_MODEL_URI, run_id=MISSING_RUN_ID, tags=own_tags)
    client.set_registered_model_alias(name, CHAMPION, "1")
    assert promote_version(client, name, 0.9, 0.9) == ("2", CHALLENGER)


def test_a_version_without_a_validation_score_does_not_replace_the_champion(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.5, 0.5)
    assert promote_version(client, name, 0.9, 0.9, confirmed_mean="a lot") == ("2", CHALLENGER)
    assert "its own validation score cannot be read" in client.get_model_version(name, "2").tags["comparison"]


def test_a_version_that_is_deleted_during_its_promotion_is_named(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.90, 0.90)
    deleted = create_version(client, name, 0.93, 0.93)
    client.delete_model_version(name, deleted)
    with pytest.raises(UserError, match="version 2 was deleted during its promotion; promote again"):
        decide_alias(client, name, deleted)
    assert str(get_champion(client, name).version) == "1"  # type: ignore[union-attr]


def test_an_alias_that_was_moved_by_hand_is_respected(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.90, 0.90)
    promote_version(client, name, 0.93, 0.93)
    client.set_registered_model_alias(name, CHAMPION, "1")  # a user goes back
    assert promote_version(client, name, 0.92, 0.92) == ("3", CHAMPION)
    client.delete_registered_model_alias(name, CHAMPION)
    assert promote_version(client, name, 0.5, 0.5) == ("4", CHAMPION)


def test_a_champion_that_was_deleted_is_ignored(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.90, 0.90)
    client.delete_model_version(name, "1")
    assert promote_version(client, name, 0.5, 0.5) == ("2", CHAMPION)


def test_a_decision_does_not_change_later(client: MlflowClient, name: str) -> None:
    first, _ = promote_version(client, name, 0.9)
    assert decide_alias(client, name, first).alias == CHAMPION
    promote_version(client, name, 0.95)
    before = client.get_model_version(name, first)
    decision = decide_alias(client, name, first)
    assert (decision.alias, "version 2 has replaced it" in decision.reason) == (CHALLENGER, True)
    assert client.get_model_version(name, first).tags == before.tags
    client.set_registered_model_alias(name, CHAMPION, first)  # by hand
    assert decide_alias(client, name, "2").alias == CHALLENGER
    assert str(get_champion(client, name).version) == first  # type: ignore[union-attr]


def test_the_last_decision_corrects_an_alias_that_a_slower_promotion_has_set(client: MlflowClient, name: str) -> None:
    # Two promotions at once, as from two machines. The better one is decided first, then the other writes the alias
    # that it has computed before.
    promote_version(client, name, 0.80, 0.80)
    worse, better = create_version(client, name, 0.85, 0.85), create_version(client, name, 0.90, 0.90)
    assert decide_alias(client, name, better).alias == CHAMPION
    client.set_registered_model_alias(name, CHAMPION, worse)
    decision = decide_alias(client, name, worse)
    assert decision.alias == CHALLENGER
    assert "version 2 is champion and replaces version 1" in decision.reason
    assert "version 3 has replaced it" in decision.reason
    assert str(get_champion(client, name).version) == better  # type: ignore[union-attr]


def test_two_undecided_versions_get_the_same_aliases_in_either_order(client: MlflowClient, name: str) -> None:
    # The difference is too small, so the first version stays champion, whichever is decided first.
    first, second = create_version(client, name, 0.900, 0.900), create_version(client, name, 0.901, 0.901)
    assert decide_alias(client, name, second).alias == CHALLENGER
    assert decide_alias(client, name, first).alias == CHAMPION
    assert alias_versions(client, name) == [first, second]


def test_a_version_whose_promotion_was_killed_is_decided_by_the_next_one(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.80, 0.80)
    orphan = create_version(client, name, 0.90, 0.90)
    client.set_model_version_tag(name, orphan, "promoter", DEAD_PROCESS)
    assert promote_version(client, name, 0.85, 0.85) == ("3", CHALLENGER)
    assert alias_versions(client, name) == [orphan, "3"]
    decided = client.get_model_version(name, orphan)
    assert decided.tags["decision"] == CHAMPION
    assert UNDECIDED_NOTE not in decided.description


def test_a_version_whose_promotion_still_runs_is_left_undecided(client: MlflowClient, name: str) -> None:
    alive = create_version(client, name, 0.90, 0.90)
    elsewhere = create_version(client, name, 0.80, 0.80)
    client.set_model_version_tag(name, elsewhere, "promoter", "another-machine 1 5")
    parent = psutil.Process(os.getppid())
    client.set_model_version_tag(
        name, alive, "promoter", f"{socket.gethostname()} {parent.pid} {parent.create_time():.0f}"
    )
    assert promote_version(client, name, 0.70, 0.70) == ("3", CHALLENGER)
    assert str(get_champion(client, name).version) == alive  # type: ignore[union-attr]
    for version in (alive, elsewhere):
        assert "decision" not in client.get_model_version(name, version).tags
