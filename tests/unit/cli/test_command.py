"""How the words of a command line are read: boolean options with values, empty values, and mistakes in one line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import pytest
import typer

from fmnist_search.cli import main
from fmnist_search.cli.command import Command, CommandGroup, given_command
from fmnist_search.version import VERSION
from tests.support.commands import leaf_commands

COMMANDS = leaf_commands()
FLAGS = [
    (name, option.name, option.opts[0])
    for name, command in COMMANDS.items()
    for option in command.params
    if getattr(option, "is_flag", False)
]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_all_commands_are_of_our_class() -> None:
    assert [name for name, command in COMMANDS.items() if not isinstance(command, Command)] == []
    assert len(FLAGS) > 30


@pytest.mark.parametrize(("command", "parameter", "option"), FLAGS)
def test_a_boolean_option_takes_a_value_as_well(command: str, parameter: str, option: str) -> None:
    def parse(*words: str) -> object:
        return COMMANDS[command].make_context("x", list(words), resilient_parsing=True).params[parameter]

    assert parse(option) is parse(option, "true") is parse(option, "True") is parse(f"{option}=true") is True
    assert not parse(option, "false")
    assert not parse(f"{option}=false")


def test_a_value_that_is_another_options_is_left_alone(tmp_path: Path) -> None:
    context = COMMANDS["search"].make_context(
        "x", ["--name", "--fresh", "true", "--", "--json"], resilient_parsing=True
    )
    assert (context.params["name"], context.params["fresh"], context.params["as_json"]) == ("--fresh", False, False)


def test_an_option_with_a_name_for_no_is_turned_off_by_false() -> None:
    for words in (["--deterministic", "false"], ["--no-deterministic"]):
        context = COMMANDS["search"].make_context("x", words, resilient_parsing=True)
        assert context.params["deterministic"] is False


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "lenet", "--epochs", "0"], "epochs: 0 is out of bounds; give a whole number at least 1 and at most"),
        (["sweep-lr", "lenet", "--epochs", "0"], "epochs: 0 is out of bounds"),
        (["train", "lenet", "--seeds", "2", "--workers", "²"], "execution.workers: '²' is not a number of trials"),
        (["train", "lenet", "--seeds", "1000000"], "train: Invalid value for '--seeds'"),
        (["search", ""], "an argument: is empty; give a value, or leave it out"),
        (["search", "x.toml", "--name", ""], "--name: is empty"),
        (["search", "x.toml", "--name="], "--name: is empty"),
        (["evaluate", ""], "an argument: is empty"),
        (["predict", "--test-images", "0:100000000000"], "--test-images 0:100000000000: is not a range of the 10,000"),
        (["predict", "--test-images", f"0:{'9' * 5_000}"], "--test-images 0:9999"),
        (["space", "x.toml", "--json=maybe"], "--json: 'maybe' is not true or false"),
        (["space"], "space: Missing argument 'study'; see `fmnist-search space --help`"),
        (
            ["models", "show", "--colour"],
            "models show: No such option: --colour; see `fmnist-search models show --help`",
        ),
        (["spaces"], "fmnist-search: No such command 'spaces'"),
        (["models", "recipes", "/dev/null/no/such/folder"], "/dev/null/no/such"),
        (["draw", "samples", "--output", "x.png", "--seed", str(2**64)], "draw samples: Invalid value for '--seed'"),
    ],
    ids=lambda value: shlex.join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_debug_shows_where_a_mistake_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--debug", "train", "lenet", "--epochs", "0"], ["train", "lenet", "--epochs", "0", "--debug"]):
        code, out, err = run(capsys, *words)
        assert (code, out) == (2, "")
        assert err.startswith("Traceback")
        assert "UserError: epochs: 0 is out of bounds" in err.splitlines()[-1]


def test_debug_that_is_turned_off_shows_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "train", "lenet", "--epochs", "0", "--debug", "false")
    assert err.startswith("error: epochs: 0")


@pytest.mark.parametrize(("words", "command"), [([], "leaderboard"), (["draw"], "samples")])
def test_a_group_without_a_command_shows_its_help(
    capsys: pytest.CaptureFixture[str], words: list[str], command: str
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(" ".join(["Usage: fmnist-search", *words, "[OPTIONS] COMMAND"]))
    assert command in err
    assert "error:" not in err


def test_a_name_that_the_file_system_cannot_have_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", "\ud800.toml")
    assert code == 2
    assert err.startswith("error: '\\ud800': this locale has no such character (utf-8); set PYTHONUTF8=1")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"fmnist-search {VERSION}\n", "")


def test_a_command_is_written_again_as_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    group = CommandGroup(name="program")

    @group.command()
    def work(
        context: typer.Context,
        study: Path,
        numbers: list[int] | None = None,
        name: str = "default",
        minutes: float | None = None,
        force: bool = False,
        fresh: bool = False,
        wait: Annotated[bool, typer.Option("--wait/--no-wait")] = True,
    ) -> None:
        print(given_command(context, without={"fresh"}))

    @group.command()
    def other(context: typer.Context, name: str) -> None:
        print(given_command(context, only={"name"}, extra="--resume 3"))

    def given(*words: str) -> str:
        group([*words], prog_name="program", standalone_mode=False)
        return capsys.readouterr().out.strip()

    options = ["--numbers", "1", "--numbers", "2", "--name", "it's $HOME", "--minutes", "0.5"]
    written = given("work", *options, "--fresh", "--force", "a b.toml")
    assert shlex.split(written) == ["program", "work", "a b.toml", *options, "--force"]
    assert given("work", "x") == "program work x"
    assert given("work", "--no-wait", "x") == "program work x --no-wait"
    assert given("other", "--", "-x") == "program other --resume 3 -- -x"
