"""Nodes that join and leave, actors that are killed, and a driver that is: what they cost on a Ray cluster."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fmnist_search.data.images import Images
from fmnist_search.execution.job import LossCause
from fmnist_search.execution.ray_actor import describe_loss
from fmnist_search.execution.ray_backend import RayBackend
from fmnist_search.execution.ray_settings import RayResources, RaySettings
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.training.trial import run_trial
from fmnist_search.training.trial_checkpoints import parse_checkpoint
from tests.support.jobs import (
    CNN_RECIPE,
    LONG_RECIPE,
    TINY_RECIPE,
    RecordingJob,
    assert_same_result,
    run_all,
)
from tests.support.ray_clusters import add_node, ray_cluster

pytestmark = pytest.mark.slow

RESOURCES = RayResources(cpu=1, memory=0)
SETTINGS = RaySettings(resources=RESOURCES)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and a node with three, of which `backend` has two."""
    with ray_cluster(1, num_cpus=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def backend(cluster: Any, execution: Execution) -> Iterator[RayBackend]:
    with RayBackend(execution, 2, SETTINGS, heartbeat_seconds=2, poll_seconds=0.5) as two_workers:
        yield two_workers


@pytest.fixture
def full_backend(backend: RayBackend, images: Images) -> RayBackend:
    """Return `backend` with both of its workers: of one that an earlier test has ended, no other is started before."""

    def until_both_train(report: EpochReport) -> Decision:
        time.sleep(0.1)
        return Decision.PRUNE if all(job.reports for job in jobs) else Decision.CONTINUE

    jobs = [RecordingJob(LONG_RECIPE.replace({"seed": seed}), images, until_both_train) for seed in range(2)]
    run_all(backend, jobs)
    assert backend.size == 2
    return backend


def process_id(backend: RayBackend) -> int:
    """Return the process of a worker that has no job."""
    number: int = backend.run_on_worker(os.getpid)
    return number


# ------------------------------------------------------------------------------------------------------- workers


def test_the_name_of_a_worker_says_where_it_is(backend: RayBackend, images: Images) -> None:
    job = RecordingJob(TINY_RECIPE, images)
    run_all(backend, [job])
    assert job.worker_name == f"{job.worker} on {os.uname().nodename} (node {backend.run_on_worker(_node_id)[:8]})"


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def test_images_are_in_the_shared_memory_of_a_node(cluster: Any, execution: Execution, images: Images) -> None:
    with RayBackend(execution, 1, SETTINGS) as one_worker:  # with two, the one that is asked may have run no job
        run_all(one_worker, [RecordingJob(TINY_RECIPE, images)])
        found = one_worker.run_on_worker(_mapped_files_of_images)
    assert found
    assert all("plasma" in path for path in found)


def _mapped_files_of_images() -> list[str]:
    """Return the files in memory that hold the pixels of the images of this process."""
    found = []
    for images in [each for each in gc.get_objects() if isinstance(each, Images)]:
        address = images.train.pixels.data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, last = (int(number, 16) for number in line.split()[0].split("-"))
            if first <= address < last:
                found.append(line)
    return found


def test_an_actor_that_is_killed_loses_its_own_job_only(backend: RayBackend, images: Images) -> None:
    victim = process_id(backend)

    def kill(report: EpochReport) -> Decision:
        if psutil.pid_exists(victim) and len(first.reports) > 1 and len(second.reports) > 1:
            os.kill(victim, signal.SIGKILL)
        return Decision.PRUNE if first.has_ended or second.has_ended else Decision.CONTINUE

    first, second = (RecordingJob(LONG_RECIPE.replace({"seed": seed}), images, kill) for seed in range(2))
    third = RecordingJob(CNN_RECIPE, images)
    run_all(backend, [first, second, third])
    lost, other = (first, second) if first.lost_reasons else (second, first)
    assert lost.loss_cause is LossCause.WORKER
    assert lost.lost_reasons[0].startswith(f"its worker actor on {os.uname().nodename} (node ")
    assert other.finished_result.state is TrialState.PRUNED
    assert third.finished_result.state is TrialState.COMPLETED


def test_an_actor_that_is_killed_while_it_has_no_job_costs_none(backend: RayBackend, images: Images) -> None:
    backend.wait_until_ready()
    os.kill(process_id(backend), signal.SIGKILL)
    jobs = [RecordingJob(TINY_RECIPE.replace({"seed": seed}), images) for seed in range(3)]
    run_all(backend, jobs)
    assert [job.finished_result.state for job in jobs] == [TrialState.COMPLETED] * 3


def test_an_actor_that_is_frozen_is_ended(backend: RayBackend, images: Images) -> None:
    frozen = psutil.Process(process_id(backend))

    def freeze(report: EpochReport) -> Decision:
        if report.epoch == 2:
            frozen.suspend()
        return Decision.PRUNE if report.epoch == 200 else Decision.CONTINUE

    jobs = [RecordingJob(LONG_RECIPE, images, freeze)]
    jobs.append(RecordingJob(LONG_RECIPE, images, lambda _: Decision.PRUNE if jobs[0].has_ended else Decision.CONTINUE))
    run_all(backend, jobs)
    lost, other = sorted(jobs, key=lambda job: job.result is not None)
    assert lost.lost_reasons[0].endswith("did not respond for 6 seconds and was ended")
    assert lost.loss_cause is LossCause.WORKER
    assert other.finished_result.state is TrialState.PRUNED
    frozen.wait(timeout=120)


def test_two_streams_of_an_actor_train_at_the_same_time(
    full_backend: RayBackend, images: Images, execution: Execution
) -> None:
    def until_the_other_reports(report: EpochReport) -> Decision:
        return Decision.PRUNE if second.reports or report.epoch == 200 else Decision.CONTINUE

    first = RecordingJob(LONG_RECIPE, images, until_the_other_reports)
    second, third = (RecordingJob(CNN_RECIPE.replace({"seed": seed}), images) for seed in range(2))
    with RayBackend(execution, "auto", RaySettings(resources=RESOURCES, streams=2)) as streams:
        streams.wait_until_ready()
        assert streams.size == 2  # one CPU is left
        run_all(streams, [first, second, third])
    assert first.finished_result.state is TrialState.PRUNED
    assert first.worker != second.worker
    assert_same_result(second.finished_result, run_trial(second.recipe, images, execution))
    assert_same_result(third.finished_result, run_trial(third.recipe, images, execution))


# --------------------------------------------------------------------------------------------------------- nodes


def test_a_backend_without_room_says_that_it_waits(full_backend: RayBackend, execution: Execution) -> None:
    class Waits(Exception):
        pass

    def leave(message: str) -> None:
        raise Waits(message)

    all_cpus = RaySettings(resources=RayResources(cpu=3, memory=0))  # of which `full_backend` has two
    with RayBackend(execution, "auto", all_cpus, poll_seconds=0.1, on_message=leave) as waiting:
        assert waiting.size == 0
        with pytest.raises(Waits, match="no room for a worker of 3 CPU"):
            waiting.wait_until_ready()


def test_a_node_that_joins_gets_work_and_its_loss_costs_an_epoch(
    cluster: Any, full_backend: RayBackend, images: Images, execution: Execution
) -> None:
    recipe = CNN_RECIPE.replace({"epochs": 8})
    nodes: list[Any] = []
    resumed: list[RecordingJob] = []

    def stay(report: EpochReport) -> Decision:
        if not nodes:
            nodes.append(add_node(cluster))
        return Decision.PRUNE if moved.has_ended else Decision.CONTINUE

    def lose_node(report: EpochReport) -> Decision:
        if len(moved.checkpoints) == 2:
            cluster.remove_node(nodes[0], allow_graceful=False)
        return Decision.CONTINUE

    def next_job() -> RecordingJob | None:
        if waiting:
            return waiting.pop(0)
        if moved.lost_reasons and not resumed:
            checkpoint = parse_checkpoint(moved.checkpoints[-1]).state
            resumed.append(RecordingJob(recipe, images, checkpoint=checkpoint))
            return resumed[0]
        return None

    staying = RecordingJob(LONG_RECIPE, images, stay)
    moved = RecordingJob(recipe, images, lose_node, checkpoint_seconds=0)
    waiting = [staying, moved]
    with RayBackend(execution, "auto", SETTINGS, poll_seconds=0.5) as elastic:
        assert elastic.size == 1
        elastic.run(next_job)
    assert staying.finished_result.state is TrialState.PRUNED
    assert (moved.loss_cause, len(moved.lost_reasons)) == (LossCause.INFRASTRUCTURE, 1)
    assert moved.worker_name.partition("node ")[2] != staying.worker_name.partition("node ")[2]
    assert resumed[0].reports[0].epoch >= moved.reports[-1].epoch
    assert resumed[0].worker_name.partition("node ")[2] == staying.worker_name.partition("node ")[2]
    assert_same_result(resumed[0].finished_result, run_trial(recipe, images, execution))


def test_an_actor_without_jobs_leaves_its_place_to_others(
    backend: RayBackend, images: Images, execution: Execution
) -> None:
    def until_released(report: EpochReport) -> Decision:
        return Decision.PRUNE if backend.size == 1 or report.epoch == 200 else Decision.CONTINUE

    run_all(backend, [RecordingJob(TINY_RECIPE, images)])
    assert backend.size == 2
    seconds, backend.idle_seconds = backend.idle_seconds, 0.0
    long = RecordingJob(LONG_RECIPE, images, until_released)
    run_all(backend, [long])
    backend.idle_seconds = seconds
    assert len(long.reports) < 200
    jobs = [RecordingJob(TINY_RECIPE.replace({"seed": seed}), images) for seed in range(2)]
    run_all(backend, jobs)
    assert [job.finished_result.state for job in jobs] == [TrialState.COMPLETED] * 2


# -------------------------------------------------------------------------------------------------------- driver

DRIVER = """
import os, sys
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import load_images
from fmnist_search.execution.ray_backend import RayBackend
from fmnist_search.execution.ray_settings import RayResources, RaySettings
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import Decision
from fmnist_search.workflows.interruption import interrupt_on_signals
from fmnist_search.workspace import image_cache_folder
from tests.support.jobs import DATA_CONFIG, LONG_RECIPE, RecordingJob, run_all

images = load_images(DATA_CONFIG, DataSource(image_cache_folder()))
settings = RaySettings(sys.argv[1], RayResources(cpu=1, memory=0), allow_no_token=True)
with RayBackend(Execution(threads=1), 1, settings) as backend:
    process_id = backend.run_on_worker(os.getpid)
    for _ in range(2):
        with interrupt_on_signals() as interruption:

            def decide(report):
                if report.epoch == 1:
                    print(process_id, flush=True)
                return Decision.INTERRUPT if interruption.is_requested else Decision.CONTINUE

            job = RecordingJob(LONG_RECIPE, images, decide)
            run_all(backend, [job])
            print(job.result.state.value, flush=True)
"""


def test_a_driver_is_interrupted_by_sigterm_and_its_actors_end_with_it(backend: RayBackend, cluster: Any) -> None:
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), cluster.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout
            actor = psutil.Process(int(driver.stdout.readline()))
            driver.send_signal(signal.SIGTERM)
            assert driver.stdout.readline() == "interrupted\n"
            assert int(driver.stdout.readline()) == actor.pid
            assert actor.is_running()
        finally:
            driver.kill()
    actor.wait(timeout=60)


# -------------------------------------------------------------------------------------------------------- causes


MakeError = Callable[[Any], Exception]
"""Makes an error of `ray.exceptions`."""


@pytest.mark.parametrize(
    ("make_error", "cause", "text"),
    [
        (lambda ray: ray.OutOfMemoryError("The node runs low on memory."), LossCause.WORKER, "memory ran out"),
        (lambda ray: ray.ActorUnavailableError("RPC", None), LossCause.INFRASTRUCTURE, "could not be reached"),
        (lambda ray: ray.RayActorError(preempted=True), LossCause.INFRASTRUCTURE, "preempted"),
        (
            lambda ray: ray.RayActorError(error_msg="It died.\nThe actor died because its node has died. Node Id: 1"),
            LossCause.INFRASTRUCTURE,
            "lost with its node",
        ),
        (
            lambda ray: ray.RayActorError(error_msg="It died.\nWorker unexpectedly exits with a connection error"),
            LossCause.WORKER,
            "killed or crashed",
        ),
        (lambda ray: ray.RayTaskError("turn", "Trace\nValueError: {x}", None), LossCause.WORKER, "ValueError: (x)"),
        (lambda ray: ray.ActorUnschedulableError("No such node."), LossCause.INFRASTRUCTURE, "lost with its node"),
        (lambda ray: ray.ObjectLostError("00" * 28, None, ""), LossCause.INFRASTRUCTURE, "ObjectLostError"),
    ],
    ids=["memory", "unavailable", "preempted", "node", "killed", "exception", "unschedulable", "object"],
)
def test_memory_and_crashes_are_the_job_and_nodes_are_not(make_error: MakeError, cause: LossCause, text: str) -> None:
    from ray import exceptions

    reason, found = describe_loss(make_error(exceptions))
    assert (found, text in reason.format(where="HOST")) == (cause, True), reason
