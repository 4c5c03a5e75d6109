"""Messages between the pool and a worker."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any

READY = "ready"
STOP = "stop"


class Channel:
    """One end of the talk between a study and a worker.

    Tensors go as plain pickles: torch's own way of sending them needs the sender to be alive when they are unpacked.
    """

    def __init__(self, connection: Connection):
        self.connection = connection

    def send(self, message: object) -> None:
        """Send a message; OSError where nobody listens any more."""
        self.connection.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))

    def receive(self) -> Any:
        """The next message; EOFError or OSError where none will come."""
        return pickle.loads(self.connection.recv_bytes())

    def close(self) -> None:
        """Hang up."""
        self.connection.close()
