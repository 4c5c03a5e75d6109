"""Commands, study files and searches that README, docs, help and messages show are valid; test_pages.py runs them."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from mlflow import MlflowClient
from typer.exceptions import TyperException

from fmnist_search.cli import app
from fmnist_search.config.study_config import StudyConfig
from tests.integration.conftest import FinishedStudy
from tests.support.pages import PAGES, ROOT, all_commands, page_snippets, program_arguments

Command = Any  # of Typer's copy of click, whose classes it does not export
PROGRAM: Command = typer.main.get_command(app)
NOT_PARSED = (["search"], ["space"], ["train"], ["--version"], ["--help"], ["COMMAND", "--help"])
"""Names of commands in sentences, without the arguments that they require, and options that end the program."""


def example_commands(command: Command = PROGRAM) -> Iterator[str]:
    """Yield the examples of the help texts of a command and of those below it."""
    yield from (line.strip() for line in (command.help or "").splitlines() if line.startswith("  fmnist-search "))
    for below in getattr(command, "commands", {}).values():
        yield from example_commands(below)


def recommended_commands() -> Iterator[str]:
    """Yield the command lines in backquotes that the program prints, with VALUE for what it inserts."""
    texts = [file.read_text() for file in (ROOT / "fmnist_search").rglob("*.py")]
    for code in texts:
        for node in ast.walk(ast.parse(code)) if "`fmnist-search " in code else ():
            match node:
                case ast.JoinedStr(values=parts):
                    text = "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in parts)
                case ast.Constant(value=str(text)):
                    pass
                case _:
                    continue
            yield from re.findall(r"`(fmnist-search [^`]+)`", " ".join(text.split()))


def parse(arguments: list[str]) -> None:
    """Parse the arguments of a command line as the program does, and run nothing."""
    command, names, rest = PROGRAM, ["fmnist-search"], arguments
    while rest and rest[0] in getattr(command, "commands", {}):
        command, names, rest = command.commands[rest[0]], [*names, rest[0]], rest[1:]
    assert not hasattr(command, "commands") or not rest, f"{rest[0]} is no command"
    command.make_context(" ".join(names), list(rest))


SHOWN = sorted({snippet.text for snippet in all_commands()} | set(example_commands()) | set(recommended_commands()))


@pytest.mark.parametrize("text", [text for text in SHOWN if program_arguments(text) is not None])
def test_every_command_that_pages_help_or_messages_show_can_be_parsed(text: str) -> None:
    arguments = program_arguments(text) or []
    if arguments not in NOT_PARSED:
        parse(arguments)


def test_wrong_arguments_of_a_shown_command_are_found() -> None:
    for arguments in (
        ["serach", "x.toml"],
        ["search", "x.toml", "--trails", "3"],
        ["studies", "cpoy"],
        ["train", "--epochs"],
    ):
        with pytest.raises((AssertionError, TyperException)):
            parse(arguments)


def test_mlflow_understands_the_searches_of_the_page(finished: FinishedStudy) -> None:
    client = MlflowClient(finished.tracking_uri)
    (block,) = (snippet.text for snippet in page_snippets(ROOT / "docs" / "mlflow.md") if snippet.language == "text")
    searches = block.strip().splitlines()
    found = {search: client.search_runs(["1"], search) for search in searches}
    assert len(found["tags.study = 'quick' and tags.kind = 'trial'"]) == 0
    assert len(client.search_runs(["1"], searches[0].replace("quick", "tiny"))) == 4
    assert len(found["tags.kind = 'finalist' and metrics.\"test/accuracy\" > 0"]) == 1


def test_the_tables_of_study_files_that_the_pages_show_are_valid() -> None:
    base = {"name": "base", "budget": {"trials": 30}, "space": {"cnn": {"depth": [1, 2]}}}
    shown = [snippet for page in PAGES for snippet in page_snippets(page) if snippet.language == "toml"]
    assert len(shown) >= 5
    for snippet in shown:
        tables = tomllib.loads(snippet.text)
        if "plugins" in tables or "project" in tables:  # test_plugins.py searches with it
            continue
        assert StudyConfig.from_dict(base | tables).budget.trials == 30, snippet.page
