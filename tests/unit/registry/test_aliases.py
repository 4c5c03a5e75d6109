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
from fmnist_search.registry.champion_rule import Hits
from fmnist_search.registry.versions import (
    CHALLENGER,
    CHAMPION,
    DESCRIPTION_LIMIT,
    UNDECIDED,
    champion,
    check_name,
    claim_alias,
    record_test,
    register,
    shortened,
    test_record,
    version_of,
)
from fmnist_search.training.evaluation import wilson

# pytest would take it for a test.
recorded = test_record
del test_record

IMAGES = 10_848
NOWHERE = "s3://nowhere/model"
NO_RUN = "0" * 32


def tags_of(*accuracies: float, **changes: str) -> dict[str, str]:
    """What a version of these figures says of itself."""
    return {
        "dataset_digest": "d",
        "split_digest": "s",
        "confirmed_mean": str(statistics.fmean(accuracies)),
        "confirmed_deviation": str(statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0),
        "confirmed_seeds": str(len(accuracies)),
        "validation_images": str(IMAGES),
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


def made(client: MlflowClient, name: str, *accuracies: float, **changes: str) -> str:
    """A new version that nobody has decided yet."""
    return register(client, name, NOWHERE, NO_RUN, tags_of(*accuracies, **changes), f"A card. {UNDECIDED}")


def promoted(client: MlflowClient, name: str, *accuracies: float, **changes: str) -> tuple[str, str]:
    """A new version of these figures: its number, and the alias that it gets."""
    version = made(client, name, *accuracies, **changes)
    return version, claim_alias(client, name, version).alias


def holders(client: MlflowClient, name: str) -> list[str]:
    """The versions that are champion and challenger."""
    return [str(client.get_model_version_by_alias(name, alias).version) for alias in (CHAMPION, CHALLENGER)]


def test_the_first_version_is_champion_and_a_later_one_only_past_the_noise(client: MlflowClient, name: str) -> None:
    assert champion(client, name) is None
    assert promoted(client, name, 0.90, 0.90) == ("1", CHAMPION)
    # Better, but not by more than chance.
    assert promoted(client, name, 0.903, 0.903) == ("2", CHALLENGER)
    assert promoted(client, name, 0.93, 0.93, split_digest="another") == ("3", CHALLENGER)
    assert holders(client, name) == ["1", "3"]
    assert promoted(client, name, 0.93, 0.93) == ("4", CHAMPION)
    assert holders(client, name) == ["4", "3"]


def test_a_version_says_what_was_decided_and_why(client: MlflowClient, name: str) -> None:
    promoted(client, name, 0.90, 0.90)
    promoted(client, name, 0.905, 0.905)
    promoted(client, name, 0.93, 0.93, dataset_digest="another")
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
    assert promoted(client, name, 0.90, 0.90, dataset_digest=fashion) == ("1", CHAMPION)
    assert promoted(client, name, 0.99, 0.99, dataset_digest=digits) == ("2", CHALLENGER)
    assert promoted(client, name, 0.93, 0.93, dataset_digest=fashion) == ("3", CHAMPION)
    told = client.get_model_version(name, "2").tags["comparison"]
    assert told.endswith("it was judged on other data (Fashion-MNIST, here MNIST), so nothing compares")


def test_versions_whose_runs_hold_a_record_compare_image_by_image(client: MlflowClient, name: str) -> None:
    # The same images are right but for forty, all in favour of one: too few for the means, enough for the images.
    right = np.arange(IMAGES) < 0.9 * IMAGES
    better = right.copy()
    better[-40:] = True
    aliases = []
    for row in (right, better):
        run = client.create_run("0").info.run_id
        hits = Hits(np.stack([row] * 2), "d", "s")
        client.log_text(run, hits.to_json(), versions.HITS_FILE)
        tags = tags_of(*hits.accuracies, **{versions.HITS: versions.HITS_FILE})
        aliases.append(claim_alias(client, name, register(client, name, NOWHERE, run, tags, "")).alias)
    assert aliases == [CHAMPION, CHAMPION]
    assert client.get_model_version(name, "2").tags["compared_by"] == "paired"
    # A record that cannot be read, or tells of other images, is none.
    for text in ("{}", Hits(np.stack([better]), "d", "other").to_json()):
        run = client.create_run("0").info.run_id
        client.log_text(run, text, versions.HITS_FILE)
        tags = tags_of(0.99, 0.99, **{versions.HITS: versions.HITS_FILE})
        version = register(client, name, NOWHERE, run, tags, "")
        claim_alias(client, name, version)
        assert client.get_model_version(name, version).tags["compared_by"] == "unpaired"


FIGURES = ("confirmed_mean", "confirmed_deviation", "confirmed_seeds", "validation_images")


@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, value) for key in FIGURES for value in (None, "a lot")), *((key, "0") for key in FIGURES[2:])],
)
def test_a_champion_without_figures_of_ours_is_not_beaten(
    client: MlflowClient, name: str, key: str, value: str | None
) -> None:
    tags = {k: v for k, v in tags_of(0.5, 0.5).items() if k != key} | ({key: value} if value else {})
    client.create_registered_model(name)
    client.create_model_version(name, source=NOWHERE, run_id=NO_RUN, tags=tags)
    client.set_registered_model_alias(name, CHAMPION, "1")
    assert promoted(client, name, 0.9, 0.9) == ("2", CHALLENGER)


def test_an_alias_that_was_moved_by_hand_counts(client: MlflowClient, name: str) -> None:
    promoted(client, name, 0.90, 0.90)
    promoted(client, name, 0.93, 0.93)
    client.set_registered_model_alias(name, CHAMPION, "1")  # somebody goes back
    assert promoted(client, name, 0.92, 0.92) == ("3", CHAMPION)
    client.delete_registered_model_alias(name, CHAMPION)
    assert promoted(client, name, 0.5, 0.5) == ("4", CHAMPION)


def test_a_champion_that_was_deleted_is_none(client: MlflowClient, name: str) -> None:
    promoted(client, name, 0.90, 0.90)
    client.delete_model_version(name, "1")
    assert promoted(client, name, 0.5, 0.5) == ("2", CHAMPION)


def test_what_was_decided_stays_so(client: MlflowClient, name: str) -> None:
    first, _ = promoted(client, name, 0.9)
    assert claim_alias(client, name, first).alias == CHAMPION
    promoted(client, name, 0.95)
    before = client.get_model_version(name, first)
    claim = claim_alias(client, name, first)
    assert (claim.alias, "version 2 has taken its place" in claim.told) == (CHALLENGER, True)
    assert client.get_model_version(name, first).tags == before.tags
    client.set_registered_model_alias(name, CHAMPION, first)  # by hand
    assert claim_alias(client, name, "2").alias == CHALLENGER
    assert str(champion(client, name).version) == first  # type: ignore[union-attr]


def test_whoever_decides_last_sets_right_what_a_slower_one_set_wrong(client: MlflowClient, name: str) -> None:
    # Two promotions on their way, as from two machines; the better is decided first, then the other writes what it
    # has found out before.
    promoted(client, name, 0.80, 0.80)
    worse, better = made(client, name, 0.85, 0.85), made(client, name, 0.90, 0.90)
    assert claim_alias(client, name, better).alias == CHAMPION
    client.set_registered_model_alias(name, CHAMPION, worse)
    claim = claim_alias(client, name, worse)
    assert claim.alias == CHALLENGER
    assert "version 2 is champion in the place of version 1" in claim.told
    assert "version 3 has taken its place" in claim.told
    assert str(champion(client, name).version) == better  # type: ignore[union-attr]


def test_who_comes_while_another_is_on_its_way_agrees_with_it(client: MlflowClient, name: str) -> None:
    # Between the two lies too little to tell, so the one that came first stays, whoever is decided first.
    first, second = made(client, name, 0.900, 0.900), made(client, name, 0.901, 0.901)
    assert claim_alias(client, name, second).alias == CHALLENGER
    assert claim_alias(client, name, first).alias == CHAMPION
    assert holders(client, name) == [first, second]


# -------------------------------------------------------------------------- what died on the way


def died(client: MlflowClient, name: str, version: str) -> None:
    """Let a version be one of a process that is gone: none has this number and began at that time."""
    client.set_model_version_tag(name, version, "promoter", f"{socket.gethostname()} {os.getpid()} 5")


def test_a_version_whose_promotion_died_is_decided_by_the_next(client: MlflowClient, name: str) -> None:
    promoted(client, name, 0.80, 0.80)
    orphan = made(client, name, 0.90, 0.90)
    died(client, name, orphan)
    assert promoted(client, name, 0.85, 0.85) == ("3", CHALLENGER)
    assert holders(client, name) == [orphan, "3"]
    settled = client.get_model_version(name, orphan)
    assert settled.tags["decision"] == CHAMPION
    assert UNDECIDED not in settled.description


def test_a_version_whose_promotion_lives_is_left_to_it(client: MlflowClient, name: str) -> None:
    alive = made(client, name, 0.90, 0.90)
    elsewhere = made(client, name, 0.80, 0.80)
    client.set_model_version_tag(name, elsewhere, "promoter", "another-machine 1 5")
    parent = psutil.Process(os.getppid())
    client.set_model_version_tag(
        name, alive, "promoter", f"{socket.gethostname()} {parent.pid} {parent.create_time():.0f}"
    )
    assert promoted(client, name, 0.70, 0.70) == ("3", CHALLENGER)
    assert str(champion(client, name).version) == alive  # type: ignore[union-attr]
    for version in (alive, elsewhere):
        assert "decision" not in client.get_model_version(name, version).tags


def test_a_model_that_was_never_registered_is_deleted_unless_somebody_is_at_it(client: MlflowClient, name: str) -> None:
    run = client.create_run("0").info.run_id
    here, dead = socket.gethostname(), f"{socket.gethostname()} {os.getpid()} 5"
    marks = {
        "orphan": {"registered_model": name, "promoter": dead},
        "mine": {"registered_model": name, "promoter": versions._this_process()},
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
    versions.clear_away(client, name, "0")
    left = {model.model_id: model for model in client.search_logged_models(["0"])}
    assert {kind for kind, model in models.items() if model in left} == marks.keys() - {"orphan"}
    assert "promoter" not in left[whole].tags
    # The run was opened for the model, and nobody is left to close it.
    assert client.get_run(run).info.status == "FINISHED"


# -------------------------------------------------------------------------- names and descriptions


def test_a_name_that_a_prompt_has_is_refused_before_anything_is_trained(client: MlflowClient) -> None:
    check_name(client, "nobody has this")
    client.create_registered_model("a model")
    check_name(client, "a model")
    client.register_prompt("a_prompt", "Say {{it}}.")
    with pytest.raises(UserError, match="'a_prompt' is the name of a prompt in MLflow; choose another"):
        check_name(client, "a_prompt")


@pytest.mark.parametrize("name", ["mine", "my model", "a.b-c_d+e", "model@home", "Größe", "1", "latest", "m-1"])
def test_every_name_that_a_study_file_takes_can_be_registered_and_found(client: MlflowClient, name: str) -> None:
    assert promoted(client, name, 0.9) == ("1", CHAMPION)
    assert str(version_of(client, f"models:/{name}@champion").version) == "1"
    assert str(version_of(client, f"models:/{name}/1").version) == "1"


def test_a_long_description_is_cut_and_says_so(client: MlflowClient, name: str) -> None:
    assert shortened("short") == "short"
    assert len(shortened("x" * DESCRIPTION_LIMIT)) == DESCRIPTION_LIMIT
    long = shortened("x" * (DESCRIPTION_LIMIT + 1))
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
        version_of(client, uri)
    (line,) = caught.value.lines
    assert line.startswith(f"model {uri!r}: {fault}")
    assert "models:/fmnist-search" in line
    assert "\n" not in line


def test_every_look_at_the_test_images_is_counted(client: MlflowClient, name: str) -> None:
    promoted(client, name, 0.9)
    address = f"models:/{name}/1"
    assert recorded(version_of(client, address)) is None
    for looks in (1, 2):
        assert record_test(client, version_of(client, address), wilson(9_000 + looks, 10_000)) == looks
        assert recorded(version_of(client, address)) == (wilson(9_000 + looks, 10_000), looks)
