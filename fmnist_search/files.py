"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, beside its place, into which it moves in one step at the end: readers and rivals see no half.

    Raises:
        OSError: it cannot be written; a folder that is not there is not made.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
        try:
            yield part
            part.flush()
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise
