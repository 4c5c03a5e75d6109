"""Worker processes that are killed, stopped or cannot start: what they lose, and what the pool does."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fmnist_search.data.files import DataSource
from fmnist_search.data.images import Images
from fmnist_search.data.loading import load_images
from fmnist_search.errors import UserError
from fmnist_search.execution.capacity import worker_count
from fmnist_search.execution.process_backend import DEFAULT_LIVENESS, Liveness, ProcessBackend
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, TrialState
from fmnist_search.training.trial import run_trial
from fmnist_search.training.trial_checkpoints import parse_checkpoint
from tests.support.jobs import (
    CNN_RECIPE,
    LONG_RECIPE,
    SLOW_EPOCH_CHANGES,
    TINY_RECIPE,
    RecordingJob,
    assert_same_result,
    run_all,
)

LIVENESS = Liveness(heartbeat_interval=0.25, heartbeat_timeout=4.0)
"""Short enough for a test, and long enough for a worker on a busy machine."""
MANY_IMAGES = Data(train_images=20_000, validation=1_000)
"""More bytes than a socket buffers: sending them blocks until the worker reads."""
UNUSED_PACKAGES = ("mlflow", "optuna", "pydantic", "typer", "rich", "matplotlib", "sqlalchemy", "joblib", "psutil")
WORKER_PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({UNUSED_PACKAGES!r}))  # None makes an import fail
from fmnist_search.execution.worker_main import main
main()
"""


@dataclass(frozen=True)
class ReplacedWorkers:
    """A backend whose first workers were all killed at once, while they started."""

    backend: ProcessBackend
    killed: tuple[int, ...]


@pytest.fixture(scope="module")
def replaced_workers(execution: Execution) -> Iterator[ReplacedWorkers]:
    with ProcessBackend(execution, 2, liveness=LIVENESS, command=(sys.executable, "-c", WORKER_PROGRAM)) as backend:
        killed = tuple(backend.worker_pids)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        yield ReplacedWorkers(backend, killed)


@pytest.fixture
def backend(replaced_workers: ReplacedWorkers) -> ProcessBackend:
    """Two worker processes that are ready; what a test kills is replaced."""
    replaced_workers.backend.wait_until_ready()
    return replaced_workers.backend


def signal_worker(backend: ProcessBackend, job: RecordingJob, number: int) -> None:
    os.kill(backend.worker_pids[job.worker], number)


def make_recipe(data: Data) -> Recipe:
    return TINY_RECIPE.replace({f"data.{name}": value for name, value in vars(data).items()})


def assert_completed(*jobs: RecordingJob) -> None:
    for job in jobs:
        assert (job.finished_result.state, job.lost_reasons) == (TrialState.COMPLETED, [])


# ------------------------------------------------------------------------------------------- starting


@pytest.mark.slow
def test_workers_that_are_killed_at_once_while_they_start_are_replaced(
    replaced_workers: ReplacedWorkers, images: Images
) -> None:
    # The first test of this file: it gives jobs to workers that have not started.
    jobs = [RecordingJob(TINY_RECIPE, images) for _ in range(2)]
    run_all(replaced_workers.backend, jobs)
    assert_completed(*jobs)
    assert not set(replaced_workers.killed) & set(replaced_workers.backend.worker_pids)


# --------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize(
    ("epoch", "number", "reason"),
    [
        pytest.param(1, signal.SIGKILL, "SIGKILL, possibly because memory ran out", id="between epochs"),
        pytest.param(2, signal.SIGSEGV, "SIGSEGV", id="within an epoch", marks=pytest.mark.slow),
    ],
)
def test_a_killed_worker_loses_its_own_job_only(
    epoch: int, number: int, reason: str, backend: ProcessBackend, images: Images
) -> None:
    def kill(report: EpochReport) -> Decision:
        if epoch == 1:
            signal_worker(backend, killed, number)
        elif report.epoch == 1:
            threading.Timer(0.05, signal_worker, (backend, killed, number)).start()
        return Decision.CONTINUE

    killed = RecordingJob(LONG_RECIPE, images, kill)
    others = [RecordingJob(recipe, images) for recipe in (CNN_RECIPE, TINY_RECIPE, TINY_RECIPE.replace({"seed": 1}))]
    before = backend.worker_pids
    run_all(backend, [killed, *others])
    assert killed.lost_reasons == [f"its worker process was killed ({reason})"]
    assert killed.result is None
    assert_completed(*others)
    assert len(set(before) & set(backend.worker_pids)) == 1


@pytest.mark.slow
def test_jobs_sent_to_workers_that_were_killed_while_idle_are_given_to_others(
    backend: ProcessBackend, images: Images, source: DataSource
) -> None:
    run_all(backend, [RecordingJob(TINY_RECIPE, images) for _ in range(2)])
    dead = [psutil.Process(pid) for pid in backend.worker_pids]
    for process in dead:
        process.kill()
    psutil.wait_procs(dead, timeout=60)
    new_data = Data(train_images=700, validation=300)
    images_known, images_sent_first = (
        RecordingJob(TINY_RECIPE, images),
        RecordingJob(make_recipe(new_data), load_images(new_data, source)),
    )
    run_all(backend, [images_known, images_sent_first])
    assert_completed(images_known, images_sent_first)


@pytest.mark.slow
def test_the_job_of_a_killed_worker_goes_on_from_its_last_checkpoint(
    backend: ProcessBackend, images: Images, execution: Execution
) -> None:
    class KilledJob(RecordingJob):
        def on_checkpoint(self, content: bytes) -> None:
            super().on_checkpoint(content)
            if len(self.checkpoints) == 2:
                signal_worker(backend, self, signal.SIGKILL)

    recipe = CNN_RECIPE.replace({"epochs": 8})
    killed = KilledJob(recipe, images, checkpoint_seconds=0)
    run_all(backend, [killed])
    assert len(killed.lost_reasons) == 1
    state = parse_checkpoint(killed.checkpoints[-1]).state
    resumed = RecordingJob(recipe, images, checkpoint=state)
    run_all(backend, [resumed])
    assert [report.epoch for report in resumed.reports] == list(range(len(state["epochs"]) + 1, 9))
    assert_same_result(resumed.finished_result, run_trial(recipe, images, execution))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_that_ask_a_study_to_stop_do_not_end_its_workers(
    number: signal.Signals, backend: ProcessBackend, images: Images
) -> None:
    for pid in backend.worker_pids:
        assert os.getpgid(pid) != os.getpgid(0)

    def interrupt(report: EpochReport) -> Decision:
        if report.epoch == 1:
            signal_worker(backend, job, number)
        return Decision.CONTINUE

    job = RecordingJob(TINY_RECIPE, images, interrupt)
    run_all(backend, [job])
    assert_completed(job)


# -------------------------------------------------------------------------------------------- stopped


@pytest.mark.slow
def test_a_stopped_worker_is_ended_and_hands_back_its_job(backend: ProcessBackend, images: Images) -> None:
    def stop(_: EpochReport) -> Decision:
        stopped_pids.append(backend.worker_pids[stopped.worker])
        signal_worker(backend, stopped, signal.SIGSTOP)
        return Decision.CONTINUE

    stopped_pids: list[int] = []
    stopped, other = RecordingJob(LONG_RECIPE, images, stop), RecordingJob(CNN_RECIPE, images)
    started = time.monotonic()
    run_all(backend, [stopped, other])
    assert LIVENESS.heartbeat_timeout - LIVENESS.heartbeat_interval < time.monotonic() - started < 60
    assert stopped.lost_reasons == ["its worker process did not respond for 4 seconds and was ended"]
    assert_completed(other)
    assert not any(map(psutil.pid_exists, stopped_pids))
    assert not set(stopped_pids) & set(backend.worker_pids)


@pytest.mark.slow
def test_a_worker_that_was_stopped_while_idle_does_not_block_the_pool(
    backend: ProcessBackend, source: DataSource
) -> None:
    os.kill(backend.worker_pids[0], signal.SIGSTOP)
    images = load_images(MANY_IMAGES, source)
    recipe = make_recipe(MANY_IMAGES).replace({"epochs": 1})
    stopped, jobs = backend.worker_pids[0], [RecordingJob(recipe, images) for _ in range(2)]
    run_all(backend, jobs)
    assert_completed(*jobs)
    assert stopped not in backend.worker_pids


def test_a_pool_that_is_busy_itself_ends_no_worker(backend: ProcessBackend, images: Images) -> None:
    def block(report: EpochReport) -> Decision:
        if report.epoch == 1:
            time.sleep(1.5 * LIVENESS.heartbeat_timeout)
        return Decision.CONTINUE

    blocking, other = RecordingJob(TINY_RECIPE, images, block), RecordingJob(CNN_RECIPE, images)
    run_all(backend, [blocking, other])
    assert_completed(blocking, other)


def test_a_worker_may_miss_one_heartbeat_and_is_ended_after_two() -> None:
    liveness = Liveness.of_heartbeat(15.0)
    assert liveness == DEFAULT_LIVENESS
    assert liveness.heartbeat_timeout == 2 * 15.0
    rare = Liveness.of_heartbeat(3_600.0)
    assert (rare.heartbeat_interval, rare.heartbeat_timeout) == (5.0, 7_200.0)


def test_a_heartbeat_timeout_below_two_intervals_is_refused() -> None:
    with pytest.raises(ValueError, match="heartbeat_timeout: 8"):
        Liveness(heartbeat_interval=5.0, heartbeat_timeout=8.0)


# ------------------------------------------------------------------------------------- cannot start


@pytest.mark.parametrize(
    ("program", "reason"),
    [("exit 3", "ended with exit code 3"), ("sleep 30", "did not respond for 0.3 seconds and was ended")],
)
def test_workers_that_cannot_start_end_with_one_line(
    program: str, reason: str, images: Images, execution: Execution
) -> None:
    job = RecordingJob(TINY_RECIPE, images)
    liveness = Liveness(heartbeat_interval=0.1, start_timeout=0.3)
    started = time.monotonic()
    with (
        pytest.raises(UserError) as caught,
        ProcessBackend(execution, 2, liveness=liveness, command=("sh", "-c", program)) as backend,
    ):
        run_all(backend, [job])
    (line,) = caught.value.lines
    assert "could not start 3 times in a row" in line
    assert reason in line
    assert "--workers 1" in line
    assert (job.result, job.lost_reasons) == (None, [])
    assert time.monotonic() - started < 25  # the program sleeps longer


def test_another_number_of_threads_restarts_as_many_processes_as_fit(execution: Execution) -> None:
    two_threads = dataclasses.replace(execution, threads=2)
    with ProcessBackend(execution, 2, command=("sh", "-c", "sleep 30")) as backend:
        before = [psutil.Process(pid) for pid in backend.worker_pids]
        backend.configure(dataclasses.replace(execution, memory_format="contiguous"))
        assert backend.worker_pids == [process.pid for process in before]
        backend.configure(two_threads)
        assert not any(process.is_running() for process in before)
        assert backend.size == worker_count(2, two_threads)[0]
        for pid in backend.worker_pids:
            assert psutil.Process(pid).environ()["OMP_NUM_THREADS"] == "2"


def test_a_worker_imports_neither_mlflow_nor_optuna(backend: ProcessBackend, images: Images) -> None:
    # Workers of this backend can import none of `UNUSED_PACKAGES`.
    job = RecordingJob(TINY_RECIPE, images)
    run_all(backend, [job])
    assert_completed(job)


# --------------------------------------------------------------------------------------------- leaving


@pytest.mark.slow
def test_leaving_does_not_wait_for_the_epoch(images: Images, execution: Execution) -> None:
    class Left(Exception):
        pass

    def leave(*_: object) -> None:
        raise Left

    def next_job() -> RecordingJob:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        return RecordingJob(LONG_RECIPE.replace(SLOW_EPOCH_CHANGES), images)

    handler = signal.signal(signal.SIGUSR1, leave)
    try:
        with ProcessBackend(execution, 1) as backend:
            processes = [psutil.Process(pid) for pid in backend.worker_pids]
            with pytest.raises(Left):
                backend.run(next_job)
            started = time.monotonic()
        assert time.monotonic() - started < 20
        assert not any(process.is_running() for process in processes)
    finally:
        signal.signal(signal.SIGUSR1, handler)


@pytest.mark.slow
def test_workers_end_when_the_pool_is_killed_even_if_they_are_stopped(source: DataSource) -> None:
    program = textwrap.dedent(f"""
        from pathlib import Path
        from fmnist_search.data.files import DataSource
        from fmnist_search.data.loading import load_images
        from fmnist_search.execution.process_backend import Liveness, ProcessBackend
        from fmnist_search.training.devices import resolve_execution
        from tests.support.jobs import DATA_CONFIG, LONG_RECIPE, SLOW_EPOCH_CHANGES, RecordingJob

        images = load_images(DATA_CONFIG, DataSource(Path({str(source.cache)!r})))
        liveness = Liveness(heartbeat_interval=0.25)
        with ProcessBackend(resolve_execution("cpu", threads=1), 2, liveness=liveness) as backend:
            backend.wait_until_ready()
            print("ready", flush=True)
            backend.run(lambda: RecordingJob(LONG_RECIPE.replace(SLOW_EPOCH_CHANGES), images))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    time.sleep(0.3)  # the workers are within an epoch then
    orphans = psutil.Process(process.pid).children()
    assert len(orphans) == 2
    orphans[0].suspend()
    process.kill()
    _, stderr = process.communicate()
    _, alive = psutil.wait_procs(orphans, timeout=60)
    assert alive == []
    assert stderr == b""


@pytest.mark.slow
def test_a_worker_imports_no_file_of_the_current_folder(
    execution: Execution, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('a file of the current folder was imported')\n")
    monkeypatch.chdir(tmp_path)
    job = RecordingJob(TINY_RECIPE, images)
    with ProcessBackend(execution, 1) as backend:
        run_all(backend, [job])
    assert job.result
    assert job.result.state is TrialState.COMPLETED
