"""The Typer application, the options that commands share, and the handling of errors."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from socketserver import BaseServer
from typing import TYPE_CHECKING, Annotated

import typer
from typer.exceptions import TyperException

from fmnist_search.cli.command import CommandGroup, pop_flag
from fmnist_search.cli.mlflow_run import explain_failure
from fmnist_search.cli.server_process import run_server
from fmnist_search.cli.streams import (
    OutputClosed,
    encode_any_text,
    finish_without_reader,
    outlive_terminal,
    write_output,
)
from fmnist_search.errors import UserError
from fmnist_search.files import PRIVATE_UMASK
from fmnist_search.text import first_line, redact
from fmnist_search.third_party_messages import silence_libraries
from fmnist_search.user_account import complete_environment
from fmnist_search.version import VERSION

if TYPE_CHECKING:
    from fmnist_search.data.files import DataSource
    from fmnist_search.recipe.recipe import Recipe
    from fmnist_search.workflows.settings import TrackingOptions
    from fmnist_search.workspace import Workspace

app = CommandGroup(
    name="fmnist-search",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Hyperparameter search over convolutional networks for Fashion-MNIST, tracked in MLflow.\n\n"
    "Start with:\n\n  fmnist-search studies copy quick\n\n  fmnist-search search quick.toml",
)

TrackingUriOption = Annotated[
    str | None,
    typer.Option(
        help="Address of the MLflow store; by default MLFLOW_TRACKING_URI, else mlflow.db in the current folder.",
        show_default=False,
    ),
]
WorkdirOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of studies and weights; by default FMNIST_SEARCH_HOME, else fmnist-search/ beside the store."
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        help="Address of Optuna's storage, SQLite or PostgreSQL; by default FMNIST_SEARCH_STORAGE, else optuna.db "
        "in the folder of studies.",
        metavar="URL",
        show_default=False,
    ),
]
DataDirOption = Annotated[Path | None, typer.Option(help="Folder with the files of the dataset.", show_default=False)]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Load a model that this program did not register, or whose files have changed. Code in its files then "
        "runs with your rights.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Override a key of the file, or fix a hyperparameter; repeatable."
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.", show_default=False)]
SamplerOption = Annotated[
    str | None,
    typer.Option(help="Sampler: freeze-thaw, tpe, random, gp, cmaes, qmc or grid.", metavar="NAME", show_default=False),
]
PrunerOption = Annotated[
    str | None,
    typer.Option(
        help="Pruner: halving, hyperband, median, percentile, patience, extrapolation, one-epoch or none.",
        metavar="NAME",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Number of intra-op threads on a CPU.", min=0, show_default=False)
]
BackendOption = Annotated[
    str | None,
    typer.Option(help="What runs trials: threads, processes, ray or auto.", metavar="NAME", show_default=False),
]
WorkersOption = Annotated[
    str | None, typer.Option(help="Number of parallel trials, or auto.", metavar="N", show_default=False)
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        help="Training loop: plain, or graph for CUDA graphs (experimental).", metavar="NAME", show_default=False
    ),
]
DeterministicOption = Annotated[
    bool | None,
    typer.Option("--deterministic/--no-deterministic", help="Use deterministic algorithms only.", show_default=False),
]
StudyOption = Annotated[str | None, typer.Option(help="Study that trial numbers refer to; by default the latest.")]
StudyArgument = Annotated[
    str | None, typer.Argument(help="Name of a study; by default the latest.", show_default=False)
]


def run_process() -> None:
    """Run the command line as a process, and end the process as soon as the command is done.

    The interpreter takes over a second to unload torch and MLflow. Exit handlers run first; then `os._exit` ends the
    process.
    """
    code: int | None = None

    def end() -> None:
        if code is not None:
            with contextlib.suppress(OSError):  # the interpreter then reports what cannot be written
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    outlive_terminal()
    atexit.register(end)  # libraries register their handlers later, and these run first
    if "--debug" not in sys.argv:
        silence_libraries()
    try:
        main()
    except SystemExit as exit_:
        if isinstance(exit_.code, int | None):
            code = exit_.code or 0
        if has_running_training():
            atexit.register(end)  # runs before the handler that waits for the epoch
        raise


@dataclass(frozen=True)
class CommandSettings:
    """Settings of all commands that have no option.

    With `plots` false, no figures are rendered. `run_server` runs a server in a process of its own, and `serve`
    lets a server of this process answer, both until they are interrupted.
    """

    plots: bool = True
    run_server: Callable[[Sequence[str], str, Callable[[], None]], int] = run_server
    serve: Callable[[BaseServer], object] = BaseServer.serve_forever


def command_settings(context: typer.Context) -> CommandSettings:
    """Return the settings that `main` was given."""
    return context.obj if isinstance(context.obj, CommandSettings) else CommandSettings()


def plots_enabled(context: typer.Context) -> bool:
    """Return whether a command renders figures into the runs that it writes."""
    return command_settings(context).plots


def tracking_options(context: typer.Context, *, enabled: bool = True) -> TrackingOptions:
    """Return what a command about a study writes to MLflow."""
    from fmnist_search.workflows.settings import TrackingOptions

    options = TrackingOptions(enabled=enabled)
    return options if plots_enabled(context) else replace(options, plot_interval=None)


def main(arguments: list[str] | None = None, settings: CommandSettings = CommandSettings()) -> None:
    """Run a command; turn errors into one line each on stderr and an exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.argv = ["fmnist-search", *arguments]  # MLflow records it as the command
    debug, words = pop_flag(arguments, "--debug")
    os.umask(PRIVATE_UMASK)  # by default MLflow makes its database readable by everybody
    complete_environment()
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a command sends nothing that its user did not ask for
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # Imports create a million objects that stay; with the default threshold, collections during them take a second.
    gc.set_threshold(100_000, 50, 100)
    encode_any_text(sys.stdout, sys.stderr)
    finish_without_reader.set(False)  # a program may call this several times
    try:
        code = app(words, prog_name="fmnist-search", obj=settings, standalone_mode=False)
        write_output()
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except OutputClosed:
        sys.exit(OutputClosed.exit_code)
    except TyperException as error:
        explain_failure(redact(error.format_message()))
        sys.exit(_print_usage_error(error))
    except Exception as error:
        if debug:
            sys.stderr.write(redact(traceback.format_exc()))
            sys.exit(error.exit_code if isinstance(error, UserError) else 1)
        explain_failure(first_line(error))
        sys.exit(_print_error(error))


def has_running_training() -> bool:
    """Return whether a training still runs in a thread after a second Ctrl-C."""
    if "fmnist_search.execution.thread_backend" not in sys.modules:  # the command did not load torch
        return False
    from fmnist_search.execution.thread_backend import is_training

    return is_training()


def _print_error(error: Exception) -> int:
    from fmnist_search.cli.output import ExitCode, print_error
    from fmnist_search.sqlite_files import disk_full_error, is_disk_full

    if isinstance(error, UnicodeEncodeError):
        name = ascii(error.object[error.start : error.end])
        error = UserError(f"{name}: this locale has no such character ({error.encoding}); set PYTHONUTF8=1")
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        error = UserError(
            f"{error.filename}: {error.strerror}; check the path, its permissions and the space on its disk"
        )
    elif not isinstance(error, UserError) and is_disk_full(error):
        error = disk_full_error(f"a file ({first_line(error)})")
    if isinstance(error, UserError):
        print_error(error)
        return error.exit_code
    print_error(
        UserError(f"unexpected {type(error).__name__}: {first_line(error)}; run it again with --debug to see where")
    )
    return ExitCode.UNEXPECTED_ERROR


def _print_usage_error(error: TyperException) -> int:
    from fmnist_search.cli.output import print_error

    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fmnist-search"
    message = error.format_message()
    if context and message == context.get_help():  # a group without a command
        typer.echo(message, err=True)
    else:
        print_error(UserError(f"{command.partition(' ')[2] or command}: {message.rstrip('.')}; see `{command} --help`"))
    return error.exit_code


def _print_version(given: bool) -> None:
    if given:
        write_output(f"fmnist-search {VERSION}\n")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Describe --debug in the help; `main` reads it, so that it may stand anywhere."""


def check_output_path(path: Path, *, suffix: str = "", force: bool = True) -> None:
    """Check that a file may be written, before the work for it begins.

    Raises:
        UserError: if the name does not end in `suffix`, the file exists and `force` is not set, or its folder does not
            exist or cannot be written.
    """
    if suffix and path.suffix.lower() != suffix:
        raise UserError(f"{path}: the file is written as {suffix[1:].upper()}; give a name that ends in {suffix}")
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; give another name, or replace it with --force")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        problem = os.strerror(errno.EACCES if path.parent.is_dir() else errno.ENOENT)
        raise UserError(f"{path}: cannot be written ({problem}); choose another place")


def image_source(data_dir: Path | None) -> DataSource:
    """Return where the files of a dataset are searched: the given folder and the cache."""
    from fmnist_search.data.files import DataSource
    from fmnist_search.workspace import image_cache_folder

    return DataSource(image_cache_folder(), data_dir)


def load_recipe(name: str) -> Recipe:
    """Return the recipe of a file, a preset or a family.

    Raises:
        UserError: if there is none, or the file is invalid.
    """
    from fmnist_search.config.toml_files import read_recipe
    from fmnist_search.models.presets import get_preset

    return read_recipe(name) if is_recipe_file(name) else get_preset(name).recipe


def is_recipe_file(name: str) -> bool:
    """Return whether the name is that of a recipe file rather than of a preset."""
    return name.endswith(".toml") or "/" in name or Path(name).is_file()


def parse_workers(text: str) -> int | str:
    """Return the value of --workers, a number or "auto".

    Raises:
        UserError: if it is neither.
    """
    from fmnist_search.config.execution import check_workers

    return check_workers(int(text) if re.fullmatch("[0-9]{1,9}", text) else text)


def make_workspace(
    tracking_uri: str | None = None,
    workdir: str | None = None,
    data_dir: Path | None = None,
    storage: str | None = None,
) -> Workspace:
    """Return the workspace that a command's options, the environment and the current folder define."""
    from fmnist_search.workspace import Workspace

    return Workspace.resolve(tracking_uri, workdir, data_dir, storage)
