"""Standard output and error: characters that their encoding lacks, and readers that close them early."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

REPLACEMENTS = dict(zip("▁▂▃▄▅▆▇█│├└─━╸╺═", "_.,-=+*#|++----=", strict=True))
"""Characters of curves, bars and tables, with what stands for them in an encoding such as Latin-1 or ASCII."""

finish_without_reader: ContextVar[bool] = ContextVar("finish_without_reader", default=False)
"""Whether a command goes on after the reader of its results has closed them, because it does more than print."""


class OutputClosed(Exception):
    """Raised if the reader of standard output has closed it, as `head` does."""

    exit_code = 128 + 13
    """The exit code of Unix programs in this case, which SIGPIPE ends."""


def encode_any_text(*streams: TextIO) -> None:
    """Let streams replace the characters that their encoding lacks, so that no text is refused."""
    codecs.register_error("fmnist_search.replace", _replace)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fmnist_search.replace")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    refused = error.object[error.start : error.end]
    return "".join(REPLACEMENTS.get(each) or ascii(each)[1:-1] for each in refused), error.end


class _TerminalFile(io.FileIO):
    """A terminal. Once it was closed, output is discarded."""

    def write(self, data: Buffer, /) -> int:
        """Write bytes; return how many."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            discard(self)
            return super().write(data)


def outlive_terminal() -> None:
    """Let this process go on without output after its terminal was closed, where it survives the SIGHUP."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.isatty():
            stream.flush()
            file = io.BufferedWriter(_TerminalFile(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=True))


def write_output(text: str = "") -> None:
    """Write a text to standard output, and everything that was written before.

    Raises:
        OutputClosed: if its reader has closed it, unless the command finishes without a reader.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        on_output_closed()


def on_output_closed() -> None:
    """Discard all further output.

    Raises:
        OutputClosed: unless the command finishes without a reader.
    """
    discard(sys.stdout)
    if not finish_without_reader.get():
        raise OutputClosed


def discard(stream: TextIO | io.FileIO) -> None:
    """Discard all that is written to a stream from now on."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)
