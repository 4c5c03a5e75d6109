"""When a worker that sends nothing counts as lost, and what many workers cost."""

from __future__ import annotations

import itertools

import pytest

from fmnist_search.data.images import Images
from fmnist_search.execution.channel import channel_pair
from fmnist_search.execution.job import Job
from fmnist_search.execution.messages import EpochReported, Finished
from fmnist_search.execution.pool import WorkerPool
from fmnist_search.execution.worker import ChannelWorker
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from tests.support.jobs import TINY_RECIPE, RecordingJob, run_all


class SilentWorker(ChannelWorker):
    """Reads nothing, sends nothing, and is ready from the start."""

    kind = "stub"

    silence_limit = 0.035

    def __init__(self, number: int, _: Execution):
        near, self.far = channel_pair()
        super().__init__(number, near)
        self.is_ready = True

    def submit(self, job: Job, execution: Execution) -> None:
        super().submit(job, execution)
        self.has_started = True

    def stop(self) -> None:
        self.far.close()

    def join(self) -> str:
        self.channel.close()
        return "ended"

    def _provide_images(self, job: Job) -> None:
        pass


@pytest.mark.parametrize(("step", "checks"), [(0.007, 5), (3_600.0, 4)], ids=["steady", "suspended between checks"])
def test_silence_counts_at_most_one_interval_a_check(step: float, checks: int, images: Images) -> None:
    calls = itertools.count()
    job = RecordingJob(TINY_RECIPE, images)
    with WorkerPool(Execution(), 1, SilentWorker, check_interval=0.01, clock=lambda: step * next(calls)) as pool:
        run_all(pool, [job])
    assert job.lost_reasons == ["its worker stub did not respond for 0.035 seconds and was ended"]
    assert next(calls) == 1 + checks


class ReportingWorker(SilentWorker):
    """Reports 100 epochs at once if its number is 0, and counts how often it is looked at."""

    looks = 0

    @property
    def silence_limit(self) -> float | None:
        type(self).looks += 1
        return 3_600.0

    def _provide_images(self, job: Job) -> None:
        if self.number == 0:
            for epoch in range(1, 101):
                self.far.send(EpochReported(EpochReport(epoch, 1.0, 0.5, 1.0, 0.5, 0.1, 0.1)))
        self.far.send(Finished(TrialResult(TrialState.COMPLETED, (), 1.0)))


def test_a_message_costs_the_same_with_many_workers(images: Images) -> None:
    jobs = [RecordingJob(TINY_RECIPE, images) for _ in range(200)]
    with WorkerPool(Execution(), 200, ReportingWorker, check_interval=60.0) as pool:
        run_all(pool, jobs)
    assert len(jobs[0].reports) == 100
    assert [job.worker for job in jobs[1:]] == list(range(1, 200))
    assert all(job.result for job in jobs)
    assert ReportingWorker.looks == 0


@pytest.mark.parametrize("error", [BrokenPipeError, TimeoutError], ids=["ended", "does not read"])
def test_a_job_that_an_idle_worker_cannot_take_is_given_to_another(error: type[OSError], images: Images) -> None:
    errors = [error()]

    class RefusingWorker(SilentWorker):
        """Takes no job until it was replaced, and then finishes each at once."""

        def _provide_images(self, job: Job) -> None:
            if errors:
                raise errors.pop()
            self.far.send(Finished(TrialResult(TrialState.COMPLETED, (), 1.0)))

    job = RecordingJob(TINY_RECIPE, images)
    with WorkerPool(Execution(), 1, RefusingWorker) as pool:
        run_all(pool, [job])
    assert job.finished_result.state is TrialState.COMPLETED
    assert job.lost_reasons == []
