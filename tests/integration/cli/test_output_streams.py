"""Commands whose output is not UTF-8, or that nobody reads to the end."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pytest

from fmnist_search.cli.app import CommandSettings, main
from tests.integration.conftest import FinishedStudy, RunCommand, clean_environment, run_command, start_command
from tests.unit.cli.test_streams import closed_pipe


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("words", [["show"], ["status"], ["leaderboard"], ["models", "show", "lenet"]])
def test_results_are_printed_in_any_encoding(
    finished: FinishedStudy, encoding: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(stream), pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    lines = stream.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]
    expected = run_command(finished.folder, *words).stdout.splitlines()
    assert len(lines) == len(expected)
    assert "\\u" not in "".join(lines)


def test_a_search_goes_on_when_nobody_reads_its_output(
    tiny: Path, tmp_path: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["search", "tiny.toml", "--no-tracking", "--trials", "2"]
    with (
        closed_pipe() as stdout,
        closed_pipe() as stderr,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        pytest.raises(SystemExit) as ended,
    ):
        main(words, CommandSettings(plots=False))
    assert ended.value.code == 0
    assert command("status", "--json").json["completed"] == 2


def test_a_name_that_the_locale_cannot_write_is_refused_when_the_file_is_read(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(tiny.read_text().replace('name = "tiny"', 'name = "größe"'), encoding="utf-8")
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start_command(tmp_path, "studies", "check", "tiny.toml", **ascii_locale)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (2, "")
    assert stderr == (
        "error: tiny.toml: name: 'gr\\xf6\\xdfe' cannot name a folder in this locale (ascii); set PYTHONUTF8=1, or "
        "give another name\n"
    )


@pytest.mark.slow
def test_the_first_command_of_a_new_user_prints_no_messages_of_libraries(tmp_path: Path) -> None:
    # matplotlib logs a warning about such a folder, and another one while it looks for fonts.
    changes = {"MPLCONFIGDIR": "/proc/nothing", "XDG_RUNTIME_DIR": ""}
    process = start_command(tmp_path, "draw", "samples", "--count", 1, "--output", "new.png", **changes)
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")
    assert stdout.startswith("new.png: ")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 10])
def test_a_narrow_terminal_without_abilities_shows_everything(finished: FinishedStudy, columns: int) -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(finished.folder)
        os.execve(
            sys.executable, [sys.executable, "-m", "fmnist_search", "leaderboard"], clean_environment(TERM="dumb")
        )
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    printed = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while received := os.read(terminal, 65_536):
            printed += received
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    os.close(terminal)
    expected = run_command(finished.folder, "leaderboard").stdout
    assert printed.decode().replace("\r\n", "\n") == expected
