"""Interruption of running trainings by SIGINT, SIGTERM or SIGHUP, or by a stopper."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from fmnist_search.execution.process_backend import kill_worker_processes

GRACE_SECONDS = 2.0
"""A second SIGINT within this time counts as the same key press: terminals and `mlflow run` send several."""
MAX_SIGTERMS = 3
"""The SIGTERM that ends the process at once."""
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


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

        SIGTERM only makes the request, since `mlflow run` sends SIGINT and SIGTERM for one Ctrl-C, and so does SIGHUP,
        which a terminal sends when it is closed.
        """
        repeated = self._requested_at is not None and time.monotonic() - self._requested_at > self._grace_seconds
        if repeated and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request()


@contextlib.contextmanager
def interrupt_on_signals() -> Iterator[Interruption]:
    """Yield an interruption that SIGINT, SIGTERM and SIGHUP request while the context is open.

    A SIGHUP that is ignored, as `nohup` starts a process, stays so. The third SIGTERM ends the process at once. Signals
    reach the main thread only; in another thread nothing is caught.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        numbers.append(signal.SIGHUP)
    with _sigterms.counted_beside_the_main_thread():
        previous = {number: signal.signal(number, interruption.on_signal) for number in numbers}
        try:
            yield interruption
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def ignore_sigterm_while_ending() -> None:
    """Ignore the SIGTERM that follows an interruption, but not the third one of this process."""
    signal.signal(signal.SIGTERM, lambda *_: _sigterms.add())


class _SigtermCounter:
    """Counts the SIGTERMs since the last interruption could be requested, and ends the process at the third."""

    def __init__(self) -> None:
        self._count = 0

    def add(self) -> None:
        """Count one; the third ends the process without handlers, which could wait for what hangs.

        Worker processes that were stopped would not notice the end of this process, so they are killed.
        """
        self._count += 1
        if self._count >= MAX_SIGTERMS:
            kill_worker_processes()
            os._exit(SIGTERM_EXIT_CODE)

    @contextlib.contextmanager
    def counted_beside_the_main_thread(self) -> Iterator[None]:
        """Count from 0 in a thread: while the main thread hangs in a call of a library, it runs no handlers."""
        self._count = 0
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._read, args=(reader,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            os.close(writer)
            thread.join()

    def _read(self, reader: int) -> None:
        with open(reader, "rb", buffering=0) as signals:
            while numbers := signals.read(64):
                for _ in range(numbers.count(signal.SIGTERM)):
                    self.add()


_sigterms = _SigtermCounter()
