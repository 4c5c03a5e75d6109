"""Promotions that run at once or are killed: the best version is champion, and no version is incomplete."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fmnist_search.models.classifier import build
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry.aliases import decide_alias
from fmnist_search.registry.packaging import log_model
from fmnist_search.registry.register import (
    UNDECIDED_NOTE,
    check_model_name,
    delete_orphans,
    pending_tags,
    register_version,
)
from fmnist_search.registry.tags import CHALLENGER, CHAMPION
from fmnist_search.registry.versions import get_champion
from fmnist_search.tracking.connection import connect
from tests.integration.tracking.test_server import server_folder, server_url  # noqa: F401 - fixtures

PROMOTER_COUNT = 6
TINY_RECIPE = Recipe().replace({"model.family": "mlp", "model.depth": 1, "model.width": 8})
WRITE_METHODS = {
    *("create_logged_model", "log_outputs", "log_model_artifacts", "finalize_logged_model", "set_terminated"),
    *("create_registered_model", "create_model_version", "delete_logged_model_tag", "set_registered_model_alias"),
    *("update_model_version", "set_model_version_tag"),
}


def version_tags(accuracy: float) -> dict[str, str]:
    return {
        "dataset_digest": "d",
        "split_digest": "s",
        "confirmed_mean": str(accuracy),
        "confirmed_deviation": "0.0005",
        "confirmed_seeds": "3",
        "validation_images": "10848",
    }


def log_empty_model(client: MlflowClient) -> tuple[str, str]:
    """Create a run and a logged model of it without content."""
    run_id = client.create_run("0").info.run_id
    return run_id, client.create_logged_model("0", name="model", source_run_id=run_id).model_uri


@pytest.fixture(scope="session")
def process_context() -> ForkServerContext:
    """Context that starts processes in which the libraries are already imported."""
    context = multiprocessing.get_context("forkserver")
    stores = ["mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]
    context.set_forkserver_preload(
        [*stores, "fmnist_search.registry.aliases", "tests.integration.registry.test_concurrent_promotions"]
    )
    return context


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a store with its tables, which these tests share."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    connect(uri)
    return uri


# ------------------------------------------------------------------------------------ several at once


def promote(uri: str, name: str, accuracy: float, cache: str, barrier: Any) -> None:
    """Register a version and decide about it, at the same time as other processes."""
    os.environ["XDG_CACHE_HOME"] = cache  # the folder of the promotion lock
    client = MlflowClient(uri)
    run_id, model = log_empty_model(client)
    barrier.wait()
    version = register_version(client, name, model, run_id, version_tags(accuracy), UNDECIDED_NOTE)
    decide_alias(client, name, version)


def run_concurrent_promotions(
    process_context: ForkServerContext, uri: str, folder: Path, machines: int, rounds: int
) -> None:
    """Run six promotions at once, several times. Processes of one "machine" share the folder of the lock."""
    client = MlflowClient(uri)
    for round_number in range(rounds):
        name = f"race {rounds} {machines} {round_number}"
        accuracies = [0.80 + 0.02 * rank for rank in range(PROMOTER_COUNT)]
        random.Random(round_number).shuffle(accuracies)
        barrier = process_context.Barrier(PROMOTER_COUNT)
        promoters = [
            process_context.Process(
                target=promote, args=(uri, name, accuracy, str(folder / str(number % machines)), barrier)
            )
            for number, accuracy in enumerate(accuracies)
        ]
        for promoter in promoters:
            promoter.start()
        for promoter in promoters:
            promoter.join(120)
        assert [promoter.exitcode for promoter in promoters] == [0] * PROMOTER_COUNT
        champion = get_champion(client, name)
        assert champion is not None
        assert float(champion.tags["confirmed_mean"]) == max(accuracies), f"round {round_number}"
        registered = client.search_model_versions(f"name='{name}'")
        assert len(registered) == PROMOTER_COUNT
        assert all("decision" in version.tags for version in registered)


@pytest.mark.slow
def test_the_best_of_six_promotions_at_once_is_champion_even_without_a_common_lock(
    process_context: ForkServerContext, store_uri: str, tmp_path: Path
) -> None:
    run_concurrent_promotions(process_context, store_uri, tmp_path, machines=PROMOTER_COUNT, rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machines", "rounds"), [(1, 1), pytest.param(PROMOTER_COUNT, 20, marks=pytest.mark.exhaustive)]
)
def test_the_best_of_six_promotions_at_once_is_champion_every_time(
    process_context: ForkServerContext, store_uri: str, tmp_path: Path, machines: int, rounds: int
) -> None:
    run_concurrent_promotions(process_context, store_uri, tmp_path, machines, rounds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machines", "rounds"),
    [(1, 1), (PROMOTER_COUNT, 1), pytest.param(PROMOTER_COUNT, 5, marks=pytest.mark.exhaustive)],
)
def test_the_best_of_six_promotions_at_once_is_champion_on_a_server(
    process_context: ForkServerContext,
    server_url: str,  # noqa: F811
    tmp_path: Path,
    machines: int,
    rounds: int,
) -> None:
    run_concurrent_promotions(process_context, server_url, tmp_path, machines, rounds)


# ------------------------------------------------------------------------------------------- killed


def kill_after(write_count: int) -> None:
    """Kill this process before the write to MLflow after `write_count` others."""
    remaining = [write_count]

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not remaining[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            remaining[0] -= 1
            return method(*arguments, **named)

        return wrapped

    for name in WRITE_METHODS:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))


def promote_until_killed(uri: str, name: str, run_id: str, accuracy: float, writes: int, *, packaged: bool) -> None:
    """Promote a model, and be killed before one of the writes, unless there are fewer."""
    client = MlflowClient(uri)
    model = client.create_logged_model("0", name="model", source_run_id=run_id).model_uri if packaged else ""
    kill_after(writes)
    delete_orphans(client, name, "0")
    if not packaged:
        model = log_model(client, build(TINY_RECIPE.model), run_id, TINY_RECIPE.data.dataset, pending_tags(name)).uri
    version = register_version(client, name, model, run_id, version_tags(accuracy), f"A card. {UNDECIDED_NOTE}")
    decide_alias(client, name, version)


def run_killed_promotion(
    process_context: ForkServerContext, uri: str, writes: int, *, packaged: bool
) -> tuple[str, bool]:
    """Run a promotion that is killed after some writes; return the name of the model, and whether it was killed."""
    client = MlflowClient(uri)
    name = f"killed {packaged} {writes}"
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id)
    child: ForkServerProcess = process_context.Process(
        target=promote_until_killed, args=(uri, name, run_id, 0.90, writes), kwargs={"packaged": packaged}
    )
    child.start()
    child.join(120)
    assert child.exitcode in (0, -signal.SIGKILL)
    return name, child.exitcode != 0


def assert_next_promotion_recovers(client: MlflowClient, name: str) -> bool:
    """Check that a killed promotion leaves a complete version or none, and that the next one decides about it.

    Return whether it left a version.
    """
    left = client.search_model_versions(f"name='{name}'")
    for version in left:
        assert version_tags(0.90).items() <= version.tags.items()
        assert version.description.startswith("A card. ")
        assert version.source
    assert get_champion(client, name) is None or left
    check_model_name(client, name)
    delete_orphans(client, name, "0")
    run_id, model = log_empty_model(client)
    own = register_version(client, name, model, run_id, version_tags(0.85), UNDECIDED_NOTE)
    assert decide_alias(client, name, own).alias == (CHALLENGER if left else CHAMPION)
    registered = {version.version: version for version in client.search_model_versions(f"name='{name}'")}
    assert len(registered) == len(left) + 1
    for version in registered.values():
        assert "decision" in version.tags
        assert UNDECIDED_NOTE not in version.description
    best = get_champion(client, name)
    assert best is not None
    assert float(best.tags["confirmed_mean"]) == (0.90 if left else 0.85)
    sources = {version.source for version in registered.values()}
    for other in client.search_logged_models(["0"], filter_string=f"tags.registered_model = '{name}'"):
        assert other.model_uri in sources
        assert "promoter" not in other.tags
        assert client.get_run(other.source_run_id).info.status == "FINISHED"
    return bool(left)


@pytest.mark.parametrize(("writes", "left"), [(1, False), (2, True), (4, True), (5, True)])
def test_a_promotion_that_is_killed_while_it_registers_leaves_a_complete_version_or_none(
    process_context: ForkServerContext, store_uri: str, writes: int, left: bool
) -> None:
    # Before the version is created, after that, after the alias, and after the description.
    name, killed = run_killed_promotion(process_context, store_uri, writes, packaged=True)
    assert killed
    assert assert_next_promotion_recovers(MlflowClient(store_uri), name) is left


@pytest.mark.exhaustive
def test_a_promotion_that_is_killed_at_any_step_leaves_a_complete_version_or_none(
    process_context: ForkServerContext, store_uri: str
) -> None:
    left = []
    for writes in itertools.count():
        name, killed = run_killed_promotion(process_context, store_uri, writes, packaged=False)
        left.append(assert_next_promotion_recovers(MlflowClient(store_uri), name))
        if not killed:
            break
    # At least the model and its files, the version, the alias, the description and the tags.
    assert len(left) > 8
    assert left == sorted(left), "a version that has been created stays"
    assert not left[0]
    assert left[-1]
