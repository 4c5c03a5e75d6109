"""The outages of a store: when it is tried again, and what the user is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fmnist_search.tracking.outbox import StoreUnavailable

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.25, 10.0
"""Bounds of the time between two attempts to reach a store, which is half of how long it has been down."""
OUTAGE_NOTICE_SECONDS = 3.0
"""A store that is down for a shorter time is not reported."""


class StoreOutage:
    """Whether a store is down. A long outage is reported once when it begins, and once when it is over."""

    def __init__(self, outbox_path: Path, print_message: Callable[[str], None], notice_seconds: float):
        self._outbox_path = outbox_path
        self._print_message = print_message
        self._notice_seconds = notice_seconds
        self._since: float | None = None
        self._retry_at = 0.0
        self._is_reported = False
        self.problem = ""
        """Why the store takes nothing; empty if it does."""

    @property
    def is_waiting(self) -> bool:
        """Whether the store is down and it is too early for the next attempt."""
        return time.monotonic() < self._retry_at

    def begin(self, error: StoreUnavailable) -> None:
        """Note that an attempt has failed."""
        now = time.monotonic()
        self._since, self.problem = self._since or now, f"{error.problem} ({error})"
        self._retry_at = now + min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, (now - self._since) / 2))
        if not self._is_reported and now - self._since > self._notice_seconds:
            self._is_reported = True
            self._print_message(f"{self.problem}; training goes on, and the events are kept in {self._outbox_path}")

    def end(self) -> None:
        """Note that the store has answered."""
        if self._is_reported and self._since:
            seconds = time.monotonic() - self._since
            self._print_message(f"MLflow takes events again after {seconds:.0f} s; those that it missed are sent now")
        self._since, self.problem, self._is_reported, self._retry_at = None, "", False, 0.0
