"""The commands that a soak test starts: their output, their exit codes, and which exit codes are expected."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARKER = "SOAK_TEST_ID"
"""An environment variable of all processes of a soak test, by which those that are left are found."""
TRIAL_LINE = re.compile(r"^\d{3,} ", re.MULTILINE)
COUNT = re.compile(r"(\d+) of (\d+) trials")
TRACEBACK = "Traceback (most recent call last)"


@dataclass(eq=False)
class Command:
    """A command of the program that runs or has ended. `expected` are the exit codes that are in order."""

    name: str
    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes]
    output: Path
    started: float
    expected: set[int] = field(default_factory=lambda: {0})
    ended: float | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code = self.process.poll()
        if code is not None and self.ended is None:
            self.ended = time.monotonic()
        return code

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.exit_code is None

    @property
    def text(self) -> str:
        """What it has printed so far on both streams."""
        return self.output.read_text(errors="replace")

    @property
    def has_trained(self) -> bool:
        """Whether a trial has ended since it was started."""
        return bool(TRIAL_LINE.search(self.text))

    @property
    def remaining_trials(self) -> int:
        """How many trials of its budget it has not ended; 0 before the first one since it was started."""
        counts = COUNT.findall(self.text)
        return int(counts[-1][1]) - int(counts[-1][0]) if counts else 0

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes that run, the oldest first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children()
            return [child for child in children if _is_worker(child)]
        return []

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.is_running:
            self.process.send_signal(number)

    def tail(self, lines: int = 6) -> str:
        """Return the last lines that it has printed."""
        return "\n".join(self.text.splitlines()[-lines:])


class CommandRunner:
    """Starts commands in a folder, and keeps all of them and their output."""

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self.marker = uuid.uuid4().hex
        self.commands: list[Command] = []
        self._folder = folder
        self._output = folder / "output"
        self._output.mkdir(parents=True, exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "FMNIST_"))}
        self._environment = {**inherited, "OMP_NUM_THREADS": "1", **environment, MARKER: self.marker}

    def start(self, name: str, *arguments: str, expected: set[int] | None = None) -> Command:
        """Start `python -m fmnist_search` with these arguments."""
        path = self._output / f"{len(self.commands):04d}-{name}.txt"
        with path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "fmnist_search", *arguments],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        command = Command(name, arguments, process, path, time.monotonic(), expected or {0})
        self.commands.append(command)
        return command

    def processes(self) -> Iterator[psutil.Process]:
        """Yield all processes that these commands have started, and that have not ended."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARKER) == self.marker:
                    yield process

    def kill_all(self) -> None:
        """Kill whatever still runs."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for command in self.commands:
            if command.is_running:
                command.process.wait()


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and any("worker_main" in part for part in process.cmdline())
    return False
