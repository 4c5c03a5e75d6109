"""The progress of trainings and of studies on stderr; without a terminal, a line for each epoch or trial."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import progress
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fmnist_search.cli.output import format_duration, format_percent, sparkline, stderr
from fmnist_search.results.study import PAUSED_AT_END
from fmnist_search.results.training import TrialState
from fmnist_search.workflows.callbacks import StudyCallback

if TYPE_CHECKING:
    from fmnist_search.config.study_config import StudyConfig
    from fmnist_search.recipe.recipe import Recipe
    from fmnist_search.results.study import RunningTrial, TrialRecord
    from fmnist_search.results.training import EpochReport
    from fmnist_search.training.loop import Progress, ProgressCallback

STATE_STYLES = {
    TrialState.COMPLETED: "green",
    TrialState.PRUNED: "yellow",
    TrialState.FAILED: "red",
    TrialState.INTERRUPTED: "magenta",
    TrialState.PAUSED: "cyan",
    TrialState.REFUSED: "magenta",
}


COUNTED_STATES = (TrialState.PRUNED, TrialState.PAUSED, TrialState.FAILED, TrialState.REFUSED)
"""The states whose numbers of trials are shown besides the number of all."""


class MessagePrinter(StudyCallback):
    """Prints messages and no epochs: for several trainings at once."""

    def __init__(self, console: Console = stderr) -> None:
        self._console = console

    def on_message(self, text: str) -> None:
        """Print a message."""
        self._console.print(Text(text))


class TrainingProgressDisplay(MessagePrinter):
    """Prints a line for each epoch of a training, and shows a bar during the epoch if there is a terminal."""

    def __init__(self, console: Console = stderr) -> None:
        super().__init__(console)
        self._bar: progress.Progress | None = None
        self._epochs = 0

    def on_training_start(self, name: str, recipe: Recipe) -> None:
        """Print the name of the training."""
        self._epochs = recipe.epochs
        self._console.print(name, markup=False)

    @property
    def progress_callback(self) -> ProgressCallback | None:
        """The function to call within an epoch; None without a terminal."""
        return self._on_progress if self._console.is_terminal else None

    def _on_progress(self, progressed: Progress) -> None:
        if self._bar is None:
            columns = [progress.TextColumn("  {task.description}"), progress.BarColumn(), progress.TaskProgressColumn()]
            self._bar = progress.Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("", total=1.0)
            self._bar.start()
        name = f"epoch {progressed.epoch} of {self._epochs}"
        metrics = f"loss {progressed.loss:.4f}, accuracy {format_percent(progressed.accuracy)}"
        self._bar.update(self._bar.task_ids[0], completed=progressed.fraction, description=f"{name}: {metrics}")

    def on_training_end(self, name: str) -> None:
        """Remove the bar."""
        self._remove_bar()

    def _remove_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def on_epoch_end(self, name: str, report: EpochReport) -> None:
        """Print the metrics of an epoch."""
        self._remove_bar()
        validation = ""
        if report.val_loss is not None:
            validation = f", validation loss {report.val_loss:.4f}, accuracy {format_percent(report.val_accuracy)}"
        self._console.print(
            f"  epoch {report.epoch}: loss {report.train_loss:.4f}, accuracy {format_percent(report.train_accuracy)}"
            f"{validation}, {report.seconds:.1f} s"
        )


class StudyProgressDisplay(StudyCallback):
    """Prints a line for each trial of a study, and below them a live display if there is a terminal."""

    def __init__(self, config: StudyConfig, console: Console = stderr):
        self._config = config
        self._console = console
        self._started = time.monotonic()
        self._trials: dict[int, TrialRecord] = {}
        self._previous_trials = 0
        self._previous_seconds = 0.0
        self._curves: dict[str, list[float]] = {}
        self._has_refused = False
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> StudyProgressDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_study_start(self, trials: Sequence[TrialRecord], seconds: float) -> None:
        """Count the trials and the seconds of earlier sessions."""
        self._trials = {trial.number: trial for trial in trials}
        self._previous_trials = self._begun_count()
        self._previous_seconds = seconds

    def on_message(self, text: str) -> None:
        """Print a message."""
        self._console.print(Text(text))

    def on_training_start(self, name: str, recipe: Recipe) -> None:
        """Add a curve to the display."""
        self._curves = {**self._curves, name: []}

    def on_epoch_end(self, name: str, report: EpochReport) -> None:
        """Add an epoch to the curve of that name."""
        if report.val_accuracy is not None:
            self._curves[name].append(report.val_accuracy)

    def on_training_end(self, name: str) -> None:
        """Remove the curve of that name."""
        self._curves = {running: curve for running, curve in self._curves.items() if running != name}

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Print the line of a trial, unless it is paused: it may be so after each epoch.

        Of refused trials, and of those that are paused at the end of the search, there may be hundreds. Only the first
        refused one has a line. Others are counted.
        """
        self._trials[trial.number] = trial
        if trial.state is TrialState.PAUSED or trial.reason == PAUSED_AT_END:
            return
        if trial.state is TrialState.REFUSED:
            self._print_refusal(trial)
            return
        self._console.print(
            Text.assemble(
                f"{trial.number:03d} ",
                (f"{trial.state.value:<11}", STATE_STYLES[trial.state]),
                f"{format_percent(trial.value):>7}  {trial.recipe.label:<24} {trial.seconds:5.1f} s  ",
                self._format_counts(),
                f"  ({trial.reason})" if trial.state is TrialState.FAILED else "",
            )
        )

    def _print_refusal(self, trial: TrialRecord) -> None:
        if not self._has_refused:
            name = f"{trial.number:03d} {trial.state.value:<11}{'-':>7}  {trial.recipe.label:<24}"
            self._console.print(Text(f"{name} ({trial.reason}; further ones are counted)"))
        self._has_refused = True

    def print_counts(self) -> None:
        """Print the name of the study and the number of its trials."""
        self._console.print(f"{self._config.name}: {self._format_counts()}", markup=False)

    def show_running(self, trials: Sequence[RunningTrial]) -> None:
        """Show the curves of these trials in place of all others."""
        self._curves = {f"{trial.number:03d} {trial.recipe.label}": list(trial.curve) for trial in trials}

    def _begun_count(self) -> int:
        """Return the number of trials that count against the budget: those that have ended, or are paused."""
        return sum(
            (trial.is_final or trial.state is TrialState.PAUSED) and trial.duplicate_of is None
            for trial in self._trials.values()
        )

    def _format_counts(self) -> str:
        trained = [trial for trial in self._trials.values() if trial.duplicate_of is None]
        counts = {state: sum(trial.state is state for trial in trained) for state in TrialState}
        values = [trial.value for trial in trained if trial.state is TrialState.COMPLETED and trial.value is not None]
        total = self._config.budget.trials
        parts = [
            f"{self._begun_count()}{f' of {total}' if total else ''} trials",
            f"best {format_percent(max(values, default=None))}",
            *(f"{counts[state]} {state.value}" for state in COUNTED_STATES if counts[state]),
        ]
        return ", ".join(parts)

    def _format_pace(self) -> str:
        elapsed = time.monotonic() - self._started
        new = self._begun_count() - self._previous_trials
        if not new:
            return format_duration(elapsed)
        left = self._seconds_left(elapsed, new)
        return f"{format_duration(elapsed)}, {new * 60 / elapsed:.1f} trials a minute" + (
            f", about {format_duration(left)} left" if left is not None else ""
        )

    def _seconds_left(self, elapsed: float, new_trials: int) -> float | None:
        budget = self._config.budget
        estimates = []
        if budget.trials is not None:
            estimates.append(max(budget.trials - self._begun_count(), 0) * elapsed / new_trials)
        if budget.minutes is not None:
            estimates.append(max(budget.minutes * 60 - elapsed - self._previous_seconds, 0))
        return min(estimates, default=None)

    def _render(self) -> Table:
        total = self._config.budget.trials
        lines = Table.grid()
        lines.add_row(Text(f"{self._config.name}: {self._format_counts()}; {self._format_pace()}", style="bold"))
        if total:
            lines.add_row(ProgressBar(total=total, completed=self._begun_count(), width=60))
        for name, curve in self._curves.items():
            latest = f"{format_percent(curve[-1])} after epoch {len(curve)}" if curve else "first epoch"
            lines.add_row(Text(f"{name}  {sparkline(curve)}  {latest}"))
        return lines
