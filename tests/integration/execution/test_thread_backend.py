"""Workers that are threads, and the choice between threads and processes."""

from __future__ import annotations

import time

import psutil
import pytest

from fmnist_search.data.images import Images
from fmnist_search.execution.backend import make_backend
from fmnist_search.execution.process_backend import ProcessBackend
from fmnist_search.execution.thread_backend import ThreadBackend, is_training
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import Decision, EpochReport
from tests.support.jobs import TINY_RECIPE, RecordingJob, run_all


def test_one_worker_is_a_thread_and_starts_no_process(images: Images, execution: Execution) -> None:
    processes = psutil.Process().children()
    with make_backend(execution, 1) as backend:
        assert isinstance(backend, ThreadBackend)
        run_all(backend, [RecordingJob(TINY_RECIPE.replace({"epochs": 1}), images)])
        assert psutil.Process().children() == processes


def test_several_workers_are_processes_on_the_cpu_and_threads_on_a_device(execution: Execution) -> None:
    with make_backend(execution, 2) as on_cpu, make_backend(Execution(device="cuda"), 2) as on_device:
        assert isinstance(on_cpu, ProcessBackend)
        assert isinstance(on_device, ThreadBackend)
        assert (on_cpu.size, on_device.size) == (2, 2)


@pytest.mark.parametrize("error", [EOFError("a job's own"), TimeoutError("a job's own"), ZeroDivisionError("x")])
def test_an_error_of_a_job_is_not_taken_for_a_lost_worker(
    error: Exception, images: Images, execution: Execution
) -> None:
    def fail(_: EpochReport) -> Decision:
        assert is_training()
        raise error

    job = RecordingJob(TINY_RECIPE, images, fail)
    with pytest.raises(type(error)), ThreadBackend(execution, 1) as backend:
        run_all(backend, [job])
    deadline = time.monotonic() + 60
    while is_training() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_training()
    assert not job.lost_reasons
