"""What a person sees: progress and tables on stderr and stdout, JSON on request, and the exit codes.

Data goes to stdout, talk to stderr. Where there is no terminal, every trial is one plain line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Sequence
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.recipe import Recipe, short_names, short_text, text_of
from fmnist_search.results.study import EpochReport, Silence, State, TrialRow

if TYPE_CHECKING:
    from fmnist_search.training.engine import Progress, Watch

out = Console(highlight=False, soft_wrap=True, emoji=False)
talk = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

BARS = "▁▂▃▄▅▆▇█"
STYLES = {State.COMPLETED: "green", State.PRUNED: "yellow", State.FAILED: "red", State.INTERRUPTED: "magenta"}


class Exit(IntEnum):
    """The exit codes that scripts may rely on."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    NOTHING_COMPLETED = 3
    TOO_MANY_FAILURES = 4
    INTERRUPTED = 130


def show_json(value: object) -> None:
    """A value as JSON on stdout; dataclasses and enums as plain tables and texts."""
    sys.stdout.write(json.dumps(_plain(value), indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.flat()
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def show_error(error: UserError) -> None:
    """A user's mistake: its lines, and nothing else."""
    for line in error.lines:
        talk.print(Text.assemble(("error: ", "bold red"), line))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of texts."""
    headers = [Column(name, no_wrap=True) for name in columns]
    made = Table(*headers, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def show_table(made: Table) -> None:
    """A table on stdout, never squeezed into a narrow terminal or a pipe: a line that wraps loses nothing."""
    needed = Console(width=10_000).measure(made).maximum
    Console(highlight=False, width=max(out.width, needed)).print(made)


def leaderboard(rows: Sequence[TrialRow], names: Sequence[str]) -> Table:
    """Completed trials, the best first, with what the study searches; the network's name says its widths."""
    names = [name for name in names if not name.startswith("model.width_")]
    body = []
    for row in rows:
        flat = row.recipe.flat()
        values = [short_text(flat[name]) if name in flat else "-" for name in names]
        body.append([str(row.number), f"{row.value:.2%}", row.recipe.label, f"{row.seconds:.1f}", *values])
    return table(["trial", "val_accuracy", "network", "seconds", *short_names(names)], body)


def plain_row(row: TrialRow) -> dict[str, Any]:
    """A trial for JSON."""
    plain: dict[str, Any] = _plain(row)
    return plain


def show_trial(row: TrialRow, names: Sequence[str]) -> None:
    """A trial on stdout: how it ended, its curve, and its values of what the study searches."""
    reason = f" ({row.reason})" if row.reason else ""
    out.print(f"trial {row.number}: {row.recipe.label}, {row.state.value}{reason}, {percent(row.value)}", markup=False)
    if row.curve:
        epochs = ", ".join(map(percent, row.curve))
        out.print(f"validation accuracy {sparkline(row.curve)}  {epochs}; {row.seconds:.1f} s", markup=False)
    flat = row.recipe.flat()
    show_table(table(["hyperparameter", "value"], [[n, text_of(flat[n])] for n in names if n in flat]))


def percent(value: float | None) -> str:
    """An accuracy for people."""
    return "-" if value is None else f"{value:.2%}"


def minutes(seconds: float) -> str:
    """A span of time for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class Speaker(Silence):
    """Listens to several trainings at once: what is worth a line, and nothing of their epochs."""

    def say(self, text: str) -> None:
        """Something worth a line."""
        talk.print(Text(text))


class TrainingDisplay(Speaker):
    """Goes along with a training: a line for each epoch, and in a terminal a bar while it is on its way."""

    def __init__(self) -> None:
        self._bar: progress.Progress | None = None
        self._epochs = 0

    def training_started(self, name: str, recipe: Recipe) -> None:
        """The training begins."""
        self._epochs = recipe.epochs
        talk.print(name, markup=False)

    @property
    def watch(self) -> Watch | None:
        """What sees how an epoch gets on; nothing does where there is no terminal."""
        return self._progressed if talk.is_terminal else None

    def _progressed(self, progressed: Progress) -> None:
        if self._bar is None:
            columns = [progress.TextColumn("  {task.description}"), progress.BarColumn(), progress.TaskProgressColumn()]
            self._bar = progress.Progress(*columns, console=talk, transient=True)
            self._bar.add_task("", total=1.0)
            self._bar.start()
        figures = f"loss {progressed.loss:.4f}, accuracy {percent(progressed.accuracy)}"
        said = f"epoch {progressed.epoch} of {self._epochs}: {figures}"
        self._bar.update(self._bar.task_ids[0], completed=progressed.share, description=said)

    def training_ended(self, name: str) -> None:
        """The training is over, however it ended."""
        self._put_bar_away()

    def _put_bar_away(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def epoch_ended(self, name: str, report: EpochReport) -> None:
        """An epoch of it."""
        self._put_bar_away()
        talk.print(
            f"  epoch {report.epoch}: loss {report.train_loss:.4f}, accuracy {percent(report.train_accuracy)}, "
            f"validation {percent(report.val_accuracy)}, {report.seconds:.1f} s"
        )


class StudyDisplay:
    """Listens to a study: a live display on a terminal, one plain line a trial elsewhere."""

    def __init__(self, config: StudyConfig):
        self._config = config
        self._started = time.monotonic()
        self._rows: list[TrialRow] = []
        self._earlier = 0
        self._searched = 0.0
        self._curves: dict[str, list[float]] = {}
        self._live = Live(console=talk, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> StudyDisplay:
        if talk.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def study_opened(self, rows: Sequence[TrialRow], seconds: float) -> None:
        """A study begins, or goes on after these trials and so many seconds of searching."""
        self._rows = list(rows)
        self._earlier = len(rows)
        self._searched = seconds

    def say(self, text: str) -> None:
        """Something worth a line."""
        talk.print(Text(text))

    def training_started(self, name: str, recipe: Recipe) -> None:
        """A trial, or a finalist's training, begins; others may run at the same time."""
        self._curves = {**self._curves, name: []}

    def epoch_ended(self, name: str, report: EpochReport) -> None:
        """An epoch of the training of that name."""
        if report.val_accuracy is not None:
            self._curves[name].append(report.val_accuracy)

    def training_ended(self, name: str) -> None:
        """The training of that name is over, however it ended."""
        self._curves = {running: curve for running, curve in self._curves.items() if running != name}

    def trial_ended(self, row: TrialRow) -> None:
        """A trial of the search is over."""
        self._rows.append(row)
        talk.print(
            Text.assemble(
                f"{row.number:03d} ",
                (f"{row.state.value:<11}", STYLES[row.state]),
                f"{percent(row.value):>7}  {row.recipe.label:<24} {row.seconds:5.1f} s  {self._tally()}",
                f"  ({row.reason})" if row.state is State.FAILED else "",
            )
        )

    def _counted(self) -> int:
        return sum(row.is_final and row.duplicate_of is None for row in self._rows)

    def _tally(self) -> str:
        own = [row for row in self._rows if row.duplicate_of is None]
        counts = {state: sum(row.state is state for row in own) for state in State}
        done = [row.value for row in own if row.state is State.COMPLETED and row.value is not None]
        total = self._config.budget.trials
        parts = [
            f"{self._counted()}{f' of {total}' if total else ''} trials",
            f"best {percent(max(done, default=None))}",
            *(f"{counts[state]} {state.value}" for state in (State.PRUNED, State.FAILED) if counts[state]),
        ]
        return ", ".join(parts)

    def _pace(self) -> str:
        elapsed = time.monotonic() - self._started
        new = len(self._rows) - self._earlier
        if not new:
            return minutes(elapsed)
        left = self._seconds_left(elapsed, new)
        return f"{minutes(elapsed)}, {new * 60 / elapsed:.1f} trials a minute" + (
            f", about {minutes(left)} left" if left is not None else ""
        )

    def _seconds_left(self, elapsed: float, new: int) -> float | None:
        budget = self._config.budget
        bounds = []
        if budget.trials is not None:
            bounds.append(max(budget.trials - self._counted(), 0) * elapsed / new)
        if budget.minutes is not None:
            bounds.append(max(budget.minutes * 60 - elapsed - self._searched, 0))
        return min(bounds, default=None)

    def _render(self) -> Table:
        total = self._config.budget.trials
        lines = Table.grid()
        lines.add_row(Text(f"{self._config.name}: {self._tally()}; {self._pace()}", style="bold"))
        if total:
            lines.add_row(ProgressBar(total=total, completed=self._counted(), width=60))
        for name, curve in self._curves.items():
            latest = f"{percent(curve[-1])} after epoch {len(curve)}" if curve else "first epoch"
            lines.add_row(Text(f"{name}  {sparkline(curve)}  {latest}"))
        return lines


def sparkline(values: Sequence[float]) -> str:
    """A curve in a line of text, from its lowest value to its highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(BARS[round((value - low) * scale)] for value in values)
