"""Streams that are not those of a terminal: encodings that lack characters, and readers that close them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

import pytest

from fmnist_search.cli import main
from fmnist_search.cli.streams import REPLACEMENTS, OutputClosed, encode_any_text, outlive_terminal


@contextlib.contextmanager
def closed_pipe() -> Iterator[io.TextIOWrapper]:
    """Yield a stream into a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    stream = open(write_end, "w", encoding="utf-8")  # noqa: SIM115
    yield stream
    stream.close()


def test_a_command_goes_on_after_its_terminal_was_closed() -> None:
    user_end, terminal = os.openpty()
    with open(terminal, "w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        outlive_terminal()
        print("seen")
        assert os.read(user_end, 100).split() == [b"seen"]
        os.close(user_end)
        print("not seen")
        print("nor this")
        assert os.path.samestat(os.fstat(terminal), os.stat(os.devnull))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_text_can_be_written_in_any_encoding(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    encode_any_text(stream)
    text = "".join(REPLACEMENTS) + "é 日本 \udcff"
    stream.write(text)
    stream.flush()
    written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    if encoding == "utf-8":
        assert written == text.replace("\udcff", r"\udcff")
    else:
        assert written.startswith("".join(REPLACEMENTS.values()))
        assert written.endswith(r"\u65e5\u672c \udcff")


@pytest.mark.parametrize("words", [["models"], ["models", "--json"], ["studies", "keys"], ["--version"]])
def test_a_command_that_prints_ends_quietly_if_its_reader_has_left(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with closed_pipe() as stream, contextlib.redirect_stdout(stream), pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == OutputClosed.exit_code == 141
    assert capsys.readouterr().err == ""


def test_an_error_that_nobody_reads_keeps_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_pipe() as stream, contextlib.redirect_stderr(stream), pytest.raises(SystemExit) as ended:
        main(["models", "show", "nothing"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit):
        main(["models", "show", "another"])
    assert "nothing" not in capsys.readouterr().err
