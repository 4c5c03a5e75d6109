"""Atomic writing of files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file atomically: yield a temporary file in the same folder, and rename it to `path` at the end.

    Other processes see either no file, the old one or the complete new one. After an error `path` is unchanged.

    Raises:
        OSError: if the file cannot be written; the folder must exist.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        try:
            yield part
            part.flush()
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise
