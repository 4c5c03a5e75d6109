"""Processes by an identity that other processes of the machine can check."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import psutil

CLOCK_TOLERANCE_SECONDS = 5
"""The clock may have been set since a process started; a process id is not reused within seconds."""


def process_identity(process_id: int | None = None) -> str:
    """Return the text that identifies a process, by default this one: host name, process id and start time.

    Raises:
        psutil.NoSuchProcess: if there is none with this id.
    """
    process = psutil.Process(process_id)
    return f"{socket.gethostname()} {process.pid} {process.create_time():.0f}"


def process_namespace() -> str:
    """Return a text that is the same for the processes that can see each other.

    Two machines may have the same host name, and so may two containers, in which the same process id is used.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux, or hidden by a sandbox
        return socket.gethostname()


def has_ended(identity: str) -> bool | None:
    """Return whether the process of an identity has ended; None if it is one of another machine.

    A process that its parent has not waited for has ended too.
    """
    machine, number, started = identity.split()
    if machine != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(number))
        is_another = abs(float(process.create_time()) - float(started)) > CLOCK_TOLERANCE_SECONDS
        return is_another or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_known_to_have_ended(identity: str, namespace: str) -> bool:
    """Return whether a process of this namespace is known to have ended; one of another cannot be seen."""
    return namespace == process_namespace() and bool(has_ended(identity))


def describe_process(identity: str) -> str:
    """Return a process as a text for a message."""
    machine, number, *_ = identity.split()
    return f"process {number} on {machine}"


class ProcessOwned:
    """Something that belongs to a process, whose identity is `process`."""

    process: str

    @property
    def machine(self) -> str:
        """The host name of its machine."""
        return self.process.split()[0]

    @property
    def process_id(self) -> int:
        """The process id on that machine."""
        return int(self.process.split()[1])


def stopped_users(path: Path) -> list[int]:
    """Return the ids of processes of this user that are stopped, by SIGSTOP or Ctrl-Z, and have a file open."""
    found = []
    for process in psutil.process_iter(["status"]):
        if process.info["status"] == psutil.STATUS_STOPPED:
            with contextlib.suppress(psutil.Error):  # it has just ended, or belongs to another user
                if str(path) in {file.path for file in process.open_files()}:
                    found.append(process.pid)
    return found
