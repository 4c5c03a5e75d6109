"""The one sender of a study's events: a thread that does what it is given, in order, while trials train.

Nothing that is written to MLflow keeps a worker waiting. What can wait, such as drawing a picture, is done when there
is nothing else to do.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Sender:
    """A thread with two queues. The first error ends its work, and comes back to whoever sends next."""

    def __init__(self) -> None:
        self._errands: queue.PriorityQueue[_Errand[object]] = queue.PriorityQueue()
        self._count = 0
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)
        self._thread.start()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Wait for what was sent; an error of its own is raised unless another is on its way."""
        try:
            if error is None:
                self.flush()
        finally:
            self.close()

    def send(self, act: Callable[[], Result], *, later: bool = False) -> Future[Result]:
        """Have this done after all that was sent before; `later`, when nothing else is left to do.

        Raises:
            Exception: what an earlier errand raised.
        """
        self.check()
        return self._put(act, 1 if later else 0)

    def check(self) -> None:
        """Raise what an earlier errand raised."""
        if self._error:
            raise self._error

    def flush(self) -> None:
        """Wait until everything is done.

        Raises:
            Exception: what an errand raised.
        """
        if not self._error:
            self._put(lambda: None, 2).exception()
        self.check()

    def close(self) -> None:
        """End the thread once everything is done."""
        self._put(self._stop, 3).exception()
        self._thread.join()

    def _put(self, act: Callable[[], Result], rank: int) -> Future[Result]:
        self._count += 1
        errand: _Errand[Result] = _Errand(rank, self._count, act)
        self._errands.put(errand)  # type: ignore[arg-type]
        return errand.done

    def _work(self) -> None:
        while not self._stopped:
            errand = self._errands.get()
            if self._error and errand.act != self._stop:
                errand.done.set_exception(self._error)
                continue
            try:
                errand.done.set_result(errand.act())
            except BaseException as error:
                self._error = error
                errand.done.set_exception(error)

    def _stop(self) -> None:
        self._stopped = True


class _Errand(Generic[Result]):
    def __init__(self, rank: int, number: int, act: Callable[[], Result]):
        self.order = (rank, number)
        self.act = act
        self.done: Future[Result] = Future()

    def __lt__(self, other: _Errand[object]) -> bool:
        return self.order < other.order
