"""A crew trains what it is given, one at a time or several, and survives what kills its workers."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import joblib
import psutil
import pytest
import torch

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.errors import UserError
from fmnist_search.execution import pool
from fmnist_search.execution.capacity import worker_count
from fmnist_search.execution.job import Job
from fmnist_search.execution.pool import WorkerPool
from fmnist_search.execution.worker import ProcessWorker
from fmnist_search.models.cnn import Cnn
from fmnist_search.models.mlp import Mlp
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Augmentation, Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialResult, TrialState
from fmnist_search.training.trial import run_trial
from tests.integration.conftest import clean_environment

DATA_CONFIG = Data(train_images=1_000, validation=1_000)
TINY_RECIPE = Recipe(model=Mlp(depth=1, width=16), data=DATA_CONFIG, epochs=3, batch_size=100)
CNN_RECIPE = Recipe(
    model=Cnn(depth=2, width_1=8, width_2=8, dropout=0.3),
    augmentation=Augmentation(shift=2, flip=0.5, erasing=0.5),
    data=DATA_CONFIG,
    epochs=2,
    batch_size=64,
)
LONG_RECIPE = CNN_RECIPE.replace({"epochs": 1_000, "model.width_1": 16, "model.width_2": 32})
"""Its epochs take a good part of a second, and it does not end by itself."""


class RecordingJob:
    """A job that notes what becomes of it, and answers each report as it is told to."""

    def __init__(self, recipe: Recipe, images: Images, decide: Callable[[EpochReport], Decision] | None = None):
        self.recipe = recipe
        self.images = images
        self.decide = decide or (lambda _: Decision.CONTINUE)
        self.reports: list[EpochReport] = []
        self.result: TrialResult | None = None
        self.seconds = 0.0
        self.lost_reasons: list[str] = []

    def on_epoch(self, report: EpochReport) -> Decision:
        assert self.result is None
        self.reports.append(report)
        return self.decide(report)

    def on_result(self, result: TrialResult, seconds: float) -> None:
        assert self.result is None
        self.result, self.seconds = result, seconds

    def on_worker_lost(self, reason: str) -> None:
        assert self.result is None
        self.lost_reasons.append(reason)

    @property
    def finished_result(self) -> TrialResult:
        assert self.result is not None
        return self.result


def run_jobs(pool: WorkerPool, jobs: Iterable[Job]) -> None:
    left = iter(jobs)
    pool.run(lambda: next(left, None))


def reports_without_seconds(result: TrialResult) -> list[EpochReport]:
    """The epochs without their seconds, which no two runs share."""
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in result.epochs]


def assert_same_result(one: TrialResult, other: TrialResult) -> None:
    assert (one.state, one.value, one.best_epoch, one.parameters) == (
        other.state,
        other.value,
        other.best_epoch,
        other.parameters,
    )
    assert reports_without_seconds(one) == reports_without_seconds(other)
    assert one.confusion == other.confusion
    for mine, theirs in ((one.weights, other.weights), (one.last_weights, other.last_weights)):
        assert mine is not None
        assert theirs is not None
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def worker_processes() -> list[psutil.Process]:
    """The worker processes of this one."""
    return [child for child in psutil.Process().children() if "fmnist_search.execution.worker_main" in child.cmdline()]


def worker_pid(pool: WorkerPool, job: Job) -> int:
    (worker,) = (worker for worker in pool._workers if worker.job is job)
    assert isinstance(worker, ProcessWorker)
    return worker._process.pid


def wait_until_ready(pool: WorkerPool, images: Images) -> None:
    """Until no worker loads its libraries any more: a run ends as soon as one is free."""
    while not all(worker.has_started for worker in pool._workers):
        run_jobs(pool, [RecordingJob(TINY_RECIPE, images)])


@pytest.fixture(scope="module")
def pair(execution: Execution) -> Iterator[WorkerPool]:
    """Two worker processes for the tests of this module; what a test kills is replaced."""
    with WorkerPool(execution, 2) as crew:
        yield crew


@pytest.fixture(params=["thread", "processes"])
def crew(request: pytest.FixtureRequest, execution: Execution) -> Iterator[WorkerPool]:
    """A crew of one, which is a thread of this process, and one of two processes."""
    if request.param == "processes":
        yield request.getfixturevalue("pair")
        return
    with WorkerPool(execution, 1) as alone:
        yield alone


# ---------------------------------------------------------------------------------- what it trains


def test_a_recipe_gives_the_same_bits_wherever_it_is_trained(
    crew: WorkerPool, images: Images, execution: Execution
) -> None:
    jobs = [RecordingJob(recipe, images) for recipe in (CNN_RECIPE, CNN_RECIPE.replace({"seed": 1}), TINY_RECIPE)]
    run_jobs(crew, jobs)
    for job in jobs:
        assert_same_result(job.finished_result, run_trial(job.recipe, images, execution))


def test_a_recipe_on_other_images_is_trained_on_them(
    crew: WorkerPool, images: Images, source: DataSource, execution: Execution
) -> None:
    data = Data(train_images=500, validation=400, seed=3)
    recipe, others = (
        TINY_RECIPE.replace({f"data.{name}": value for name, value in vars(data).items()}),
        load_images(data, source),
    )
    jobs = [RecordingJob(TINY_RECIPE, images), RecordingJob(recipe, others), RecordingJob(TINY_RECIPE, images)]
    run_jobs(crew, jobs)
    for job in jobs:
        assert_same_result(job.finished_result, run_trial(job.recipe, job.images, execution))


def test_reports_come_in_order_and_are_the_results_own(crew: WorkerPool, images: Images) -> None:
    jobs = [RecordingJob(TINY_RECIPE.replace({"seed": seed, "epochs": 5}), images) for seed in range(3)]
    run_jobs(crew, jobs)
    for job in jobs:
        assert [report.epoch for report in job.reports] == [1, 2, 3, 4, 5]
        assert tuple(job.reports) == job.finished_result.epochs
        assert job.seconds >= sum(report.seconds for report in job.reports)
        assert not job.lost_reasons


@pytest.mark.parametrize(
    ("decision", "state"), [(Decision.PRUNE, TrialState.PRUNED), (Decision.INTERRUPT, TrialState.INTERRUPTED)]
)
def test_what_is_decided_of_one_ends_it_and_no_other(
    decision: Decision, state: TrialState, crew: WorkerPool, images: Images
) -> None:
    ended = RecordingJob(TINY_RECIPE, images, lambda report: decision if report.epoch == 2 else Decision.CONTINUE)
    other = RecordingJob(TINY_RECIPE, images)
    run_jobs(crew, [ended, other])
    assert (ended.finished_result.state, len(ended.reports)) == (state, 2)
    assert (other.finished_result.state, len(other.reports)) == (TrialState.COMPLETED, 3)


def test_a_training_that_fails_is_a_result_and_its_worker_stays(crew: WorkerPool, images: Images) -> None:
    diverging = {"optimizer.name": "sgd", "optimizer.learning_rate": 100.0, "model.depth": 4, "batch_size": 20}
    wrong = RecordingJob(TINY_RECIPE.replace(diverging), images)
    after = RecordingJob(TINY_RECIPE, images)
    before = worker_processes()
    run_jobs(crew, [wrong, after])
    assert wrong.finished_result.state is TrialState.FAILED
    assert after.finished_result.state is TrialState.COMPLETED
    assert worker_processes() == before


def test_trainings_run_at_the_same_time(pair: WorkerPool, images: Images) -> None:
    running: set[str] = set()
    most = 0

    def noted(seed: int) -> RecordingJob:
        def decide(report: EpochReport) -> Decision:
            nonlocal most
            running.add(str(seed))
            most = max(most, len(running))
            if report.epoch == job.recipe.epochs:
                running.discard(str(seed))
            return Decision.CONTINUE

        job = RecordingJob(CNN_RECIPE.replace({"seed": seed, "epochs": 4}), images, decide)
        return job

    run_jobs(pair, [noted(0), noted(1)])
    assert most == 2


@pytest.mark.parametrize("error", [OSError("the disk is full"), EOFError("mine"), ZeroDivisionError("mine")])
def test_what_goes_wrong_in_a_job_is_the_callers_and_no_workers_death(
    error: Exception, images: Images, execution: Execution, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(_: EpochReport) -> Decision:
        raise error

    job = RecordingJob(TINY_RECIPE, images, broken)
    with pytest.raises(type(error)), WorkerPool(execution, 1) as crew:
        run_jobs(crew, [job])
    time.sleep(0.3)
    assert not job.lost_reasons
    assert capfd.readouterr().err == ""


def test_a_job_may_come_later(crew: WorkerPool, images: Images) -> None:
    """None means that there is none at the moment: who has an answer is asked again."""
    first, second, third = (RecordingJob(TINY_RECIPE.replace({"seed": seed}), images) for seed in range(3))
    queue: list[RecordingJob] = [first]
    asked = 0

    def next_job() -> RecordingJob | None:
        nonlocal asked
        asked += 1
        if first.result is not None and second not in begun:
            queue.extend([second, third])
        job = queue.pop(0) if queue else None
        if job:
            begun.append(job)
        return job

    begun: list[RecordingJob] = []
    crew.run(next_job)
    assert begun == [first, second, third]
    assert all(job.finished_result.state is TrialState.COMPLETED for job in begun)
    assert asked > 3


def test_a_crew_runs_again_and_again(crew: WorkerPool, images: Images) -> None:
    before = worker_processes()
    for seed in range(3):
        job = RecordingJob(TINY_RECIPE.replace({"seed": seed}), images)
        run_jobs(crew, [job])
        assert job.finished_result.state is TrialState.COMPLETED
    run_jobs(crew, [])
    assert worker_processes() == before


def test_the_seconds_of_a_job_do_not_count_what_its_worker_waited_without_one(pair: WorkerPool, images: Images) -> None:
    long = RecordingJob(CNN_RECIPE.replace({"epochs": 8, "model.width_1": 32, "model.width_2": 32}), images)
    first, short = (RecordingJob(TINY_RECIPE.replace({"epochs": 1}), images) for _ in range(2))
    queue = [first, long, short]

    def next_job() -> RecordingJob | None:
        waits = not queue or (queue == [short] and long.result is None)
        return None if waits else queue.pop(0)

    wait_until_ready(pair, images)
    pair.run(next_job)
    assert short.seconds < long.seconds / 2


# ------------------------------------------------------------------------------------ who is killed


@pytest.mark.parametrize("moment", ["between epochs", "within an epoch"])
def test_a_worker_that_is_killed_loses_its_training_and_no_other(moment: str, pair: WorkerPool, images: Images) -> None:
    def killed(report: EpochReport) -> Decision:
        pid = worker_pid(pair, doomed)
        if moment == "between epochs":
            os.kill(pid, signal.SIGKILL)
        elif report.epoch == 1:
            threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()
        return Decision.CONTINUE

    doomed = RecordingJob(LONG_RECIPE, images, killed)
    other = RecordingJob(CNN_RECIPE, images)
    after = [RecordingJob(TINY_RECIPE.replace({"seed": seed}), images) for seed in range(3)]
    before = worker_processes()
    run_jobs(pair, [doomed, other, *after])
    assert doomed.result is None
    (reason,) = doomed.lost_reasons
    assert "worker process" in reason
    assert "killed" in reason
    assert "SIGKILL" in reason
    assert "memory" in reason
    for job in (other, *after):
        assert (job.finished_result.state, job.lost_reasons) == (TrialState.COMPLETED, [])
    assert len(worker_processes()) == 2
    assert len(set(before) & set(worker_processes())) == 1


def test_a_worker_that_ends_by_a_signal_of_another_kind_is_not_said_to_want_memory(
    pair: WorkerPool, images: Images
) -> None:
    def killed(_: EpochReport) -> Decision:
        os.kill(worker_pid(pair, doomed), signal.SIGSEGV)
        return Decision.CONTINUE

    doomed = RecordingJob(LONG_RECIPE, images, killed)
    run_jobs(pair, [doomed])
    (reason,) = doomed.lost_reasons
    assert "SIGSEGV" in reason
    assert "memory" not in reason


@pytest.mark.parametrize("known", [True, False], ids=["images known", "images new"])
def test_workers_that_are_killed_while_they_have_nothing_to_do_lose_no_job_in_silence(
    known: bool, pair: WorkerPool, images: Images, source: DataSource
) -> None:
    data = DATA_CONFIG if known else Data(train_images=700, validation=300)
    recipe = TINY_RECIPE.replace({f"data.{name}": value for name, value in vars(data).items()})
    wait_until_ready(pair, images)
    dead = worker_processes()
    for process in dead:
        process.kill()
    psutil.wait_procs(dead, timeout=5)
    jobs = [RecordingJob(recipe, images if known else load_images(data, source)) for _ in range(3)]
    again = [RecordingJob(job.recipe, job.images) for job in jobs]
    queue = list(jobs)

    def next_job() -> RecordingJob | None:
        if queue:
            return queue.pop(0)
        lost = next((place for place, job in enumerate(jobs) if job.lost_reasons and again[place] not in retried), None)
        if lost is None:
            return None
        retried.append(again[lost])
        return again[lost]

    retried: list[RecordingJob] = []
    pair.run(next_job)
    assert all(bool(job.result) != bool(job.lost_reasons) for job in jobs)
    assert all(job.finished_result.state is TrialState.COMPLETED for job in retried)
    assert len(worker_processes()) == 2


def test_ctrl_c_in_a_terminal_does_not_reach_the_workers(pair: WorkerPool, images: Images) -> None:
    for process in worker_processes():
        assert os.getpgid(process.pid) != os.getpgid(0)

    def asked(report: EpochReport) -> Decision:
        if report.epoch == 1:
            os.kill(worker_pid(pair, job), signal.SIGINT)
        return Decision.CONTINUE

    job = RecordingJob(TINY_RECIPE, images, asked)
    run_jobs(pair, [job])
    assert (job.finished_result.state, job.lost_reasons) == (TrialState.COMPLETED, [])


@pytest.mark.parametrize("size", [1, 2])
def test_leaving_in_the_middle_of_trainings_leaves_nobody_behind(
    size: int, images: Images, execution: Execution, capfd: pytest.CaptureFixture[str]
) -> None:
    before, threads = worker_processes(), threading.active_count()

    class Left(Exception):
        pass

    def leave(report: EpochReport) -> Decision:
        if report.epoch == 2:
            raise Left
        return Decision.CONTINUE

    with pytest.raises(Left), WorkerPool(execution, size) as crew:
        run_jobs(crew, [RecordingJob(LONG_RECIPE.replace({"seed": seed}), images, leave) for seed in range(size)])
    started = time.monotonic()
    assert worker_processes() == before
    while threading.active_count() > threads and time.monotonic() - started < 10:
        time.sleep(0.05)
    assert threading.active_count() == threads
    assert capfd.readouterr().err == ""


def test_leaving_does_not_wait_for_the_trainings(images: Images, execution: Execution) -> None:
    endless = LONG_RECIPE.replace({"model.width_1": 256, "model.width_2": 256, "model.kernel_1": 7})
    left: list[float] = []

    class Left(Exception):
        pass

    def next_job() -> RecordingJob:
        if jobs[1:]:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        return jobs.pop()

    def leave(*_: object) -> None:
        left.append(time.monotonic())
        raise Left

    jobs = [RecordingJob(endless, images), RecordingJob(endless, images)]
    handler = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(Left), WorkerPool(execution, 2) as crew:
            crew.run(next_job)
        assert time.monotonic() - left[0] < 3
    finally:
        signal.signal(signal.SIGUSR1, handler)


def test_leaving_at_once_does_not_wait_for_workers_that_still_load_their_libraries(execution: Execution) -> None:
    started = time.monotonic()
    with WorkerPool(execution, 2) as crew:
        hired = [worker._process for worker in crew._workers if isinstance(worker, ProcessWorker)]
        assert [process.poll() for process in hired] == [None, None]
    assert time.monotonic() - started < 2
    assert all(process.poll() is not None for process in hired)


def test_workers_end_after_their_epoch_when_whoever_hired_them_is_killed(source: DataSource) -> None:
    program = textwrap.dedent(f"""
        from fmnist_search.data.loading import Source, prepare
        from fmnist_search.recipe.recipe import Recipe
        from fmnist_search.training.runtime import resolve_execution
        from fmnist_search.execution.pool import Crew
        from tests.integration.execution.test_pool import DATA, LONG, Noted
        from fmnist_search.results.training import Decision
        from pathlib import Path

        def told(report):
            print(report.epoch, flush=True)
            return Decision.CONTINUE

        images = prepare(DATA, Source(Path({str(source.cache)!r})))
        with Crew(resolve_execution("cpu", threads=1), 2) as crew:
            crew.run(lambda: Noted(LONG, images, told))
    """)
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=root,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    orphans = psutil.Process(process.pid).children()
    assert len(orphans) == 2
    process.kill()
    _, said = process.communicate()
    _, alive = psutil.wait_procs(orphans, timeout=10)
    assert alive == []
    assert b"Traceback" not in said


# --------------------------------------------------------------------------------------- beginning


@pytest.fixture
def broken_python(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    return path


def test_a_worker_that_cannot_start_is_said_in_one_line(
    broken_python: Path, images: Images, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(broken_python))
    job = RecordingJob(TINY_RECIPE, images)
    started = time.monotonic()
    with pytest.raises(UserError) as caught, WorkerPool(execution, 2) as crew:
        run_jobs(crew, [job])
    (line,) = caught.value.lines
    assert "could not start" in line
    assert "exit code 3" in line
    assert "--workers 1" in line
    assert (job.result, job.lost_reasons) == (None, [])
    assert time.monotonic() - started < 5


def test_a_crew_of_one_starts_at_once_and_takes_no_process(images: Images, execution: Execution) -> None:
    before = worker_processes()
    started = time.monotonic()
    with WorkerPool(execution, 1) as crew:
        run_jobs(crew, [RecordingJob(TINY_RECIPE.replace({"epochs": 1}), images)])
        assert worker_processes() == before
    assert time.monotonic() - started < 2


def test_another_execution_counts_from_the_first_job_on(images: Images, execution: Execution) -> None:
    contiguous = dataclasses.replace(execution, memory_format="contiguous")
    with WorkerPool(execution, 1) as crew:
        crew.configure(contiguous)
        assert crew.execution == contiguous
        job = RecordingJob(CNN_RECIPE, images)
        run_jobs(crew, [job])
    assert_same_result(job.finished_result, run_trial(CNN_RECIPE, images, contiguous))
    assert reports_without_seconds(job.finished_result) != reports_without_seconds(
        run_trial(CNN_RECIPE, images, execution)
    )


# ----------------------------------------------------------------------------------------- how many


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """A machine with so many cores, and memory for so many workers."""

    def make(cores: int, room: float) -> None:
        memory = psutil.virtual_memory()._replace(available=int(room * pool.WORKER_MEMORY_BYTES))
        monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    return make


@pytest.mark.parametrize(
    ("cores", "room", "threads", "fits"),
    [(2, 10, 1, 2), (2, 10, 2, 1), (16, 100, 4, 4), (16, 3.5, 1, 3), (1, 10, 4, 1), (8, 0.2, 1, 1), (7, 10, 2, 3)],
)
def test_auto_takes_what_cores_and_memory_hold_and_says_nothing(
    machine: Callable[[int, float], None], cores: int, room: float, threads: int, fits: int
) -> None:
    machine(cores, room)
    execution = Execution(device="cpu", threads=threads)
    assert worker_count("auto", execution) == (fits, "")
    assert worker_count(fits, execution) == (fits, "")
    assert worker_count(1, execution) == (1, "")


def test_more_workers_than_fit_are_cut_down_and_it_is_said_why(machine: Callable[[int, float], None]) -> None:
    machine(4, 3)
    count, said = worker_count(99, Execution(device="cpu", threads=1))
    assert count == 3
    assert "execution.workers: 99" in said
    assert "1 thread and" in said
    assert "4 cores" in said
    assert "3.5 GiB of free memory" in said
    assert "3 at a time" in said
    count, said = worker_count(3, Execution(device="cpu", threads=2))
    assert count == 2
    assert "2 threads" in said


def test_a_gpu_takes_what_it_is_told_and_one_for_the_plain_loop() -> None:
    card = Execution(device="cuda", engine="plain")
    assert worker_count("auto", card) == (1, "")
    assert worker_count(5, card) == (5, "")
