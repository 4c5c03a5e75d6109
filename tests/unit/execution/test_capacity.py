"""How many workers fit on a machine."""

from __future__ import annotations

import pytest

from fmnist_search.execution.capacity import WORKER_MEMORY_BYTES, HostResources, worker_count
from fmnist_search.recipe.execution import Execution


def make_host(cores: int, workers_in_memory: float) -> HostResources:
    return HostResources(cores, int(workers_in_memory * WORKER_MEMORY_BYTES))


@pytest.mark.parametrize(
    ("cores", "workers_in_memory", "threads", "count"),
    [(2, 10, 1, 2), (2, 10, 2, 1), (16, 100, 4, 4), (16, 3.5, 1, 3), (1, 10, 4, 1), (8, 0.2, 1, 1), (7, 10, 2, 3)],
)
def test_auto_takes_what_cores_and_memory_allow_without_a_message(
    cores: int, workers_in_memory: float, threads: int, count: int
) -> None:
    host, execution = make_host(cores, workers_in_memory), Execution(device="cpu", threads=threads)
    assert worker_count("auto", execution, host=host) == (count, "")
    assert worker_count(count, execution, host=host) == (count, "")
    assert worker_count(1, execution, host=host) == (1, "")


def test_a_number_that_does_not_fit_is_reduced_with_a_message() -> None:
    host = make_host(4, 3)
    count, message = worker_count(99, Execution(device="cpu", threads=1), host=host)
    assert count == 3
    for part in ("execution.workers: 99", "1 thread and", "4 cores", "3.5 GiB of free memory", "3 at a time"):
        assert part in message
    count, message = worker_count(3, Execution(device="cpu", threads=2), host=host)
    assert count == 2
    assert "2 threads" in message


def test_a_gpu_takes_the_requested_number_and_one_for_the_plain_loop() -> None:
    card = Execution(device="cuda", engine="plain")
    assert worker_count("auto", card) == (1, "")
    assert worker_count(5, card) == (5, "")


def test_this_machine_has_cores_and_memory() -> None:
    host = HostResources.detect()
    assert host.cores >= 1
    assert host.free_memory > 0
