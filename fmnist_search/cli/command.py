"""The classes of the commands: how the words of a command line are read, and how a command line is written again."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import typer
from typer.core import TyperCommand

from fmnist_search.cli.streams import finish_without_reader
from fmnist_search.errors import UserError
from fmnist_search.text import redacted_command

Function = TypeVar("Function", bound=Callable[..., Any])


class Command(TyperCommand):
    """A command whose boolean options take a value as well, and which refuses empty values.

    `mlflow run` gives every option a value: `-P no-tracking=true` becomes `--no-tracking true`. An empty value is
    often that of a shell variable that is not set, so it does not stand for the default.
    """

    finishes_without_reader: ClassVar[bool] = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line.

        Raises:
            UserError: if a value is empty, or that of a boolean option is not true or false.
        """
        return super().parse_args(ctx, _read_words(self.params, args))

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Typer ends the process silently on every `BrokenPipeError`, also on one that has nothing to do with the output.
        """
        finish_without_reader.set(self.finishes_without_reader)
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ConnectionError(str(error)) from error


class TrainingCommand(Command):
    """A command that trains: it goes on, with the same exit code, if nobody reads what it prints."""

    finishes_without_reader = True


class CommandGroup(typer.Typer):
    """A group of commands of our class."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Return the decorator that adds a function as a command."""
        return super().command(name, **{"cls": Command, **settings})

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Run the command that the words of a command line name."""
        return self._built(*arguments, **settings)

    @cached_property
    def _built(self) -> Any:
        """All commands as Typer builds them, which takes longer than many of them run."""
        return typer.main.get_command(self)


def _read_words(parameters: Sequence[Any], words: Sequence[str]) -> list[str]:
    """Return the words with boolean values replaced by the options that mean them."""
    flags = {name: option for option in parameters for name in option.opts if getattr(option, "is_flag", False)}
    valued = {name for option in parameters for name in option.opts if name.startswith("-")} - flags.keys()
    remaining, read = deque(words), list[str]()
    while remaining:
        word = remaining.popleft()
        name, equals, value = word.partition("=")
        if word == "--":
            return [*read, word, *remaining]
        if word in valued:
            read.append(word)
            if remaining:
                read.append(remaining.popleft())
                _check_not_empty(word, read[-1])
        elif name in flags:
            if not equals:
                value = remaining.popleft() if remaining and remaining[0].lower() in ("true", "false") else "true"
            read += _flag_words(flags[name], name, value)
        else:
            _check_not_empty(name or "an argument", value if name in valued else word)
            read.append(word)
    return read


def _flag_words(option: Any, name: str, value: str) -> list[str]:
    match value.lower():
        case "true":
            return [name]
        case "false":
            return list(option.secondary_opts[:1])
    raise UserError(f"{name}: {value!r} is not true or false; give the option without a value, or leave it out")


def _check_not_empty(name: str, value: str) -> None:
    if not value:
        raise UserError(f"{name}: is empty; give a value, or leave it out")


def pop_flag(words: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Return whether a boolean option is among the words, wherever it stands, and the other words."""
    found, others = False, list[str]()
    remaining = deque(words)
    while remaining:
        word = remaining.popleft()
        if word == name:
            given = remaining.popleft() if remaining and remaining[0].lower() in ("true", "false") else "true"
            found = given.lower() == "true"
        else:
            others.append(word)
    return found, others


def given_command(
    context: typer.Context, *, without: Collection[str] = (), only: Collection[str] | None = None, extra: str = ""
) -> str:
    """Return the command line that gives a command what this one was given, quoted for the shell, without passwords.

    `without` names parameters to leave out, `only` those to take; `extra` stands before them.
    """
    words = given_words(context, without=without, only=only)
    return " ".join(filter(None, [context.command_path, extra, redacted_command(words)]))


def given_words(
    context: typer.Context, *, without: Collection[str] = (), only: Collection[str] | None = None
) -> list[str]:
    """Return the words of the command line that give a command what this one was given, after its name.

    `without` names parameters to leave out, `only` those to take.
    """
    arguments: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        wanted = parameter.name not in without and (only is None or parameter.name in only)
        if not wanted or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[parameter.name or ""]
        values = list(map(str, value)) if isinstance(value, list | tuple) else [str(value)]
        if parameter.param_type_name == "argument":
            arguments += values
        elif value is True:
            options.append(parameter.opts[0])
        elif value is False:
            options += parameter.secondary_opts[:1]
        else:
            options += [word for each in values for word in (parameter.opts[0], each)]
    if any(argument.startswith("-") for argument in arguments):
        options, arguments = [], [*options, "--", *arguments]
    return [*arguments, *options]


def confirm(command: str, question: str, *, yes: bool) -> None:
    """Ask a question before something is removed or changed, unless the user has said `yes` with an option.

    Raises:
        UserError: if nobody can be asked.
        typer.Exit: if the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{command}: asks first, which needs a terminal; add --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(0)
