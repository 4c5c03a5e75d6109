"""Files and folders that only their owner can read; atomic writing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PRIVATE_UMASK = 0o077


def content_digest(content: bytes) -> str:
    """Return the SHA-256 of the content of a file, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file atomically: yield a temporary file in the same folder, and rename it to `path` at the end.

    Other processes see either no file, the old one or the complete new one. After an error `path` is unchanged.

    Raises:
        OSError: with the name of the file, if it cannot be written; the folder must exist.
    """
    with named_errors(path), tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        try:
            yield part
            part.flush()
            os.replace(part.name, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the folder may be gone
                os.unlink(part.name)
            raise


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Give errors the name of the file: those of a disk that is full while a file is written have none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename and Path(error.filename).parent != path.parent):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_private_folder(folder: Path) -> None:
    """Create a folder, with its missing parents, that only its owner can open; an existing one stays as it is.

    Raises:
        OSError: if it cannot be created, or a file is in its place.
    """
    for parent in reversed(folder.parents):
        parent.mkdir(0o700, exist_ok=True)
    folder.mkdir(0o700, exist_ok=True)


def free_bytes(folder: Path) -> int:
    """Return the free space on the disk of a folder, which need not exist yet.

    Raises:
        OSError: if the disk cannot be asked.
    """
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def is_missing(path: Path) -> bool:
    """Return whether nothing has this path. If that cannot be seen, it is False, and opening the file says why."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def private_temporary_folder(name: str) -> Path:
    """Return a folder for temporary files that belongs to this user alone, the same for all processes if possible."""
    folder = Path(tempfile.gettempdir(), name)
    with contextlib.suppress(OSError):
        make_private_folder(folder)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & PRIVATE_UMASK:
            return folder
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))  # another user has made a folder of that name


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Let all files that this process creates be readable by their owner alone, those of libraries included.

    The file mode creation mask belongs to the process: it is set until the last of several threads leaves the context.
    """
    _umask.enter()
    try:
        yield
    finally:
        _umask.leave()


class _PrivateUmask:
    """The mask of the process, and how many threads need it to be private."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0

    def enter(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before = os.umask(PRIVATE_UMASK)
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                os.umask(self._before)


_umask = _PrivateUmask()
