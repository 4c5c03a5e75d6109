"""How a pool learns which of its workers have sent something, in a time that does not grow with their number."""

from __future__ import annotations

import selectors
from collections.abc import Sequence
from typing import Protocol

from fmnist_search.execution.worker import ChannelWorker, Worker, by_number


class Inbox(Protocol):
    """Waits for the workers of a pool."""

    def add(self, worker: Worker) -> None:
        """Watch a worker too."""

    def remove(self, worker: Worker) -> None:
        """Watch a worker no longer, which may have closed its connection."""

    def wait(self, seconds: float | None) -> Sequence[Worker]:
        """Return the workers whose `receive` does not block, once there is one or the seconds are over."""

    def close(self) -> None:
        """Release what the inbox holds."""


class ChannelInbox:
    """Watches the sockets of workers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._descriptors: dict[Worker, int] = {}

    def add(self, worker: Worker) -> None:
        """Watch the worker's channel."""
        assert isinstance(worker, ChannelWorker)
        descriptor = self._descriptors[worker] = worker.channel.fileno()
        self._selector.register(descriptor, selectors.EVENT_READ, worker)

    def remove(self, worker: Worker) -> None:
        """Watch the worker's channel no longer. Must be called before another socket gets its number."""
        self._selector.unregister(self._descriptors.pop(worker))

    def wait(self, seconds: float | None) -> list[Worker]:
        """Return the workers whose channel is readable, in the order of their numbers."""
        return by_number(key.data for key, _ in self._selector.select(seconds))

    def close(self) -> None:
        """Close the selector."""
        self._selector.close()
