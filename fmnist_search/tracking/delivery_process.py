"""The delivery of the events of an outbox by a process, which leaves the interpreter of the driver to the study."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from fmnist_search.tracking.delivery import Step
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.outbox_file import OutboxError

CLOSE = "close"
STATE_SECONDS = 0.5
"""Seconds between two lines with the state of the process."""
SILENCE_SECONDS, START_SECONDS = 30.0, 300.0
"""A process that writes no line for so long is stopped or hangs, and is replaced; it starts more slowly."""
MIN_RESTART_SECONDS, MAX_RESTART_SECONDS = 1.0, 60.0
"""Bounds of the time after which a process that has ended is replaced; it doubles while they end at once."""


class DeliveryProcess:
    """Starts the process that delivers when there is an event, and another if it ends or says nothing.

    It does for `Sender` what `Delivery` does. The process is a sender of its own with the lease of the outbox.
    """

    def __init__(
        self,
        outbox: Outbox,
        store_uri: str,
        print_message: Callable[[str], None],
        command: Sequence[str] = (sys.executable, "-P", "-m", f"{__package__}.sender_process"),
        silence_seconds: float = SILENCE_SECONDS,
    ):
        self._outbox = outbox
        self._settings = json.dumps({"outbox": str(outbox.path.absolute()), "store": store_uri})
        self._print_message = print_message
        self._command = command
        self._silence_seconds = silence_seconds
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._heard_at = self._restart_at = 0.0
        self._restart_pause = MIN_RESTART_SECONDS
        self._is_ready = False
        self._reported_ends: set[str] = set()
        self._own_problem = self._outbox_error = self._their_problem = ""
        self.is_blocked = False
        """Whether a sender of another driver has the lease."""

    @property
    def pid(self) -> int | None:
        """The id of the process; None before the first event."""
        return self._process.pid if self._process else None

    @property
    def problem(self) -> str:
        """Why events are not delivered; empty unless something has failed or another sender has the lease."""
        return self._outbox_error or self._own_problem or self._their_problem

    def seconds(self, run_key: str) -> float:
        """Return the seconds that the delivery of the events of a run has taken so far."""
        return self._seconds.get(run_key, 0.0)

    def all_seconds(self) -> dict[str, float]:
        """Return these seconds by run."""
        return dict(self._seconds)

    def try_step(self, *, at_once: bool) -> Step:
        """Return what the process does, which is started if there is an event and it does not run.

        `at_once` is for the process, which `close` tells.
        """
        try:
            has_pending = self._outbox.has_pending
        except OutboxError as error:
            self._outbox_error = str(error)
            return Step.OUTBOX_FAILED
        self._outbox_error = ""
        if not has_pending:
            return Step.NOTHING_PENDING
        if not self._keep_running():
            return Step.STORE_DOWN
        if self.is_blocked:
            return Step.SENT_BY_ANOTHER
        return Step.STORE_DOWN if self._their_problem else Step.IN_PROGRESS

    def keep_lease(self) -> None:
        """Do nothing: the process keeps it."""

    def close(self) -> None:
        """Let the process deliver what it can, and end it."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):  # it has ended
            self._tell(CLOSE)
        while self._process.poll() is None:
            if self._is_silent():
                self._process.kill()
            time.sleep(0.02)
        self._clean_up()

    def _keep_running(self) -> bool:
        """Start the process if it does not run, or is silent; return whether it runs."""
        if self._process:
            if self._is_silent():
                self._process.kill()
                self._process.wait()
            if self._process.poll() is None:
                return True
            self._note_end(self._process)
        if time.monotonic() >= self._restart_at:
            self._start()
        return self._process is not None

    def _start(self) -> None:
        self._heard_at, self._is_ready = time.monotonic(), False
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it would write through the display
                text=True,
                process_group=0,  # Ctrl-C in a terminal does not reach it
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            self._tell(self._settings)
        except OSError as error:  # no memory, or it has ended at once
            self._own_problem = f"the process that sends to MLflow cannot be started ({error})"
            self._restart_at = time.monotonic() + self._restart_pause
            return
        self._reader = threading.Thread(
            target=self._read_lines, args=(self._process,), name="sender lines", daemon=True
        )
        self._reader.start()

    def _tell(self, line: str) -> None:
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _read_lines(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self._heard_at, self._is_ready = time.monotonic(), True
            values = json.loads(line)
            if "message" in values:
                self._print_message(values["message"])
                continue
            for key, seconds in values["seconds"].items():
                self._seconds[key] += seconds
            self._their_problem, self.is_blocked = values["problem"], values["is_blocked"]
            self._own_problem, self._restart_pause = "", MIN_RESTART_SECONDS

    def _is_silent(self) -> bool:
        limit = self._silence_seconds if self._is_ready else START_SECONDS
        return time.monotonic() - self._heard_at > limit

    def _note_end(self, process: subprocess.Popen[str]) -> None:
        """Note that the process has ended: how, and when another is started."""
        self._clean_up()
        code = process.returncode
        end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"
        self._own_problem, self._their_problem, self.is_blocked = f"the process that sends to MLflow {end}", "", False
        if self._own_problem not in self._reported_ends:
            self._reported_ends.add(self._own_problem)
            self._print_message(f"{self._own_problem}; another one is started, and nothing is lost")
        self._restart_at = time.monotonic() + self._restart_pause
        self._restart_pause = min(2 * self._restart_pause, MAX_RESTART_SECONDS)

    def _clean_up(self) -> None:
        process, self._process = self._process, None
        if self._reader:
            self._reader.join()
        if process and process.stdin and process.stdout:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
