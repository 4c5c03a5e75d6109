"""Processes that promote models: how one identifies itself, whether another has died, and the lock they share."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import psutil
from filelock import FileLock

from fmnist_search.files import make_private_folder
from fmnist_search.workspace import lock_file

LOCK_TIMEOUT_SECONDS = 60
ABANDONED_AFTER_HOURS = 1
"""After this time an undecided version of another machine counts as abandoned; a decision takes seconds."""
CLOCK_TOLERANCE_SECONDS = 5


def process_identity(process_id: int | None = None) -> str:
    """Return the text that identifies a process, by default this one: host name, process id and start time.

    Raises:
        psutil.NoSuchProcess: if there is none with this id.
    """
    process = psutil.Process(process_id)
    return f"{socket.gethostname()} {process.pid} {process.create_time():.0f}"


def process_is_dead(promoter: str, created_at_ms: int) -> bool:
    """Return whether the process `promoter`, which left its identity at a time in milliseconds, has ended.

    A process of another machine counts as dead after `ABANDONED_AFTER_HOURS`.
    """
    machine, _, process = promoter.partition(" ")
    if machine != socket.gethostname():
        return time.time() - created_at_ms / 1000 > ABANDONED_AFTER_HOURS * 3600
    number, _, started = process.partition(" ")
    try:
        # The clock may have been set since; a process id is not reused within seconds.
        return abs(float(psutil.Process(int(number)).create_time()) - float(started)) > CLOCK_TOLERANCE_SECONDS
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def promotion_lock(tracking_uri: str) -> Iterator[None]:
    """Let the promotions of this user on this machine run one after the other.

    If the lock cannot be taken, the body runs without it: the aliases become right all the same, after more attempts.
    """
    path = lock_file(tracking_uri)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # the folder is not writable, or the lock is held for too long
            make_private_folder(path.parent)
            stack.enter_context(FileLock(path).acquire(timeout=LOCK_TIMEOUT_SECONDS))
        yield
