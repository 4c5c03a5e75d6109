"""Workers that are threads of this process."""

from __future__ import annotations

import atexit
import contextlib
import threading

from fmnist_search.data.images import Images
from fmnist_search.execution.channel import channel_pair
from fmnist_search.execution.job import Job
from fmnist_search.execution.messages import Stop
from fmnist_search.execution.pool import WorkerPool
from fmnist_search.execution.worker import ChannelWorker
from fmnist_search.execution.worker_main import worker_loop
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.groups import Data

JOIN_TIMEOUT_SECONDS = 5.0
"""How long the end of an idle thread is waited for."""
THREAD_NAME = "training"


def is_training() -> bool:
    """Return whether a worker thread of this process still runs, even if its backend was closed."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())


class ThreadBackend(WorkerPool):
    """Runs jobs in threads of this process.

    Threads start at once and share the images and the device's context, so that their kernels run side by side on a
    GPU. They cannot be ended from outside: `stop` ends a job with its running epoch, and what kills or stops one
    thread does so to the whole process. So threads send no heartbeats, and one that hangs in a driver call is not
    noticed; a study that has to survive that needs worker processes.
    """

    def __init__(self, execution: Execution, size: int):
        images: dict[Data, Images] = {}
        super().__init__(execution, size, lambda number, _: ThreadWorker(number, images))

    @property
    def images_device(self) -> str:
        """The device of the jobs."""
        return self.execution.device


class ThreadWorker(ChannelWorker):
    """A thread of this process; `images` is shared by all workers of the backend."""

    kind = "thread"

    def __init__(self, number: int, images: dict[Data, Images]):
        near, far = channel_pair()
        super().__init__(number, near)
        self._images = images
        self._thread = threading.Thread(target=worker_loop, args=(far, images), name=THREAD_NAME, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end, which it does when its epoch has ended."""
        with contextlib.suppress(OSError):
            self.channel.send(Stop())

    def join(self) -> str:
        """Close the channel and wait until the thread has ended; if it has a job, wait only when the process exits.

        CPython ends daemon threads at exit when they return from a library call, which aborts the process if that
        call is in C++.
        """
        self.channel.close()
        if self.job is None:
            self._thread.join(JOIN_TIMEOUT_SECONDS)
        else:
            atexit.register(self._thread.join)
        return "ended"

    def _provide_images(self, job: Job) -> None:
        self._images[job.recipe.data] = job.images
