"""The process that delivers the events of an outbox for a driver that has many workers: `python -m` of this module.

It reads its settings, and later the request to end, as lines from its standard input, and writes its state and messages
as lines to its standard output. It ends when its input does, that is when its driver has ended: the outbox has all
that is left.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from fmnist_search.files import private_files
from fmnist_search.tracking.connection import classified_errors, short_timeouts, silence_library_logs
from fmnist_search.tracking.delivery_process import CLOSE, STATE_SECONDS
from fmnist_search.tracking.events import Event
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.sender import LOCK_POLL_SECONDS, Sender
from fmnist_search.tracking.writer import MlflowWriter


class _ConnectingWriter:
    """Writes events to a store, to which it connects when it has the first one: the store may be down."""

    def __init__(self, store_uri: str, outbox: Outbox):
        self._store_uri = store_uri
        self._outbox = outbox
        self._write_event: MlflowWriter | None = None

    def __call__(self, event: Event) -> None:
        if self._write_event is None:
            with classified_errors(self._store_uri):
                self._write_event = MlflowWriter(MlflowClient(self._store_uri), self._outbox)
        self._write_event(event)


class _Reporter:
    """Writes lines for the driver: what is new since the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reported_seconds: dict[str, float] = {}
        self._lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no line for the driver

    def message(self, text: str) -> None:
        """Report a message for the user."""
        self._write({"message": text})

    def state(self, sender: Sender) -> None:
        """Report why events are not delivered, and how long the delivery has taken of each run since the last time."""
        total = sender.all_tracking_seconds()
        spent = {key: value - self._reported_seconds.get(key, 0.0) for key, value in total.items()}
        self._reported_seconds = total
        seconds = {key: value for key, value in spent.items() if value}
        self._write({"problem": sender.problem, "is_blocked": sender.is_blocked, "seconds": seconds})

    def _write(self, values: Mapping[str, Any]) -> None:
        with self._lock:
            print(json.dumps(values), file=self._lines, flush=True)


def main() -> None:
    """Deliver events until the driver requests the end."""
    settings = json.loads(sys.stdin.readline())
    close_requested = threading.Event()
    threading.Thread(target=_follow_input, args=(close_requested,), daemon=True).start()
    silence_library_logs()
    reporter = _Reporter()
    outbox = Outbox(Path(settings["outbox"]), settings["store"])
    with private_files(), short_timeouts():
        sender = Sender(outbox, _ConnectingWriter(settings["store"], outbox), reporter.message)
        polls = 0
        while not close_requested.wait(LOCK_POLL_SECONDS):
            sender.wake()  # the events come from another process
            polls += 1
            if polls % round(STATE_SECONDS / LOCK_POLL_SECONDS) == 0:
                reporter.state(sender)
        closing = threading.Thread(target=sender.close)
        closing.start()
        while closing.is_alive():
            closing.join(STATE_SECONDS)
            reporter.state(sender)


def _follow_input(close_requested: threading.Event) -> None:
    """Note the request to end; end this process at once if its driver has ended."""
    for line in sys.stdin:
        if line.strip() == CLOSE:
            close_requested.set()
    os._exit(0)


if __name__ == "__main__":
    main()
