"""Processes that promote models: whether another one has died, and the lock they share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from filelock import FileLock

from fmnist_search.files import make_private_folder
from fmnist_search.processes import has_ended
from fmnist_search.workspace import lock_file

LOCK_TIMEOUT_SECONDS = 60
ABANDONED_AFTER_HOURS = 1
"""After this time an undecided version of another machine counts as abandoned; a decision takes seconds."""


def promoter_is_dead(promoter: str, created_at_ms: int) -> bool:
    """Return whether the process `promoter`, which left its identity at a time in milliseconds, has ended.

    A process of another machine counts as dead after `ABANDONED_AFTER_HOURS`.
    """
    ended = has_ended(promoter)
    return time.time() - created_at_ms / 1000 > ABANDONED_AFTER_HOURS * 3600 if ended is None else ended


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
