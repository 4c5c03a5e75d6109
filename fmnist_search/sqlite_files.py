"""SQLite files: what their errors mean to a user, and how they are read where nothing can be written."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import sqlite3
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from fmnist_search.errors import UserError
from fmnist_search.text import first_line

READ_TIMEOUT_SECONDS = 30
DISK_FULL = "the disk is full"
MIN_FREE_BYTES = 1 << 16
"""With less free space than this, an error of input and output means a full disk."""
MAX_COPIES = 20
"""Attempts to copy a file that another process writes to at the same time."""

_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_DAMAGED_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNWRITABLE_CODES = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_DAMAGED_MESSAGES = ("no such table", "no such column", "could not decode to utf-8")
"""Beginnings of messages about tables or texts that a sound file of this program has."""


def is_disk_full(error: BaseException, path: Path | None = None) -> bool:
    """Return whether an error, or one that caused it, says that a disk is full; `path` is the file that was written."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _FULL_NUMBERS:
            return True
        code = _primary_code(cause)
        if code == sqlite3.SQLITE_FULL:
            return True
        if code == sqlite3.SQLITE_IOERR and path and _free_bytes(path) < MIN_FREE_BYTES:
            return True
    return "database or disk is full" in str(error) or "No space left on device" in str(
        error
    )  # of a server, or wrapped


def is_damaged(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, says that a SQLite file is damaged or no database."""
    return any(
        _primary_code(cause) in _DAMAGED_CODES
        or isinstance(cause, UnicodeDecodeError)
        or (isinstance(cause, sqlite3.Error) and str(cause).lower().startswith(_DAMAGED_MESSAGES))
        for cause in _causes(error)
    )


def is_replaced(error: BaseException) -> bool:
    """Return whether SQLite found that a file was deleted or replaced while it was open."""
    return any(getattr(cause, "sqlite_errorname", "") == "SQLITE_READONLY_DBMOVED" for cause in _causes(error))


def is_unwritable(error: BaseException) -> bool:
    """Return whether SQLite could not read a file because it could write nothing beside it."""
    return any(_primary_code(cause) in _UNWRITABLE_CODES for cause in _causes(error))


def database_error(error: BaseException, name: str, path: Path) -> UserError | None:
    """Return the error for the user if a disk is full or a SQLite file is damaged; None if it is another error.

    `name` says what the file is and where.
    """
    if is_disk_full(error, path):
        return disk_full_error(name)
    if is_damaged(error):
        found = (cause for cause in _causes(error) if isinstance(cause, sqlite3.Error | UnicodeDecodeError))
        return damaged_error(name, first_line(next(found)), path)
    return None


def disk_full_error(name: str) -> UserError:
    """Return the error of a file that cannot be written because its disk is full."""
    return UserError(
        f"{name}: cannot be written, {DISK_FULL}; free some space and run the same command again: nothing that was "
        "stored before is lost"
    )


def damaged_error(name: str, detail: str, path: Path) -> UserError:
    """Return the error of a SQLite file that is damaged."""
    copy = shlex.quote(str(path.with_name(f"recovered-{path.name}")))
    return UserError(
        f"{name}: is damaged ({detail}); put a copy of it in its place, or one that "
        f"`sqlite3 {shlex.quote(str(path))} .recover | sqlite3 {copy}` makes of what can be read, or begin anew in "
        "another folder (--workdir, --tracking-uri)"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that caused it; SQLAlchemy keeps that of the driver in `orig`."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        original = getattr(error, "orig", None)
        if isinstance(original, BaseException) and id(original) not in seen:
            seen.add(id(original))
            yield original
        error = error.__cause__


def _primary_code(error: BaseException) -> int | None:
    """Return the code of a SQLite error without its details, which are in the higher bits; None for other errors."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return MIN_FREE_BYTES


# ---------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file that another process may write to at the same time; nothing needs to be writable.

    Raises:
        sqlite3.Error: if it cannot be read, or is no database.
    """
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(contextlib.closing(_connect(path)))
        except sqlite3.OperationalError as error:
            if not is_unwritable(error) or not path.is_file():
                raise
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            connection = stack.enter_context(contextlib.closing(_connect(copy_for_reading(path, Path(folder)))))
        yield connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=READ_TIMEOUT_SECONDS)
    try:
        connection.execute("PRAGMA schema_version").fetchone()  # SQLite opens the file only now
    except BaseException:
        connection.close()
        raise
    return connection


def check_sound(connection: sqlite3.Connection) -> None:
    """Check all pages and indices of a file, which takes 5 ms a megabyte.

    Without this, a damaged file may be read without an error, and some of its rows are missing.

    Raises:
        sqlite3.DatabaseError: if the file is damaged.
    """
    found = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
    if found != "ok":
        damaged = sqlite3.DatabaseError(found.splitlines()[-1])
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged


def copy_for_reading(path: Path, folder: Path) -> Path:
    """Return a copy of a SQLite file, in a folder that can be written, with its write-ahead log.

    SQLite reads a file with write-ahead logging only where it can create the index of the log.

    Raises:
        sqlite3.OperationalError: if the file cannot be read.
    """
    copy = folder / path.name
    log, copied_log = (each.with_name(f"{each.name}-wal") for each in (path, copy))
    try:
        for _ in range(MAX_COPIES):
            before = _stamps(path, log)
            shutil.copyfile(path, copy)
            copied_log.unlink(missing_ok=True)
            if log.exists():
                shutil.copyfile(log, copied_log)
            if _stamps(path, log) == before:
                break
            time.sleep(0.05)
    except OSError as error:
        raise sqlite3.OperationalError(f"{path}: {error.strerror}") from error
    return copy


def _stamps(*paths: Path) -> list[tuple[int, int, int] | None]:
    stats = [path.stat() if path.exists() else None for path in paths]
    return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) if stat else None for stat in stats]


# --------------------------------------------------------------------------------------- identity


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of a file; None if there is none.

    A process that has opened a file which was deleted or replaced goes on writing to it, where nobody finds it.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


class OpenFile:
    """A SQLite file that this process has open, to notice if it is deleted or replaced."""

    def __init__(self, path: Path):
        self._path = path
        self._identity = file_identity(path)
        self._descriptor: int | None = None
        with contextlib.suppress(AttributeError, OSError):  # Linux only
            # Closing another kind of descriptor would release the locks that SQLite has on the file.
            self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)

    @property
    def is_in_place(self) -> bool:
        """Whether its path still leads to it."""
        return file_identity(self._path) == self._identity

    @property
    def is_deleted(self) -> bool:
        """Whether no path leads to it any more, so that it cannot be put back; False where that is not known."""
        return self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0


class FileReplacedError(UserError):
    """A SQLite file was deleted or replaced by another one while this process used it.

    If it `is_deleted`, it cannot be put back.
    """

    is_deleted = False


def replaced_error(name: str, *, is_deleted: bool = False) -> FileReplacedError:
    """Return the error of a file that was deleted or replaced while this process used it."""
    error = FileReplacedError(
        f"{name}: was deleted or replaced by another file while it was in use; this process has stopped, since what it "
        "writes would be lost: put the file back, or run the same command again to begin anew"
    )
    error.is_deleted = is_deleted
    return error
