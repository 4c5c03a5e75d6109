"""What commands print: tables and JSON on stdout, messages and errors on stderr, and the exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from fmnist_search.cli.streams import discard, on_output_closed, write_output
from fmnist_search.recipe.formatting import format_value, format_value_short, short_names
from fmnist_search.results.objectives import COST_LABELS
from fmnist_search.results.own_costs import cost_label
from fmnist_search.text import printable

if TYPE_CHECKING:
    from fmnist_search.errors import UserError
    from fmnist_search.results.study import TrialRecord
    from fmnist_search.results.training import Accuracy
    from fmnist_search.workflows.across_studies import RankedTrial


class TextConsole(Console):
    """A console that shows texts of users as texts: without markup, and control characters as escapes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, emoji=False, markup=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, without control characters except those of rich itself."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, keep="\n\t"), segment.style)

    def forget(self) -> None:
        """Drop the text that could not be written; rich would write it again before the next one."""
        self.begin_capture()
        self.end_capture()


class ResultConsole(TextConsole):
    """Standard output. If its reader has closed it, the command ends, unless it does more than print."""

    def on_broken_pipe(self) -> None:
        """Discard all further output."""
        try:
            on_output_closed()
        finally:
            self.forget()


class MessageConsole(TextConsole):
    """Standard error. If its reader has closed it, the command goes on without messages."""

    def on_broken_pipe(self) -> None:
        """Discard all further messages, also those of libraries."""
        discard(sys.stderr)
        self.forget()


stdout = ResultConsole(soft_wrap=True)
stderr = MessageConsole(stderr=True, soft_wrap=True)

SPARKLINE_BLOCKS = "▁▂▃▄▅▆▇█"


class ExitCode(IntEnum):
    """The exit codes that scripts may rely on."""

    SUCCESS = 0
    UNEXPECTED_ERROR = 1
    USAGE_ERROR = 2
    NOTHING_COMPLETED = 3
    TOO_MANY_FAILURES = 4
    INTERRUPTED = 130


def print_json(value: object) -> None:
    """Print a value of JSON's own types on stdout; `cli.serialization` turns other values into such.

    Raises:
        TypeError: if the value holds anything else, such as a dataclass or an enum.
    """
    write_output(json.dumps(value, indent=2) + "\n")


def print_error(error: UserError) -> None:
    """Print an error on stderr, a line for each of its lines."""
    for line in error.lines:
        stderr.print(Text.assemble(("error: ", "bold red"), printable(line)))


def print_message(text: str) -> None:
    """Print a message on stderr, as one line."""
    stderr.print(printable(text))


def format_test(test: Accuracy) -> str:
    """Return accuracy and loss on the test images as text; the loss may not have been recorded."""
    return f"{test.value:.2%} on the test images" + ("" if test.loss is None else f" (loss {test.loss:.4f})")


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """Return a table of texts."""
    headers = [Column(name, no_wrap=True) for name in columns]
    table = Table(*headers, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def print_table(table: Table) -> None:
    """Print a table on stdout at its full width: in a narrow terminal or a pipe its lines wrap, and nothing is cut."""
    needed = TextConsole(width=10_000, height=25).measure(table).maximum
    # Without a height, rich takes a width of 80 in a terminal without abilities.
    ResultConsole(width=max(stdout.width, needed), height=25).print(table)


def leaderboard_table(
    trials: Sequence[TrialRecord],
    names: Sequence[str],
    metrics: Sequence[str] = (),
    front: Collection[TrialRecord] = (),
) -> Table:
    """Return a table of completed trials with their values of the named hyperparameters.

    Widths have no column: the name of the network contains them. Costs have one behind the accuracy if they are among
    `metrics`, and multiply-adds, if they are known, behind the network. Trials on a Pareto front, if there is one, have
    a mark.
    """
    from fmnist_search.results.study import trial_cost

    names = [name for name in names if not name.startswith("model.width_")]
    others = ["mult_adds"] if "mult_adds" not in metrics and any(trial.mult_adds for trial in trials) else []
    body = []
    for trial in trials:
        first, last = ([str(trial_cost(trial, metric) or "-") for metric in group] for group in (metrics, others))
        mark = ["*" if trial in front else ""] if front else []
        figures = [f"{trial.value:.2%}", *first, *mark, trial.recipe.label, *last, f"{trial.seconds:.1f}"]
        body.append([str(trial.number), *figures, *_values(trial, names)])
    columns = ["trial", "val_accuracy", *metrics, *(["front"] if front else []), "network", *others, "seconds"]
    return make_table([*columns, *short_names(names)], body)


def paused_table(trials: Sequence[TrialRecord], names: Sequence[str]) -> Table:
    """Return a table of paused trials: their accuracy so far, and the one that is predicted for their last epoch."""
    names = [name for name in names if not name.startswith("model.width_")]
    body = [
        [
            str(trial.number),
            f"{format_percent(trial.value)} after {trial.epochs}",
            str(trial.prediction or "-"),
            trial.recipe.label,
            *_values(trial, names),
        ]
        for trial in trials
    ]
    return make_table(["paused", "val_accuracy", "predicted", "network", *short_names(names)], body)


def _values(trial: TrialRecord, names: Sequence[str]) -> list[str]:
    flat = trial.recipe.to_flat_dict()
    return [format_value_short(flat[name]) if name in flat else "-" for name in names]


def ranked_trials_table(ranked: Sequence[RankedTrial]) -> Table:
    """Return a table of completed trials of several studies, which need not share a hyperparameter."""
    from fmnist_search.results.study import trial_cost

    body = []
    for each in ranked:
        trial = each.trial
        costs = [str(trial_cost(trial, metric) or "-") for metric in COST_LABELS]
        figures = [f"{trial.value:.2%}", trial.recipe.label, *costs, str(trial.epochs), f"{trial.seconds:.1f}"]
        body.append([each.study.summary.name, str(trial.number), *figures])
    return make_table(["study", "trial", "val_accuracy", "network", *COST_LABELS, "epochs", "seconds"], body)


def print_trial(trial: TrialRecord, names: Sequence[str]) -> None:
    """Print a trial on stdout: its state, its curve, and its values of the named hyperparameters."""
    reason = f" ({trial.reason})" if trial.reason else ""
    cost = f", {trial.cost} {cost_label(trial.cost.metric)}" if trial.cost else ""
    stdout.print(
        f"trial {trial.number}: {trial.recipe.label}, {trial.state.value}{reason}, {format_percent(trial.value)}{cost}",
        markup=False,
    )
    if trial.curve:
        epochs = ", ".join(map(format_percent, trial.curve))
        stdout.print(f"validation accuracy {sparkline(trial.curve)}  {epochs}; {trial.seconds:.1f} s", markup=False)
    flat = trial.recipe.to_flat_dict()
    print_table(make_table(["hyperparameter", "value"], [[n, format_value(flat[n])] for n in names if n in flat]))


def format_front(front: Sequence[TrialRecord]) -> str:
    """Return a line with the numbers of the trials on a Pareto front, in ascending order of cost."""
    metric = next(trial.cost.metric for trial in front if trial.cost)
    numbers = ", ".join(str(trial.number) for trial in front)
    return f"Pareto front by {metric}: {'trial' if len(front) == 1 else 'trials'} {numbers}"


def format_percent(value: float | None) -> str:
    """Return an accuracy in percent, "-" for None."""
    return "-" if value is None else f"{value:.2%}"


def format_duration(seconds: float) -> str:
    """Return a duration in seconds, or in minutes from 90 seconds on."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def format_bytes(byte_count: int) -> str:
    """Return a size in kB, or in MB from 100,000 bytes on."""
    return f"{byte_count / 1e6:.1f} MB" if byte_count >= 100_000 else f"{byte_count / 1e3:.1f} kB"


def sparkline(values: Sequence[float]) -> str:
    """Return a curve as a line of blocks, the lowest for its minimum and the highest for its maximum."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(SPARKLINE_BLOCKS) - 1) / (high - low) if high > low else 0
    return "".join(SPARKLINE_BLOCKS[round((value - low) * scale)] for value in values)
