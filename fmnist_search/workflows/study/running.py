"""Sessions of studies that run at the moment: how other processes of the machine find them and stop them.

Each session has a file, which it locks. The operating system releases the lock when the process ends, however it ends,
so a file without a lock is one that a killed process has left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from fmnist_search.errors import UserError, did_you_mean
from fmnist_search.files import make_private_folder, named_errors
from fmnist_search.processes import ProcessOwned, has_ended, process_identity
from fmnist_search.search.lease import Driver, current_drivers
from fmnist_search.workspace import Workspace

SUFFIX = ".json"


@dataclasses.dataclass(frozen=True)
class RunningSession(ProcessOwned):
    """A session of a study: a search or a promotion.

    `process` is the identity of its process. `handles_signals` is false in a thread that is not the main one.
    """

    study: str
    process: str
    started_at: float
    handles_signals: bool


@contextlib.contextmanager
def announced(folder: Path, study: str) -> Iterator[None]:
    """Let other processes find a session of this process while the context is open."""
    make_private_folder(folder)
    _remove_unlocked(folder)
    in_main_thread = threading.current_thread() is threading.main_thread()
    session = RunningSession(study, process_identity(), time.time(), in_main_thread)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False, buffering=0) as file:
        part = Path(file.name)
        path = part.with_suffix(SUFFIX)
        try:
            with contextlib.suppress(OSError):  # on a file system without locks, nobody finds the session
                fcntl.flock(file, fcntl.LOCK_EX)
            with named_errors(path):
                file.write(json.dumps(dataclasses.asdict(session)).encode())
                os.rename(part, path)
            yield
        finally:
            for each in (part, path):
                each.unlink(missing_ok=True)


def running_sessions(folder: Path) -> list[RunningSession]:
    """Return the sessions that run, the oldest first."""
    sessions = [session for session, is_locked in _read(folder) if is_locked]
    return sorted(sessions, key=lambda session: session.started_at)


def has_session(folder: Path, process_id: int) -> bool:
    """Return whether a process of this machine, which runs, has a session; file systems without locks will do."""
    return any(session.process == process_identity(process_id) for session, _ in _read(folder))


def _read(folder: Path) -> Iterator[tuple[RunningSession, bool]]:
    """Yield each session that has a file, and whether the file is locked; damaged files are left out."""
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
            is_locked = _is_locked(file)
            if session := _parse(file.read()):
                yield session, is_locked


def _parse(content: str) -> RunningSession | None:
    """Return the session in a file; None if the file is damaged."""
    try:
        read = RunningSession(**json.loads(content))
        session = dataclasses.replace(read, study=str(read.study), started_at=float(read.started_at))
        process_id = session.process_id
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return session if process_id > 0 else None


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _remove_unlocked(folder: Path) -> None:
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError), path.open(encoding="utf-8") as file:
            if not _is_locked(file):
                path.unlink()


def find_running(workspace: Workspace, study: str | None = None) -> tuple[str, list[RunningSession], Driver | None]:
    """Return the name of a running study, by default of the only one, its sessions in this folder, and its driver.

    The driver is known from Optuna's storage, and may run on another machine.

    Raises:
        UserError: if it does not run, or if no study is named and several run.
    """
    sessions, drivers = running_sessions(workspace.sessions_folder), current_drivers(workspace.storage_url)
    names = sorted({session.study for session in sessions} | {driver.study for driver in drivers})
    if not names:
        what = "no study is running here" if study is None else f"study {study!r} is not running here"
        raise UserError(f"{workspace.folder}: {what}; `fmnist-search studies list` shows stored ones")
    if study is None and len(names) > 1:
        raise UserError(f"{workspace.folder}: several studies are running; give the name of one: {', '.join(names)}")
    name = study or names[0]
    if name not in names:
        raise UserError(f"study {name!r}: is not running; {did_you_mean(name, names)}")
    driver = next((driver for driver in drivers if driver.study == name), None)
    return name, [session for session in sessions if session.study == name], driver


def interrupt(session: RunningSession) -> None:
    """Send the process of a session what Ctrl-C sends it.

    Raises:
        UserError: if the process is on another machine or in another container, belongs to another user, or would not
            handle the signal.
    """
    study, number = f"study {session.study!r}", session.process_id
    if session.machine != socket.gethostname():
        raise UserError(f"{study}: runs on the machine {session.machine!r}; stop it there")
    if not session.handles_signals:
        raise UserError(f"{study}: runs in a thread of process {number}, which takes no signals; stop it there")
    try:
        process = psutil.Process(number)
        if has_ended(session.process):
            raise psutil.NoSuchProcess(number)
        process.send_signal(signal.SIGINT)  # which checks once more that the process id was not given to another one
    except psutil.NoSuchProcess:
        raise UserError(f"{study}: its process {number} cannot be seen from here; stop it where it runs") from None
    except psutil.AccessDenied:
        raise UserError(f"{study}: its process {number} belongs to another user, who can stop it") from None
