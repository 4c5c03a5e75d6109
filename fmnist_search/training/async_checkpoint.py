"""Checkpoints that are taken while the training goes on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fmnist_search.training.checkpoint import Checkpoint
from fmnist_search.training.trial_checkpoints import serialize_checkpoint

MAX_SHARE = 0.0025
"""Checkpoints are taken before they are due while their CPU time is less than this share of the time between them."""
MIN_COSTED_BYTES = 2**20
"""A smaller state costs as much as one of so many bytes."""

SendCheckpoint = Callable[[bytes], None]
"""Sends a serialised checkpoint; an OSError means that nobody receives it any more."""


class AsyncCheckpointer:
    """Copies the state of trainings between two epochs, and serialises and sends the copy during the next epoch.

    One object serves the trainings of a worker one after the other: it measures what a checkpoint costs.
    """

    def __init__(self, send: SendCheckpoint, clock: Callable[[], float] = time.monotonic):
        self._send = send
        self._clock = clock
        self._seconds_per_byte = 1e-8
        self._taken_at = 0.0
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Count the time until the first checkpoint from here on; at the end, wait until all are sent."""
        self._taken_at = self._clock()
        try:
            yield
        finally:
            self._join()

    def take(self, checkpoint: Checkpoint, interval: float) -> None:
        """Take a checkpoint if one is due after `interval` seconds, or if it is cheap, and none is being sent.

        Args:
            checkpoint: The state between two epochs, copied before the call returns.
            interval: Seconds; 0 takes a checkpoint after every epoch and waits until the one before is sent.
        """
        if interval <= 0:
            self._join()
        if self._thread and self._thread.is_alive():
            return
        started, size = self._clock(), max(_byte_count(checkpoint.state), MIN_COSTED_BYTES)
        elapsed = started - self._taken_at
        if elapsed < interval and size * self._seconds_per_byte > MAX_SHARE * elapsed:
            return
        self._taken_at = started
        cpu_started = time.thread_time()
        copied = _copy(checkpoint)
        copy_seconds = time.thread_time() - cpu_started
        self._thread = threading.Thread(target=self._serialize_and_send, args=(copied, size, copy_seconds))
        self._thread.start()

    def take_last(self, checkpoint: Checkpoint) -> None:
        """Send a checkpoint before the call returns, after those taken earlier."""
        self._join()
        self._send(serialize_checkpoint(checkpoint))

    def _serialize_and_send(self, checkpoint: Checkpoint, size: int, copy_seconds: float) -> None:
        with contextlib.suppress(OSError):  # the pool has closed the channel, which the training notices itself
            self._send(serialize_checkpoint(checkpoint))
        self._seconds_per_byte = (copy_seconds + time.thread_time()) / size

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None


def _byte_count(state: Mapping[str, Any]) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor))


def _copy(checkpoint: Checkpoint) -> Checkpoint:
    state = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), dict(checkpoint.state))
    return Checkpoint(checkpoint.recipe, checkpoint.execution, checkpoint.image_digests, state)
