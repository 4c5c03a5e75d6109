"""A two-way connection that carries typed messages between a pool and a worker."""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from typing import Generic, Protocol, TypeVar

from fmnist_search.execution.messages import ToPool, ToWorker

Sent = TypeVar("Sent")
Received = TypeVar("Received")
_LENGTH = struct.Struct("!Q")


class Channel(Generic[Sent, Received]):
    """One end of a connection.

    Messages are pickled without torch's own reductions: those share memory, which the sender would have to keep
    alive until the receiver has unpickled the message.

    With a `timeout` in seconds, no call blocks longer than that on a peer that neither reads nor writes, for example
    on a process that was stopped in the middle of a message.
    """

    def __init__(self, connected: socket.socket, timeout: float | None = None):
        self._socket = connected
        self._socket.settimeout(timeout)
        self._send_lock = threading.Lock()

    def send(self, message: Sent) -> None:
        """Send a message. Several threads may do so.

        Raises:
            TimeoutError: if the peer does not read.
            OSError: if the connection is closed.
        """
        payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with self._send_lock:
            self._socket.sendall(_LENGTH.pack(len(payload)))
            self._socket.sendall(payload)

    def receive(self) -> Received:
        """Return the next message.

        Raises:
            TimeoutError: if the peer does not write.
            EOFError: if the peer has closed the connection.
            OSError: if the connection is broken.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        message: Received = pickle.loads(self._read(length))
        return message

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the file descriptor, which is readable when a message has arrived."""
        return self._socket.fileno()

    def _read(self, count: int) -> bytearray:
        data = bytearray(count)
        unread = memoryview(data)
        while unread:
            received = self._socket.recv_into(unread)
            if not received:
                raise EOFError("the connection is closed")
            unread = unread[received:]
        return data


PoolChannel = Channel[ToWorker, ToPool]
"""The pool's end."""


class WorkerChannel(Protocol):
    """The worker's end, which need not be a socket."""

    def send(self, message: ToPool) -> None:
        """Send a message. Several threads may do so. An OSError means that nobody receives it any more."""

    def receive(self) -> ToWorker:
        """Return the next message. An OSError or EOFError means that there will be none."""

    def close(self) -> None:
        """Close this end."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected stream sockets, which child processes do not inherit."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def channel_pair() -> tuple[PoolChannel, Channel[ToPool, ToWorker]]:
    """Return the two ends of a connection within this process."""
    near, far = socket_pair()
    return Channel(near), Channel(far)
