"""The aliases that follow from the versions, the test images' record, and images in the model's form."""

from __future__ import annotations

import os
import socket
import statistics

import mlflow
import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

from fmnist_search.errors import UserError
from fmnist_search.recipe.datasets import DATASETS
from fmnist_search.registry import versions
from fmnist_search.registry.champion_rule import CorrectnessRecord
from fmnist_search.registry.versions import (
    CHALLENGER,
    CHAMPION,
    DESCRIPTION_LIMIT,
    UNDECIDED_NOTE,
    check_model_name,
    decide_alias,
    get_champion,
    get_version,
    read_test_result,
    record_test_evaluation,
    register_version,
    truncate_description,
)
from fmnist_search.results.statistics import wilson

# pytest would take it for a test.
parse_test_record = read_test_result
del read_test_result

IMAGE_COUNT = 10_848
MISSING_MODEL_URI = "s3://nowhere/model"
MISSING_RUN_ID = "0" * 32


def version_tags(*accuracies: float, **changes: str) -> dict[str, str]:
    """What a version of these figures says of itself."""
    return {
        "dataset_digest": "d",
        "split_digest": "s",
        "confirmed_mean": str(statistics.fmean(accuracies)),
        "confirmed_deviation": str(statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0),
        "confirmed_seeds": str(len(accuracies)),
        "validation_images": str(IMAGE_COUNT),
        **changes,
    }


# -------------------------------------------------------------------------------------- the aliases


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """An MLflow store of its own, made once: its tables take seconds."""
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of the test's own."""
    return str(request.node.name)


def create_version(client: MlflowClient, name: str, *accuracies: float, **changes: str) -> str:
    """A new version that nobody has decided yet."""
    return register_version(
        client,
        name,
        MISSING_MODEL_URI,
        MISSING_RUN_ID,
        version_tags(*accuracies, **changes),
        f"A card. {UNDECIDED_NOTE}",
    )


def promote_version(client: MlflowClient, name: str, *accuracies: float, **changes: str) -> tuple[str, str]:
    """A new version of these figures: its number, and the alias that it gets."""
    version = create_version(client, name, *accuracies, **changes)
    return version, decide_alias(client, name, version).alias


def alias_versions(client: MlflowClient, name: str) -> list[str]:
    """The versions that are champion and challenger."""
    return [str(client.get_model_version_by_alias(name, alias).version) for alias in (CHAMPION, CHALLENGER)]


def test_the_first_version_is_champion_and_a_later_one_only_past_the_noise(client: MlflowClient, name: str) -> None:
    assert get_champion(client, name) is None
    assert promote_version(client, name, 0.90, 0.90) == ("1", CHAMPION)
    # Better, but not by more than chance.
    assert promote_version(client, name, 0.903, 0.903) == ("2", CHALLENGER)
    assert promote_version(client, name, 0.93, 0.93, split_digest="another") == ("3", CHALLENGER)
    assert alias_versions(client, name) == ["1", "3"]
    assert promote_version(client, name, 0.93, 0.93) == ("4", CHAMPION)
    assert alias_versions(client, name) == ["4", "3"]


def test_a_version_says_what_was_decided_and_why(client: MlflowClient, name: str) -> None:
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
    assert "version 3 is challenger of version 1: it was judged on other data" in third.tags["comparison"]
    assert "difference" not in third.tags


def test_a_model_of_another_dataset_never_takes_the_place_of_the_champion(client: MlflowClient, name: str) -> None:
    fashion, digits = (DATASETS[dataset].digest for dataset in ("fashion-mnist", "mnist"))
    assert promote_version(client, name, 0.90, 0.90, dataset_digest=fashion) == ("1", CHAMPION)
    assert promote_version(client, name, 0.99, 0.99, dataset_digest=digits) == ("2", CHALLENGER)
    assert promote_version(client, name, 0.93, 0.93, dataset_digest=fashion) == ("3", CHAMPION)
    told = client.get_model_version(name, "2").tags["comparison"]
    assert told.endswith("it was judged on other data (Fashion-MNIST, here MNIST), so nothing compares")


def test_versions_whose_runs_hold_a_record_compare_image_by_image(client: MlflowClient, name: str) -> None:
    # The same images are right but for forty, all in favour of one: too few for the means, enough for the images.
    right = np.arange(IMAGE_COUNT) < 0.9 * IMAGE_COUNT
    better = right.copy()
    better[-40:] = True
    aliases = []
    for row in (right, better):
        run = client.create_run("0").info.run_id
        hits = CorrectnessRecord(np.stack([row] * 2), "d", "s")
        client.log_text(run, hits.to_json(), versions.CORRECTNESS_FILE)
        tags = version_tags(*hits.accuracies, **{versions.CORRECTNESS_TAG: versions.CORRECTNESS_FILE})
        aliases.append(
            decide_alias(client, name, register_version(client, name, MISSING_MODEL_URI, run, tags, "")).alias
        )
    assert aliases == [CHAMPION, CHAMPION]
    assert client.get_model_version(name, "2").tags["compared_by"] == "paired"
    # A record that cannot be read, or tells of other images, is none.
    for text in ("{}", CorrectnessRecord(np.stack([better]), "d", "other").to_json()):
        run = client.create_run("0").info.run_id
        client.log_text(run, text, versions.CORRECTNESS_FILE)
        tags = version_tags(0.99, 0.99, **{versions.CORRECTNESS_TAG: versions.CORRECTNESS_FILE})
        version = register_version(client, name, MISSING_MODEL_URI, run, tags, "")
        decide_alias(client, name, version)
        assert client.get_model_version(name, version).tags["compared_by"] == "unpaired"


SCORE_TAGS = ("confirmed_mean", "confirmed_deviation", "confirmed_seeds", "validation_images")


@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, value) for key in SCORE_TAGS for value in (None, "a lot")), *((key, "0") for key in SCORE_TAGS[2:])],
)
def test_a_champion_without_figures_of_ours_is_not_beaten(
    client: MlflowClient, name: str, key: str, value: str | None
) -> None:
    tags = {k: v for k, v in version_tags(0.5, 0.5).items() if k != key} | ({key: value} if value else {})
    client.create_registered_model(name)
    client.create_model_version(name, source=MISSING_MODEL_URI, run_id=MISSING_RUN_ID, tags=tags)
    client.set_registered_model_alias(name, CHAMPION, "1")
    assert promote_version(client, name, 0.9, 0.9) == ("2", CHALLENGER)


def test_an_alias_that_was_moved_by_hand_counts(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.90, 0.90)
    promote_version(client, name, 0.93, 0.93)
    client.set_registered_model_alias(name, CHAMPION, "1")  # somebody goes back
    assert promote_version(client, name, 0.92, 0.92) == ("3", CHAMPION)
    client.delete_registered_model_alias(name, CHAMPION)
    assert promote_version(client, name, 0.5, 0.5) == ("4", CHAMPION)


def test_a_champion_that_was_deleted_is_none(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.90, 0.90)
    client.delete_model_version(name, "1")
    assert promote_version(client, name, 0.5, 0.5) == ("2", CHAMPION)


def test_what_was_decided_stays_so(client: MlflowClient, name: str) -> None:
    first, _ = promote_version(client, name, 0.9)
    assert decide_alias(client, name, first).alias == CHAMPION
    promote_version(client, name, 0.95)
    before = client.get_model_version(name, first)
    claim = decide_alias(client, name, first)
    assert (claim.alias, "version 2 has taken its place" in claim.reason) == (CHALLENGER, True)
    assert client.get_model_version(name, first).tags == before.tags
    client.set_registered_model_alias(name, CHAMPION, first)  # by hand
    assert decide_alias(client, name, "2").alias == CHALLENGER
    assert str(get_champion(client, name).version) == first  # type: ignore[union-attr]


def test_whoever_decides_last_sets_right_what_a_slower_one_set_wrong(client: MlflowClient, name: str) -> None:
    # Two promotions on their way, as from two machines; the better is decided first, then the other writes what it
    # has found out before.
    promote_version(client, name, 0.80, 0.80)
    worse, better = create_version(client, name, 0.85, 0.85), create_version(client, name, 0.90, 0.90)
    assert decide_alias(client, name, better).alias == CHAMPION
    client.set_registered_model_alias(name, CHAMPION, worse)
    claim = decide_alias(client, name, worse)
    assert claim.alias == CHALLENGER
    assert "version 2 is champion in the place of version 1" in claim.reason
    assert "version 3 has taken its place" in claim.reason
    assert str(get_champion(client, name).version) == better  # type: ignore[union-attr]


def test_who_comes_while_another_is_on_its_way_agrees_with_it(client: MlflowClient, name: str) -> None:
    # Between the two lies too little to tell, so the one that came first stays, whoever is decided first.
    first, second = create_version(client, name, 0.900, 0.900), create_version(client, name, 0.901, 0.901)
    assert decide_alias(client, name, second).alias == CHALLENGER
    assert decide_alias(client, name, first).alias == CHAMPION
    assert alias_versions(client, name) == [first, second]


# -------------------------------------------------------------------------- what died on the way


def mark_process_dead(client: MlflowClient, name: str, version: str) -> None:
    """Let a version be one of a process that is gone: none has this number and began at that time."""
    client.set_model_version_tag(name, version, "promoter", f"{socket.gethostname()} {os.getpid()} 5")


def test_a_version_whose_promotion_died_is_decided_by_the_next(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.80, 0.80)
    orphan = create_version(client, name, 0.90, 0.90)
    mark_process_dead(client, name, orphan)
    assert promote_version(client, name, 0.85, 0.85) == ("3", CHALLENGER)
    assert alias_versions(client, name) == [orphan, "3"]
    settled = client.get_model_version(name, orphan)
    assert settled.tags["decision"] == CHAMPION
    assert UNDECIDED_NOTE not in settled.description


def test_a_version_whose_promotion_lives_is_left_to_it(client: MlflowClient, name: str) -> None:
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


def test_a_model_that_was_never_registered_is_deleted_unless_somebody_is_at_it(client: MlflowClient, name: str) -> None:
    run = client.create_run("0").info.run_id
    here, dead = socket.gethostname(), f"{socket.gethostname()} {os.getpid()} 5"
    marks = {
        "orphan": {"registered_model": name, "promoter": dead},
        "mine": {"registered_model": name, "promoter": versions._process_identity()},
        "elsewhere": {"registered_model": name, "promoter": f"not-{here} 1 5"},
        "of another name": {"registered_model": f"{name} too", "promoter": dead},
        "somebody's own": {},
    }
    models = {
        kind: client.create_logged_model("0", name="model", source_run_id=run, tags=tags).model_id
        for kind, tags in marks.items()
    }
    whole = client.create_logged_model("0", name="model", source_run_id=run, tags=marks["orphan"]).model_id
    client.create_registered_model(name)
    mlflow.set_tracking_uri(client.tracking_uri)  # the store looks for the model there
    client.create_model_version(name, source=f"models:/{whole}", run_id=run)
    versions.delete_orphans(client, name, "0")
    left = {model.model_id: model for model in client.search_logged_models(["0"])}
    assert {kind for kind, model in models.items() if model in left} == marks.keys() - {"orphan"}
    assert "promoter" not in left[whole].tags
    # The run was opened for the model, and nobody is left to close it.
    assert client.get_run(run).info.status == "FINISHED"


# -------------------------------------------------------------------------- names and descriptions


def test_a_name_that_a_prompt_has_is_refused_before_anything_is_trained(client: MlflowClient) -> None:
    check_model_name(client, "nobody has this")
    client.create_registered_model("a model")
    check_model_name(client, "a model")
    client.register_prompt("a_prompt", "Say {{it}}.")
    with pytest.raises(UserError, match="'a_prompt' is the name of a prompt in MLflow; choose another"):
        check_model_name(client, "a_prompt")


@pytest.mark.parametrize("name", ["mine", "my model", "a.b-c_d+e", "model@home", "Größe", "1", "latest", "m-1"])
def test_every_name_that_a_study_file_takes_can_be_registered_and_found(client: MlflowClient, name: str) -> None:
    assert promote_version(client, name, 0.9) == ("1", CHAMPION)
    assert str(get_version(client, f"models:/{name}@champion").version) == "1"
    assert str(get_version(client, f"models:/{name}/1").version) == "1"


def test_a_long_description_is_cut_and_says_so(client: MlflowClient, name: str) -> None:
    assert truncate_description("short") == "short"
    assert len(truncate_description("x" * DESCRIPTION_LIMIT)) == DESCRIPTION_LIMIT
    long = truncate_description("x" * (DESCRIPTION_LIMIT + 1))
    assert len(long) == DESCRIPTION_LIMIT
    assert "model_card.md" in long
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

    assert SqlModelVersion.description.type.length == DESCRIPTION_LIMIT


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("models:/missing@champion", "does not exist"),
        ("models:/missing/3", "does not exist"),
        ("models:/missing", "does not exist"),
        ("models:/missing/1/2", "does not exist"),
        ("missing", "is no address of a registered model"),
    ],
)
def test_an_address_without_a_model_is_one_line_that_says_how_to_get_one(
    uri: str, fault: str, client: MlflowClient
) -> None:
    with pytest.raises(UserError) as caught:
        get_version(client, uri)
    (line,) = caught.value.lines
    assert line.startswith(f"model {uri!r}: {fault}")
    assert "models:/fmnist-search" in line
    assert "\n" not in line


def test_every_look_at_the_test_images_is_counted(client: MlflowClient, name: str) -> None:
    promote_version(client, name, 0.9)
    address = f"models:/{name}/1"
    assert parse_test_record(get_version(client, address)) is None
    for looks in (1, 2):
        assert record_test_evaluation(client, get_version(client, address), wilson(9_000 + looks, 10_000)) == looks
        assert parse_test_record(get_version(client, address)) == (wilson(9_000 + looks, 10_000), looks)
