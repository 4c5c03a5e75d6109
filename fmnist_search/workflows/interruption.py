"""Interruption of running trainings by SIGINT or SIGTERM, or by a stopper."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

GRACE_SECONDS = 2.0
"""A second SIGINT within this time counts as the same key press: terminals and `mlflow run` send several."""


class Interruption:
    """A request to stop after the running epochs. What was trained until then is kept."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace_seconds = grace_seconds
        self._requested_at: float | None = None

    @property
    def is_requested(self) -> bool:
        """Whether running trainings shall stop after their epochs."""
        return self._requested_at is not None

    def request(self) -> None:
        """Make the request; repeating it changes nothing."""
        if self._requested_at is None:
            self._requested_at = time.monotonic()

    def on_signal(self, signal_number: int, _: FrameType | None) -> None:
        """Make the request, or raise `KeyboardInterrupt` at a further SIGINT after the grace period.

        SIGTERM only makes the request, since `mlflow run` sends SIGINT and SIGTERM for one Ctrl-C.
        """
        repeated = self._requested_at is not None and time.monotonic() - self._requested_at > self._grace_seconds
        if repeated and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request()


@contextlib.contextmanager
def interrupt_on_signals() -> Iterator[Interruption]:
    """Yield an interruption that SIGINT and SIGTERM request while the context is open.

    Signals reach the main thread only; in another thread nothing is caught.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, interruption.on_signal) for number in numbers}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
