"""Processes that are stopped by SIGSTOP, in a moment in which they lock no database that others write."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.support.command_server import RunningCommand


def freeze(process: RunningCommand, databases: Iterable[Path]) -> None:
    """Stop a process in a moment in which it locks none of these databases: others could not write them."""
    databases = list(databases)
    while True:
        process.send_signal(signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        if all(map(can_be_written, databases)):
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)


def can_be_written(database: Path) -> bool:
    """Return whether no process locks a database at this moment. Without a write-ahead log, readers lock it too."""
    with contextlib.closing(sqlite3.connect(database, timeout=0)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        connection.rollback()
        return True
