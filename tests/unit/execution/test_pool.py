"""When a worker that sends nothing counts as lost."""

from __future__ import annotations

import itertools

import pytest

from fmnist_search.data.images import Images
from fmnist_search.execution.channel import channel_pair
from fmnist_search.execution.job import Job
from fmnist_search.execution.pool import WorkerPool
from fmnist_search.execution.worker import Worker
from fmnist_search.recipe.execution import Execution
from tests.support.jobs import TINY_RECIPE, RecordingJob, run_all


class SilentWorker(Worker):
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
