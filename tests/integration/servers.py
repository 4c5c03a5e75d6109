"""Real MLflow servers that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tests.integration.conftest import clean_environment


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(url: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


class MlflowServer:
    """An MLflow server that also serves artifacts; what it holds outlives it."""

    def __init__(self, folder: Path, store: str = "", *options: str, **changes: str):
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        store = store or f"sqlite:///{folder}/mlflow.db"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self._command += ["--workers", "1", "--backend-store-uri", store, "--artifacts-destination", str(folder)]
        self._command += options
        self._folder, self._changes = folder, changes
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # a test may start it from a timer

    def start(self) -> None:
        """Start the server unless it runs, and wait until it answers."""
        with self._lock:
            if self._process is None:
                self._start()
        wait_for(f"{self.url}/health")

    def _start(self) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                # The jobs of its own are about language models, and keep a core busy.
                env=clean_environment(**{"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self._changes}),
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """As a crash would, without a word to anybody."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def running_server(server: MlflowServer) -> Iterator[MlflowServer]:
    """The server, running, until this is over."""
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Proxy(socketserver.ThreadingTCPServer):
    """Passes requests on to a server, each piece after a delay. Once, the answer to a request for a path is lost."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, server_url: str, *, delay_seconds: float = 0.0, lost_answer_to: str = ""):
        super().__init__(("127.0.0.1", 0), _Connection)
        address = urlsplit(server_url)
        self.target = (str(address.hostname), int(address.port or 80))
        self.delay_seconds = delay_seconds
        self.lost_answer_to = lost_answer_to.encode()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    """A connection of a client, with one to the server of its own."""

    def handle(self) -> None:
        with socket.create_connection(self._proxy.target) as server:
            self._server, self._loses_answer = server, False
            back = threading.Thread(target=self._return_answers, daemon=True)
            back.start()
            self._pass_on_requests()
            back.join()

    @property
    def _proxy(self) -> Proxy:
        assert isinstance(self.server, Proxy)
        return self.server

    def _pass_on_requests(self) -> None:
        with contextlib.suppress(OSError):
            while piece := self.request.recv(1 << 16):
                lost = self._proxy.lost_answer_to
                if lost and lost in piece:
                    self._loses_answer, self._proxy.lost_answer_to = True, b""
                time.sleep(self._proxy.delay_seconds)
                self._server.sendall(piece)
            self._server.shutdown(socket.SHUT_WR)

    def _return_answers(self) -> None:
        with contextlib.suppress(OSError):
            while piece := self._server.recv(1 << 16):
                if self._loses_answer:
                    self.request.shutdown(socket.SHUT_RDWR)
                    return
                self.request.sendall(piece)
            self.request.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def running_ui(folder: Path) -> Iterator[str]:
    """`fmnist-search ui` on the store of a folder, answering; gives the address that it prints."""
    port = free_port()
    with _running_module(folder, "fmnist_search", "ui", "--port", port) as output:
        deadline = time.monotonic() + 180
        while not output.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):  # it is printed when this works
            yield output.read_text().splitlines()[0]


@contextlib.contextmanager
def serving_model(folder: Path, model: str) -> Iterator[str]:
    """`mlflow models serve` of a model in the store of a folder, answering; gives the address to post to."""
    port = free_port()
    with _running_module(folder, "mlflow", "models", "serve", "-m", model, "--env-manager", "local", "--port", port):
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/invocations"


@contextlib.contextmanager
def _running_module(folder: Path, module: str, *arguments: object) -> Iterator[Path]:
    """`python -m` in a folder, with the commands of this environment in reach, until this is over; gives its output.

    The output is a file: a server that logs each request into a pipe that nobody reads stops once the pipe is full.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    output = folder / "server.out"
    with output.open("w") as out, (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=folder,
            env=clean_environment(PATH=path, MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}"),
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield output
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=120)
