"""What a person sees: progress and tables on stderr and stdout, JSON on request, and the exit codes.

Data goes to stdout, talk to stderr. Where there is no terminal, every trial is one plain line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from rich import progress
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.errors import UserError
from fmnist_search.recipe.formatting import format_value, format_value_short, short_names
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import TrialRecord
from fmnist_search.results.training import EpochReport, TrialState
from fmnist_search.workflows.callbacks import StudyCallback

if TYPE_CHECKING:
    from fmnist_search.training.loop import Progress, ProgressCallback

stdout = Console(highlight=False, soft_wrap=True, emoji=False)
stderr = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

SPARKLINE_BLOCKS = "▁▂▃▄▅▆▇█"
STATE_STYLES = {
    TrialState.COMPLETED: "green",
    TrialState.PRUNED: "yellow",
    TrialState.FAILED: "red",
    TrialState.INTERRUPTED: "magenta",
}


class ExitCode(IntEnum):
    """The exit codes that scripts may rely on."""

    SUCCESS = 0
    UNEXPECTED_ERROR = 1
    USAGE_ERROR = 2
    NOTHING_COMPLETED = 3
    TOO_MANY_FAILURES = 4
    INTERRUPTED = 130


def show_json(value: object) -> None:
    """Print a value as JSON on stdout. It consists of what JSON knows; `cli.serialization` makes it."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_error(error: UserError) -> None:
    """A user's mistake: its lines, and nothing else."""
    for line in error.lines:
        stderr.print(Text.assemble(("error: ", "bold red"), line))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of texts."""
    headers = [Column(name, no_wrap=True) for name in columns]
    made = Table(*headers, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def print_table(table: Table) -> None:
    """A table on stdout, never squeezed into a narrow terminal or a pipe: a line that wraps loses nothing."""
    needed = Console(width=10_000).measure(table).maximum
    Console(highlight=False, width=max(stdout.width, needed)).print(table)


def leaderboard_table(rows: Sequence[TrialRecord], names: Sequence[str]) -> Table:
    """Completed trials, the best first, with what the study searches; the network's name says its widths."""
    names = [name for name in names if not name.startswith("model.width_")]
    body = []
    for row in rows:
        flat = row.recipe.to_flat_dict()
        values = [format_value_short(flat[name]) if name in flat else "-" for name in names]
        body.append([str(row.number), f"{row.value:.2%}", row.recipe.label, f"{row.seconds:.1f}", *values])
    return make_table(["trial", "val_accuracy", "network", "seconds", *short_names(names)], body)


def print_trial(trial: TrialRecord, names: Sequence[str]) -> None:
    """A trial on stdout: how it ended, its curve, and its values of what the study searches."""
    reason = f" ({trial.reason})" if trial.reason else ""
    stdout.print(
        f"trial {trial.number}: {trial.recipe.label}, {trial.state.value}{reason}, {format_percent(trial.value)}",
        markup=False,
    )
    if trial.curve:
        epochs = ", ".join(map(format_percent, trial.curve))
        stdout.print(f"validation accuracy {sparkline(trial.curve)}  {epochs}; {trial.seconds:.1f} s", markup=False)
    flat = trial.recipe.to_flat_dict()
    print_table(make_table(["hyperparameter", "value"], [[n, format_value(flat[n])] for n in names if n in flat]))


def format_percent(value: float | None) -> str:
    """An accuracy for people."""
    return "-" if value is None else f"{value:.2%}"


def format_duration(seconds: float) -> str:
    """A span of time for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class MessagePrinter(StudyCallback):
    """Listens to several trainings at once: what is worth a line, and nothing of their epochs."""

    def on_message(self, text: str) -> None:
        """Something worth a line."""
        stderr.print(Text(text))


class TrainingProgressDisplay(MessagePrinter):
    """Goes along with a training: a line for each epoch, and in a terminal a bar while it is on its way."""

    def __init__(self) -> None:
        self._bar: progress.Progress | None = None
        self._epochs = 0

    def on_training_start(self, name: str, recipe: Recipe) -> None:
        """The training begins."""
        self._epochs = recipe.epochs
        stderr.print(name, markup=False)

    @property
    def progress_callback(self) -> ProgressCallback | None:
        """What sees how an epoch gets on; nothing does where there is no terminal."""
        return self._on_progress if stderr.is_terminal else None

    def _on_progress(self, progressed: Progress) -> None:
        if self._bar is None:
            columns = [progress.TextColumn("  {task.description}"), progress.BarColumn(), progress.TaskProgressColumn()]
            self._bar = progress.Progress(*columns, console=stderr, transient=True)
            self._bar.add_task("", total=1.0)
            self._bar.start()
        figures = f"loss {progressed.loss:.4f}, accuracy {format_percent(progressed.accuracy)}"
        said = f"epoch {progressed.epoch} of {self._epochs}: {figures}"
        self._bar.update(self._bar.task_ids[0], completed=progressed.fraction, description=said)

    def on_training_end(self, name: str) -> None:
        """The training is over, however it ended."""
        self._remove_bar()

    def _remove_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def on_epoch_end(self, name: str, report: EpochReport) -> None:
        """An epoch of it."""
        self._remove_bar()
        stderr.print(
            f"  epoch {report.epoch}: loss {report.train_loss:.4f}, accuracy {format_percent(report.train_accuracy)}, "
            f"validation {format_percent(report.val_accuracy)}, {report.seconds:.1f} s"
        )


class StudyProgressDisplay(StudyCallback):
    """Listens to a study: a live display on a terminal, one plain line a trial elsewhere."""

    def __init__(self, config: StudyConfig):
        self._config = config
        self._started = time.monotonic()
        self._trials: list[TrialRecord] = []
        self._previous_trial_count = 0
        self._previous_seconds = 0.0
        self._curves: dict[str, list[float]] = {}
        self._live = Live(console=stderr, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> StudyProgressDisplay:
        if stderr.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_study_start(self, rows: Sequence[TrialRecord], seconds: float) -> None:
        """A study begins, or goes on after these trials and so many seconds of searching."""
        self._trials = list(rows)
        self._previous_trial_count = len(rows)
        self._previous_seconds = seconds

    def on_message(self, text: str) -> None:
        """Something worth a line."""
        stderr.print(Text(text))

    def on_training_start(self, name: str, recipe: Recipe) -> None:
        """A trial, or a finalist's training, begins; others may run at the same time."""
        self._curves = {**self._curves, name: []}

    def on_epoch_end(self, name: str, report: EpochReport) -> None:
        """An epoch of the training of that name."""
        if report.val_accuracy is not None:
            self._curves[name].append(report.val_accuracy)

    def on_training_end(self, name: str) -> None:
        """The training of that name is over, however it ended."""
        self._curves = {running: curve for running, curve in self._curves.items() if running != name}

    def on_trial_end(self, row: TrialRecord) -> None:
        """A trial of the search is over."""
        self._trials.append(row)
        stderr.print(
            Text.assemble(
                f"{row.number:03d} ",
                (f"{row.state.value:<11}", STATE_STYLES[row.state]),
                f"{format_percent(row.value):>7}  {row.recipe.label:<24} {row.seconds:5.1f} s  {self._format_counts()}",
                f"  ({row.reason})" if row.state is TrialState.FAILED else "",
            )
        )

    def _finished_count(self) -> int:
        return sum(row.is_final and row.duplicate_of is None for row in self._trials)

    def _format_counts(self) -> str:
        own = [row for row in self._trials if row.duplicate_of is None]
        counts = {state: sum(row.state is state for row in own) for state in TrialState}
        done = [row.value for row in own if row.state is TrialState.COMPLETED and row.value is not None]
        total = self._config.budget.trials
        parts = [
            f"{self._finished_count()}{f' of {total}' if total else ''} trials",
            f"best {format_percent(max(done, default=None))}",
            *(f"{counts[state]} {state.value}" for state in (TrialState.PRUNED, TrialState.FAILED) if counts[state]),
        ]
        return ", ".join(parts)

    def _format_pace(self) -> str:
        elapsed = time.monotonic() - self._started
        new = len(self._trials) - self._previous_trial_count
        if not new:
            return format_duration(elapsed)
        left = self._seconds_left(elapsed, new)
        return f"{format_duration(elapsed)}, {new * 60 / elapsed:.1f} trials a minute" + (
            f", about {format_duration(left)} left" if left is not None else ""
        )

    def _seconds_left(self, elapsed: float, new_trials: int) -> float | None:
        budget = self._config.budget
        bounds = []
        if budget.trials is not None:
            bounds.append(max(budget.trials - self._finished_count(), 0) * elapsed / new_trials)
        if budget.minutes is not None:
            bounds.append(max(budget.minutes * 60 - elapsed - self._previous_seconds, 0))
        return min(bounds, default=None)

    def _render(self) -> Table:
        total = self._config.budget.trials
        lines = Table.grid()
        lines.add_row(Text(f"{self._config.name}: {self._format_counts()}; {self._format_pace()}", style="bold"))
        if total:
            lines.add_row(ProgressBar(total=total, completed=self._finished_count(), width=60))
        for name, curve in self._curves.items():
            latest = f"{format_percent(curve[-1])} after epoch {len(curve)}" if curve else "first epoch"
            lines.add_row(Text(f"{name}  {sparkline(curve)}  {latest}"))
        return lines


def sparkline(values: Sequence[float]) -> str:
    """A curve in a line of text, from its lowest value to its highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(SPARKLINE_BLOCKS) - 1) / (high - low) if high > low else 0
    return "".join(SPARKLINE_BLOCKS[round((value - low) * scale)] for value in values)
