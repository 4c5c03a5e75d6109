"""What every execution backend has to do. A new backend passes this suite with one more line in `BACKENDS`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.execution.backend import Backend
from fmnist_search.execution.process_backend import ProcessBackend
from fmnist_search.execution.ray_settings import RayResources, RaySettings
from fmnist_search.execution.thread_backend import ThreadBackend
from fmnist_search.models.resnet import ResNet
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Augmentation, Averaging, Data, Optimizer, Schedule
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.training.loop import EpochResult
from fmnist_search.training.trial import run_trial
from fmnist_search.training.trial_checkpoints import parse_checkpoint
from tests.support.jobs import (
    CNN_RECIPE,
    DATA_CONFIG,
    LONG_RECIPE,
    TINY_RECIPE,
    RecordingJob,
    assert_same_result,
    reports_without_seconds,
    run_all,
)
from tests.support.ray_clusters import ray_cluster

BackendFactory = Callable[[Execution, int], Backend]


def new_ray_backend(execution: Execution, size: int) -> Backend:
    from fmnist_search.execution.ray_backend import RayBackend

    return RayBackend(execution, size, RaySettings(resources=RayResources(memory=0)))


BACKENDS: dict[str, BackendFactory] = {
    "threads": ThreadBackend,
    "processes": ProcessBackend,
    "ray": new_ray_backend,
}
SLOW_BACKENDS = ("ray",)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW_BACKENDS else ()) for name in BACKENDS],
)
def new_backend(request: pytest.FixtureRequest) -> Iterator[BackendFactory]:
    with ray_cluster(2, num_cpus=2) if request.param == "ray" else contextlib.nullcontext():
        yield BACKENDS[request.param]


each_new_backend = pytest.mark.parametrize(
    "new_backend",
    [pytest.param(name, marks=() if name == "threads" else pytest.mark.slow) for name in BACKENDS],
    indirect=True,
)
"""Parametrize a test that starts workers or runs many jobs: processes import torch, and jobs run in each of them."""


@pytest.fixture(scope="module")
def backend(new_backend: BackendFactory, execution: Execution) -> Iterator[Backend]:
    """A backend of two workers, shared by the tests that leave it usable."""
    with new_backend(execution, 2) as two_workers:
        two_workers.wait_until_ready()
        yield two_workers


@pytest.fixture
def nothing_left_behind(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Compare the child processes and threads before and after a test; a thread may still end its epoch."""
    processes, threads = psutil.Process().children(), threading.active_count()
    yield
    assert psutil.Process().children() == processes
    deadline = time.monotonic() + 60
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == threads
    assert capfd.readouterr().err == ""


# --------------------------------------------------------------------------------------------- results


def test_a_function_runs_where_the_jobs_run(backend: Backend) -> None:
    assert backend.run_on_worker(max, 1, 2) == 2
    with pytest.raises(ValueError, match="invalid literal"):
        backend.run_on_worker(int, "x")


def test_results_equal_those_of_run_trial(backend: Backend, images: Images, execution: Execution) -> None:
    jobs = [RecordingJob(recipe, images) for recipe in (CNN_RECIPE, CNN_RECIPE.replace({"seed": 1}), TINY_RECIPE)]
    run_all(backend, jobs)
    for job in jobs:
        assert_same_result(job.finished_result, run_trial(job.recipe, images, execution))


def test_each_job_is_trained_on_its_own_images(
    backend: Backend, images: Images, source: DataSource, execution: Execution
) -> None:
    data = Data(train_images=500, validation=400, seed=3)
    recipe = TINY_RECIPE.replace({f"data.{name}": value for name, value in vars(data).items()})
    other_images = load_images(data, source)
    jobs = [RecordingJob(TINY_RECIPE, images), RecordingJob(recipe, other_images), RecordingJob(TINY_RECIPE, images)]
    run_all(backend, jobs)
    for job in jobs:
        assert_same_result(job.finished_result, run_trial(job.recipe, job.images, execution))


def test_a_job_with_a_checkpoint_gives_the_result_of_an_uninterrupted_one(
    backend: Backend, images: Images, execution: Execution
) -> None:
    states: list[dict[str, Any]] = []

    class Recorder:
        def on_epoch_end(self, epoch: EpochResult, state: dict[str, Any]) -> None:
            states.append(copy.deepcopy(state))

    recipe = CNN_RECIPE.replace({"epochs": 3})
    uninterrupted = run_trial(recipe, images, execution, training_callback=Recorder())
    resumed = RecordingJob(recipe, images, checkpoint=states[0])
    from_start = RecordingJob(recipe, images)
    run_all(backend, [resumed, from_start])
    assert [report.epoch for report in resumed.reports] == [2, 3]
    assert [report.epoch for report in from_start.reports] == [1, 2, 3]
    for job in (resumed, from_start):
        assert_same_result(job.finished_result, uninterrupted)


CHECKPOINTED_RECIPES = {
    "dropout, augmentation": CNN_RECIPE,
    "input dropout, kept by loss, patience": TINY_RECIPE.replace(
        {"model.input_dropout": 0.2, "keep": "val_loss", "patience": 1, "epochs": 20, "optimizer.learning_rate": 0.03}
    ),
    "batch norm, mixed images, schedule, no averaging": Recipe(
        model=ResNet(width=4, stages=1, blocks=1, dropout=0.2),
        augmentation=Augmentation(mixup=0.4, cutmix=1.0),
        optimizer=Optimizer(name="sgd", learning_rate=0.05),
        schedule=Schedule(name="one-cycle"),
        averaging=Averaging(horizon=0.0),
        data=DATA_CONFIG,
        epochs=3,
        batch_size=125,
    ),
}


@each_new_backend
@pytest.mark.parametrize("recipe", CHECKPOINTED_RECIPES.values(), ids=CHECKPOINTED_RECIPES.keys())
def test_a_job_goes_on_from_each_of_its_checkpoints_with_the_same_bits(
    recipe: Recipe, backend: Backend, images: Images, execution: Execution
) -> None:
    uninterrupted = run_trial(recipe, images, execution)
    job = RecordingJob(recipe, images, checkpoint_seconds=0)
    run_all(backend, [job])
    assert_same_result(job.finished_result, uninterrupted)
    states = [parse_checkpoint(content).state for content in job.checkpoints]
    assert [len(state["epochs"]) for state in states] == list(range(1, len(uninterrupted.epochs) + 1))
    resumed = [RecordingJob(recipe, images, checkpoint=state) for state in (states[0], states[-2], states[-1])]
    run_all(backend, resumed)
    assert [len(each.reports) for each in resumed] == [len(states) - 1, 1, 0]
    for each in resumed:
        assert_same_result(each.finished_result, uninterrupted)
        assert each.finished_result.reason == uninterrupted.reason


@pytest.mark.parametrize(
    ("decision", "state"), [(Decision.PAUSE, TrialState.PAUSED), (Decision.INTERRUPT, TrialState.INTERRUPTED)]
)
def test_a_job_that_pauses_goes_on_in_another_backend_with_the_same_bits(
    decision: Decision, state: TrialState, backend: Backend, images: Images, execution: Execution
) -> None:
    recipe = CNN_RECIPE.replace({"epochs": 4})

    def pause_after(last: int) -> Callable[[EpochReport], Decision]:
        return lambda report: decision if report.epoch == last else Decision.CONTINUE

    with ThreadBackend(execution, 1) as other:
        saved, seconds = None, 0.0
        for last, where in ((1, backend), (3, other), (4, backend)):
            job = RecordingJob(recipe, images, pause_after(last), saved, checkpoint_seconds=3_600)
            run_all(where, [job])
            if last < 4:
                assert (job.finished_result.state, len(job.finished_result.epochs)) == (state, last)
                saved = parse_checkpoint(job.checkpoints[-1]).state
                assert len(saved["epochs"]) == last
            assert job.finished_result.seconds > seconds
            seconds = job.finished_result.seconds
    assert [report.epoch for report in job.reports] == [4]
    assert_same_result(job.finished_result, run_trial(recipe, images, execution))


def test_checkpoints_arrive_after_the_report_of_their_epoch_and_only_at_their_job(
    backend: Backend, images: Images
) -> None:
    class CheckingJob(RecordingJob):
        def on_checkpoint(self, content: bytes) -> None:
            super().on_checkpoint(content)
            checkpoint = parse_checkpoint(content)
            assert checkpoint.recipe == self.recipe
            assert len(checkpoint.state["epochs"]) <= self.reports[-1].epoch

    jobs = [
        CheckingJob(TINY_RECIPE.replace({"seed": seed, "epochs": 4}), images, checkpoint_seconds=0) for seed in range(4)
    ]
    without = RecordingJob(TINY_RECIPE, images, lambda _: Decision.PAUSE)
    run_all(backend, [*jobs, without])
    assert [len(job.checkpoints) for job in jobs] == [4, 4, 4, 4]
    assert (without.finished_result.state, without.checkpoints) == (TrialState.PAUSED, [])


def test_configure_changes_how_the_following_jobs_run(backend: Backend, images: Images, execution: Execution) -> None:
    contiguous = dataclasses.replace(execution, memory_format="contiguous")
    jobs = [RecordingJob(CNN_RECIPE, images) for _ in range(2)]
    try:
        backend.configure(contiguous)
        assert backend.execution == contiguous
        run_all(backend, jobs[:1])
    finally:
        backend.configure(execution)
    run_all(backend, jobs[1:])
    in_contiguous, in_default = (job.finished_result for job in jobs)
    assert_same_result(in_contiguous, run_trial(CNN_RECIPE, images, contiguous))
    assert_same_result(in_default, run_trial(CNN_RECIPE, images, execution))
    assert reports_without_seconds(in_contiguous) != reports_without_seconds(in_default)


# ------------------------------------------------------------------------------- reports and decisions


def test_reports_arrive_in_order_and_equal_those_of_the_result(backend: Backend, images: Images) -> None:
    jobs = [RecordingJob(TINY_RECIPE.replace({"seed": seed, "epochs": 5}), images) for seed in range(3)]
    run_all(backend, jobs)
    for job in jobs:
        assert [report.epoch for report in job.reports] == [1, 2, 3, 4, 5]
        assert tuple(job.reports) == job.finished_result.epochs
        assert job.seconds >= sum(report.seconds for report in job.reports)
        assert job.worker in (0, 1)
        assert not job.lost_reasons


@pytest.mark.parametrize(
    ("decision", "state"), [(Decision.PRUNE, TrialState.PRUNED), (Decision.INTERRUPT, TrialState.INTERRUPTED)]
)
def test_a_decision_ends_its_own_job_only(
    decision: Decision, state: TrialState, backend: Backend, images: Images
) -> None:
    ended = RecordingJob(TINY_RECIPE, images, lambda report: decision if report.epoch == 2 else Decision.CONTINUE)
    other = RecordingJob(TINY_RECIPE, images)
    run_all(backend, [ended, other])
    assert (ended.finished_result.state, len(ended.reports)) == (state, 2)
    assert (other.finished_result.state, len(other.reports)) == (TrialState.COMPLETED, 3)


def test_a_failed_training_is_a_result_and_its_worker_runs_the_next_job(backend: Backend, images: Images) -> None:
    diverging = {"optimizer.name": "sgd", "optimizer.learning_rate": 100.0, "model.depth": 4, "batch_size": 20}
    failing = RecordingJob(TINY_RECIPE.replace(diverging), images)
    following = RecordingJob(TINY_RECIPE, images)
    processes = psutil.Process().children()
    run_all(backend, [failing, following])
    assert failing.finished_result.state is TrialState.FAILED
    assert following.finished_result.state is TrialState.COMPLETED
    assert psutil.Process().children() == processes


# ------------------------------------------------------------------------------------- order and number


def test_the_number_of_workers_limits_the_running_jobs(backend: Backend, images: Images) -> None:
    assert backend.size == 2
    jobs = [RecordingJob(TINY_RECIPE.replace({"seed": seed}), images) for seed in range(5)]
    waiting, most = list(jobs), 0

    def next_job() -> RecordingJob | None:
        nonlocal most
        job = waiting.pop(0) if waiting else None
        most = max(most, sum(not started.has_ended for started in jobs[: len(jobs) - len(waiting)]))
        return job

    backend.run(next_job)
    assert most == 2
    assert all(job.finished_result.state is TrialState.COMPLETED for job in jobs)


def test_jobs_of_two_workers_train_at_the_same_time(backend: Backend, images: Images) -> None:
    def until_the_other_reports(report: EpochReport) -> Decision:
        return Decision.PRUNE if second.reports or report.epoch == 200 else Decision.CONTINUE

    first = RecordingJob(LONG_RECIPE, images, until_the_other_reports)
    second = RecordingJob(TINY_RECIPE, images)
    run_all(backend, [first, second])
    assert first.finished_result.state is TrialState.PRUNED
    assert len(first.reports) < 200
    assert first.worker != second.worker


def test_next_job_is_called_again_after_none_while_a_job_runs(backend: Backend, images: Images) -> None:
    first, second, third = (RecordingJob(TINY_RECIPE.replace({"seed": seed}), images) for seed in range(3))
    queue, started = [first], list[RecordingJob]()

    def next_job() -> RecordingJob | None:
        if first.result is not None and second not in started:
            queue.extend([second, third])
        if not queue:
            return None
        started.append(queue.pop(0))
        return started[-1]

    backend.run(next_job)
    assert started == [first, second, third]
    assert all(job.finished_result.state is TrialState.COMPLETED for job in started)


def test_the_seconds_of_a_job_exclude_the_time_without_one(backend: Backend, images: Images) -> None:
    long = RecordingJob(CNN_RECIPE.replace({"epochs": 8}), images)
    first, short = (RecordingJob(TINY_RECIPE.replace({"epochs": 1}), images) for _ in range(2))
    queue = [first, long, short]

    def next_job() -> RecordingJob | None:
        waits = not queue or (queue == [short] and long.result is None)
        return None if waits else queue.pop(0)

    backend.run(next_job)
    assert short.seconds < long.seconds / 2


def test_a_backend_runs_again_and_again(backend: Backend, images: Images) -> None:
    processes = psutil.Process().children()
    for seed in range(3):
        job = RecordingJob(TINY_RECIPE.replace({"seed": seed}), images)
        run_all(backend, [job])
        assert job.finished_result.state is TrialState.COMPLETED
    run_all(backend, [])
    assert psutil.Process().children() == processes


# -------------------------------------------------------------------------------------- errors and ends


def test_a_size_below_one_is_refused(new_backend: BackendFactory, execution: Execution) -> None:
    with pytest.raises(ValueError, match="size"):
        new_backend(execution, 0)


@pytest.mark.usefixtures("nothing_left_behind")
def test_leaving_ends_workers_that_are_not_ready(new_backend: BackendFactory, execution: Execution) -> None:
    with new_backend(execution, 2):
        pass


@each_new_backend
@pytest.mark.usefixtures("nothing_left_behind")
def test_an_error_of_a_job_propagates_and_leaves_nothing_behind(
    new_backend: BackendFactory, images: Images, execution: Execution
) -> None:
    def fail(_: EpochReport) -> Decision:
        raise OSError("the disk is full")  # an error that a lost worker raises too

    failing, running = RecordingJob(TINY_RECIPE, images, fail), RecordingJob(LONG_RECIPE, images)
    with new_backend(execution, 2) as backend:
        backend.wait_until_ready()
        with pytest.raises(OSError, match="the disk is full"):
            run_all(backend, [running, failing])
    assert not failing.has_ended
    assert not running.has_ended


@each_new_backend
@pytest.mark.usefixtures("nothing_left_behind")
def test_a_backend_that_was_stopped_runs_no_more_jobs(
    new_backend: BackendFactory, images: Images, execution: Execution
) -> None:
    def interrupt(report: EpochReport) -> Decision:
        if report.epoch == 2:
            raise KeyboardInterrupt
        return Decision.CONTINUE

    job = RecordingJob(LONG_RECIPE, images, interrupt)
    with new_backend(execution, 1) as backend:
        with pytest.raises(KeyboardInterrupt):
            run_all(backend, [job])
        backend.stop()
        backend.stop()
        with pytest.raises(RuntimeError, match="stopped"):
            run_all(backend, [RecordingJob(TINY_RECIPE, images)])
    assert (len(job.reports), job.has_ended) == (2, False)
