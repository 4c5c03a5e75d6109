"""Commands whose output is not UTF-8, or that nobody reads to the end."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from fmnist_search.cli.app import CommandSettings, main
from tests.integration.conftest import FinishedStudy, RunCommand, run_command
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
