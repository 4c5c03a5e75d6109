"""Commands as processes of their own that are forked from one that has imported the libraries.

Importing torch and MLflow takes a process over four seconds of CPU, more than most commands need for the rest.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fmnist_search.cli import main, run_process

ROOT = Path(__file__).parents[2]
IMPORTED = ("torch", "mlflow.pytorch", "mlflow.tracking._tracking_service.utils", "scipy.stats", "matplotlib.figure")
"""Libraries only: each command imports the modules of this program, and Optuna, in its own order."""
POLL_SECONDS = 0.05


class RunningCommand(Protocol):
    """What a forked command and a `subprocess.Popen` have in common, as far as tests need it."""

    pid: int
    returncode: int | Any

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]: ...
    def send_signal(self, number: int, /) -> None: ...


class ForkedCommand:
    """A command that runs, with the methods of `subprocess.Popen` that tests need. Its output is in files."""

    def __init__(self, server: CommandServer, pid: int, files: Sequence[Path]):
        self._server, self._files = server, files
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or minus the number of the signal that ended the command; None while it runs."""
        self.returncode = self._server.exit_code(self.pid, 0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command ends; return its exit code.

        Raises:
            subprocess.TimeoutExpired: if it did not end in so many seconds.
        """
        self.returncode = self._server.exit_code(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until the command ends, as `wait` does; return what it has written."""
        self.wait(timeout)
        stdout, stderr = (path.read_text(errors="replace") for path in self._files)
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the command has ended."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> ForkedCommand:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the command, and all that it has started, as far as these still run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._server.exit_code(self.pid, None)


class CommandServer:
    """A process that forks commands. Close it when they have ended."""

    def __init__(self) -> None:
        self._outputs = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # `select` sees no buffers
        )
        self._pids: list[int] = []
        self._exit_codes: dict[int, int] = {}

    def start(
        self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str], stdout: Path | None = None
    ) -> ForkedCommand:
        """Start a command in a folder, with this environment, as the leader of a session."""
        files = [Path(self._outputs.name, f"{len(self._pids)}-{name}") for name in ("stdout", "stderr")]
        files[0] = stdout or files[0]
        order = {"folder": str(folder), "arguments": list(arguments), "environment": dict(environment)}
        assert self._process.stdin
        self._process.stdin.write(json.dumps({**order, "files": [str(file) for file in files]}).encode() + b"\n")
        self._process.stdin.flush()
        before = len(self._pids)
        while len(self._pids) == before:
            self._receive(None)
        return ForkedCommand(self, self._pids[-1], files)

    def exit_code(self, pid: int, timeout: float | None) -> int | None:
        """Return the exit code of a command once it has ended; None if it has not in so many seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while pid not in self._exit_codes:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._receive(left):
                return None
        return self._exit_codes[pid]

    def close(self) -> None:
        """End the process that forks."""
        self._process.communicate()
        self._outputs.cleanup()

    def _receive(self, timeout: float | None) -> bool:
        """Take the next message; return whether there was one in so many seconds."""
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return False
        message = self._process.stdout.readline()
        assert message, f"the server of commands has ended with {self._process.wait()}"
        pid, code = json.loads(message)
        if code is None:
            self._pids.append(pid)
        else:
            self._exit_codes[pid] = code
        return True


# -------------------------------------------------------------------------------------- the process that forks


def serve() -> None:
    """Fork a process for each order; return in the processes that were forked, which then are the commands."""
    messages = os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(["--version"])  # sets the variables that libraries read when they are imported
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    running: set[int] = set()
    while True:
        for pid in [*running]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                _send(messages, pid, os.waitstatus_to_exitcode(status))
        if not select.select([0], [], [], POLL_SECONDS)[0]:
            continue
        if not (line := _read_line(0)):
            os._exit(0)
        if not (pid := os.fork()):
            os.close(messages)
            _become(json.loads(line))
            return
        running.add(pid)
        _send(messages, pid, None)


def _become(order: Mapping[str, Any]) -> None:
    """Give this process the folder, the arguments, the environment and the files of an order."""
    os.setsid()
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["fmnist-search", *order["arguments"]]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(order["files"], start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)


def _read_line(number: int) -> bytes:
    """Return the next line of a file, read byte by byte: what follows is for later."""
    line = b""
    while (byte := os.read(number, 1)) not in (b"", b"\n"):
        line += byte
    return line


def _send(messages: int, pid: int, code: int | None) -> None:
    os.write(messages, json.dumps([pid, code]).encode() + b"\n")


if __name__ == "__main__":
    serve()
    run_process()
