"""Promotions that run at once, and promotions that are killed: the right champion, and no version by halves."""

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

import mlflow
import pytest
from mlflow import MlflowClient

from fmnist_search.models.classifier import build
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.registry import versions
from fmnist_search.registry.packaging import log_model
from tests.integration.tracking.test_server import server  # noqa: F401 - a fixture

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
    """A run, and a model of it that nobody will ever load."""
    run_id = client.create_run("0").info.run_id
    return run_id, client.create_logged_model("0", name="model", source_run_id=run_id).model_uri


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Processes of their own that need not load everything anew."""
    context = multiprocessing.get_context("forkserver")
    stores = ["mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]
    context.set_forkserver_preload(
        [*stores, "fmnist_search.registry.versions", "tests.integration.registry.test_concurrent_promotions"]
    )
    return context


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of their own, with its tables."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    MlflowClient(uri).search_experiments(max_results=1)
    return uri


# ------------------------------------------------------------------------------------ several at once


def promote(uri: str, name: str, accuracy: float, cache: str, barrier: Any) -> None:
    """One of several promotions, with its figures ready."""
    os.environ["XDG_CACHE_HOME"] = cache  # where the lock of this machine is
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    run_id, model = log_empty_model(client)
    barrier.wait()
    version = versions.register_version(client, name, model, run_id, version_tags(accuracy), versions.UNDECIDED_NOTE)
    versions.decide_alias(client, name, version)


def run_concurrent_promotions(processes: ForkServerContext, uri: str, folder: Path, machines: int, rounds: int) -> None:
    """Six promotions at once, round after round, in as many folders of locks as there are machines."""
    client = MlflowClient(uri)
    for number in range(rounds):
        name = f"race {rounds} {machines} {number}"
        accuracies = [0.80 + 0.02 * place for place in range(PROMOTER_COUNT)]
        random.Random(number).shuffle(accuracies)
        together = processes.Barrier(PROMOTER_COUNT)
        promoters = [
            processes.Process(target=promote, args=(uri, name, accuracy, str(folder / str(place % machines)), together))
            for place, accuracy in enumerate(accuracies)
        ]
        for promoter in promoters:
            promoter.start()
        for promoter in promoters:
            promoter.join(120)
        assert [promoter.exitcode for promoter in promoters] == [0] * PROMOTER_COUNT
        champion = versions.get_champion(client, name)
        assert champion is not None
        assert float(champion.tags["confirmed_mean"]) == max(accuracies), f"round {number}"
        registered = client.search_model_versions(f"name='{name}'")
        assert len(registered) == PROMOTER_COUNT
        assert all("decision" in version.tags for version in versions)


@pytest.mark.slow
def test_of_six_promotions_at_once_the_best_is_champion_even_where_no_lock_holds_them_apart(
    processes: ForkServerContext, store: str, tmp_path: Path
) -> None:
    run_concurrent_promotions(processes, store, tmp_path, machines=PROMOTER_COUNT, rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize(("machines", "rounds"), [(1, 5), (PROMOTER_COUNT, 20)])
def test_of_six_promotions_at_once_the_best_is_champion_twenty_times(
    processes: ForkServerContext, store: str, tmp_path: Path, machines: int, rounds: int
) -> None:
    run_concurrent_promotions(processes, store, tmp_path / "twenty", machines, rounds)


@pytest.mark.slow
@pytest.mark.parametrize(("machines", "rounds"), [(1, 5), (PROMOTER_COUNT, 5)])
def test_of_six_promotions_at_once_the_best_is_champion_on_a_server(
    processes: ForkServerContext,
    server: str,  # noqa: F811
    tmp_path: Path,
    machines: int,
    rounds: int,
) -> None:
    run_concurrent_promotions(processes, server, tmp_path, machines, rounds)


# ------------------------------------------------------------------------------------------- killed


def kill_after(write_count: int) -> None:
    """Let this process be killed once it has written so often to MLflow."""
    left = [write_count]

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return method(*arguments, **named)

        return wrapped

    for name in WRITE_METHODS:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))


def promote_until_killed(uri: str, name: str, run_id: str, accuracy: float, writes: int, *, packaged: bool) -> None:
    """A promotion that is killed before one of its writes, or comes to its end."""
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    model = client.create_logged_model("0", name="model", source_run_id=run_id).model_uri if packaged else ""
    kill_after(writes)
    versions.delete_orphans(client, name, "0")
    if not packaged:
        model = log_model(build(TINY_RECIPE.model), run_id, TINY_RECIPE.data.dataset, versions.pending_tags(name))
    version = versions.register_version(
        client, name, model, run_id, version_tags(accuracy), f"A card. {versions.UNDECIDED_NOTE}"
    )
    versions.decide_alias(client, name, version)


def run_killed_promotion(processes: ForkServerContext, uri: str, writes: int, *, packaged: bool) -> tuple[str, bool]:
    """A promotion that was killed after so many writes: the model's name, and whether it was, or came to its end."""
    client = MlflowClient(uri)
    name = f"killed {packaged} {writes}"
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id)
    child: ForkServerProcess = processes.Process(
        target=promote_until_killed, args=(uri, name, run_id, 0.90, writes), kwargs={"packaged": packaged}
    )
    child.start()
    child.join(120)
    assert child.exitcode in (0, -signal.SIGKILL)
    return name, child.exitcode != 0


def assert_next_promotion_recovers(client: MlflowClient, name: str) -> bool:
    """What a killed promotion leaves is whole or nothing, and the next one finishes it; whether a version was left."""
    left = client.search_model_versions(f"name='{name}'")
    for version in left:
        assert version_tags(0.90).items() <= version.tags.items()
        assert version.description.startswith("A card. ")
        assert version.source
    assert versions.get_champion(client, name) is None or left
    mlflow.set_tracking_uri(client.tracking_uri)
    versions.check_model_name(client, name)
    versions.delete_orphans(client, name, "0")
    run_id, model = log_empty_model(client)
    mine = versions.register_version(client, name, model, run_id, version_tags(0.85), versions.UNDECIDED_NOTE)
    assert versions.decide_alias(client, name, mine).alias == (versions.CHALLENGER if left else versions.CHAMPION)
    registered = {version.version: version for version in client.search_model_versions(f"name='{name}'")}
    assert len(registered) == len(left) + 1
    for version in registered.values():
        assert "decision" in version.tags
        assert versions.UNDECIDED_NOTE not in version.description
    best = versions.get_champion(client, name)
    assert best is not None
    assert float(best.tags["confirmed_mean"]) == (0.90 if left else 0.85)
    sources = {version.source for version in registered.values()}
    for other in client.search_logged_models(["0"], filter_string=f"tags.registered_model = '{name}'"):
        assert other.model_uri in sources
        assert "promoter" not in other.tags
        assert client.get_run(other.source_run_id).info.status == "FINISHED"
    return bool(left)


@pytest.mark.parametrize(("writes", "left"), [(1, False), (2, True), (4, True), (5, True)])
def test_a_promotion_that_is_killed_while_it_registers_leaves_a_whole_version_or_none(
    processes: ForkServerContext, store: str, writes: int, left: bool
) -> None:
    # Before the version is made, after that, after the alias, and after its description.
    name, killed = run_killed_promotion(processes, store, writes, packaged=True)
    assert killed
    assert assert_next_promotion_recovers(MlflowClient(store), name) is left


@pytest.mark.slow
def test_a_promotion_that_is_killed_at_any_step_leaves_a_whole_version_or_none(
    processes: ForkServerContext, store: str
) -> None:
    left = []
    for writes in itertools.count():
        name, killed = run_killed_promotion(processes, store, writes, packaged=False)
        left.append(assert_next_promotion_recovers(MlflowClient(store), name))
        if not killed:
            break
    # At least: the model and its files, the version, the alias, the description, the tags.
    assert len(left) > 8
    assert left == sorted(left), "once a version is there, it stays"
    assert not left[0]
    assert left[-1]
