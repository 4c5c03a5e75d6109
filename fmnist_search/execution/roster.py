"""The workers of a pool by what they do."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, KeysView

from fmnist_search.execution.worker import Worker


class Roster:
    """The workers of a pool, each starting, free or with a job.

    No question takes longer the more workers there are. Whoever changes what a worker does calls `update`.
    """

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}
        self._starting: set[Worker] = set()
        self._free: set[Worker] = set()
        self._free_numbers: list[int] = []
        """A heap with the numbers of all free workers, and of some that are free no longer."""

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        """Return an iterator over the workers there are now, which may be removed meanwhile."""
        return iter(list(self._workers.values()))

    def __contains__(self, worker: Worker) -> bool:
        return self._workers.get(worker.number) is worker

    @property
    def numbers(self) -> KeysView[int]:
        """The numbers that are taken."""
        return self._workers.keys()

    @property
    def lowest_free_number(self) -> int:
        """The lowest number that no worker has."""
        return next(number for number in itertools.count() if number not in self._workers)

    @property
    def starting_count(self) -> int:
        """How many workers are not ready."""
        return len(self._starting)

    @property
    def free_count(self) -> int:
        """How many workers wait for a job."""
        return len(self._free)

    @property
    def busy_count(self) -> int:
        """How many workers have a job."""
        return len(self._workers) - len(self._starting) - len(self._free)

    def add(self, worker: Worker) -> None:
        """Add a worker, whose number is not taken."""
        assert worker.number not in self._workers
        self._workers[worker.number] = worker
        self.update(worker)

    def remove(self, worker: Worker) -> None:
        """Remove a worker."""
        del self._workers[worker.number]
        self._starting.discard(worker)
        self._free.discard(worker)

    def update(self, worker: Worker) -> None:
        """Take note of what a worker does now."""
        if not worker.is_ready:
            self._starting.add(worker)
            return
        self._starting.discard(worker)
        if not worker.is_free:
            self._free.discard(worker)
        elif worker not in self._free:
            self._free.add(worker)
            heapq.heappush(self._free_numbers, worker.number)

    def first_free(self) -> Worker | None:
        """Return the free worker with the lowest number; None if there is none."""
        while self._free_numbers:
            worker = self._workers.get(self._free_numbers[0])
            if worker in self._free:
                return worker
            heapq.heappop(self._free_numbers)
        return None
