"""The study's own run in MLflow: what it says from the start, while trials run, and at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from fmnist_search.data.loading import Images
from fmnist_search.errors import UserError
from fmnist_search.reporting.study_note import leaderboard_columns, leaderboard_csv, origins_csv, study_note
from fmnist_search.reporting.study_page import available, study_page
from fmnist_search.reporting.study_plots import study_figures
from fmnist_search.reporting.style import as_png
from fmnist_search.results.study import Ending, Importances, State, StudySummary, TrialRow
from fmnist_search.search.study_store import Conditions, Ledger
from fmnist_search.search.suggest import base_recipe, constants, searched
from fmnist_search.tracking.provenance import command_line, environment
from fmnist_search.tracking.run_logger import Run, is_address
from fmnist_search.workflows.jobs import Desk

REFRESH_SECONDS = 300.0
"""How often the pictures of a study that runs are drawn anew, some two seconds of work beside the trials."""
PROGRESS = (State.COMPLETED, State.PRUNED, State.FAILED)


class Logbook:
    """Writes the run of a study; pictures are drawn by the sender, in its idle time."""

    def __init__(self, run: Run, ledger: Ledger, desk: Desk):
        self._run = run
        self._ledger = ledger
        self._desk = desk
        self._drawn_at = time.monotonic()
        self._drawn: tuple[TrialRow, ...] = ()
        self._progress: dict[str, float] = {}

    def open(self, images: Images, conditions: Conditions, workers: int) -> None:
        """What the run says from the start."""
        config = self._ledger.config
        self._run.parameters(constants(config.space, base_recipe(config, conditions.precision)))
        self._run.dataset(images, vars(config.data))
        self._run.text("study.toml", config.to_toml())
        if config.origins:
            self._run.text("study_origins.csv", origins_csv(config.origins))
        self._run.text("command.txt", command_line() + "\n")
        self._run.text("environment.json", json.dumps(environment(conditions.execution), indent=2))
        device = conditions.execution.device
        self._run.tags({"device": device, "optuna_study": config.name, "workers": str(workers)})

    def trial_ended(self, rows: Sequence[TrialRow]) -> None:
        """How far the search has come: what is new of it; from time to time the pictures as well."""
        own = [row for row in rows if row.duplicate_of is None]
        figures = {f"progress/{state.value}": float(sum(row.state is state for row in own)) for state in PROGRESS}
        if done := [row.value for row in own if row.state is State.COMPLETED and row.value is not None]:
            figures["best/val_accuracy"] = max(done)
        new = {name: value for name, value in figures.items() if self._progress.get(name) != value}
        self._progress = figures
        self._run.metrics(new, step=len(rows))
        if time.monotonic() - self._drawn_at > REFRESH_SECONDS:
            self.draw(rows)

    def draw(self, rows: Sequence[TrialRow]) -> None:
        """The pictures of these trials, unless they stand there already."""
        if tuple(rows) == self._drawn:
            return
        self._drawn, self._drawn_at = tuple(rows), time.monotonic()
        drawn, importances = self._drawn, self._importances()
        self._desk.sender.when_idle(lambda: self._draw(drawn, importances))

    def close(self, summary: StudySummary) -> None:
        """The note, the pictures, and how it ended."""
        self._note(summary)
        self.draw(self._ledger.rows())
        self._run.tags({"ended_by": summary.ended_by.name.lower()})
        interrupted = summary.ended_by is Ending.INTERRUPTED
        self._run.end("KILLED" if interrupted else "FINISHED", "interrupted" if interrupted else "finished")

    def _note(self, summary: StudySummary) -> None:
        config = self._ledger.config
        space = {"space.common.family": ", ".join(config.space.families), **dict(config.domains())}
        names, importances = searched(config.space), self._importances()
        self._run.note(study_note(summary, names, space, budget=config.budget, importances=importances))

    def _importances(self) -> Importances | None:
        try:
            return self._ledger.importances()
        except UserError:  # too few trials
            return None

    def _draw(self, rows: Sequence[TrialRow], importances: Importances | None) -> None:
        config = self._ledger.config
        known = [dataclasses.replace(row, run_id=self._run_of(row)) for row in rows]
        names = searched(config.space)
        self._run.table("leaderboard.json", leaderboard_columns(known, names))
        self._run.text("leaderboard.csv", leaderboard_csv(known, names))
        for name, draw in study_figures(rows, config.space, importances).items():
            self._run.file(f"plots/{name}.png", as_png(draw()))
        if available():
            page = study_page(config.name, config.question, rows, config.space, importances)
            self._run.text("plots/study.html", page)

    def _run_of(self, row: TrialRow) -> str | None:
        """Its run, which the sender has made by the time that pictures are drawn."""
        return self._desk.sender.run_id(row.run_id) if row.run_id and is_address(row.run_id) else row.run_id


@contextlib.contextmanager
def system_metrics(run: Run) -> Iterator[None]:
    """Processor, memory and GPU on the run while this lasts, where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING asks for it."""
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        yield
        return
    monitor = _Monitor(run)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


class _Monitor(SystemMetricsMonitor):
    """MLflow's monitor, whose figures take the way of all others."""

    def __init__(self, run: Run):
        super().__init__(run.address)
        self._run = run

    def monitor(self) -> None:
        while not self._shutdown_event.wait(self.sampling_interval):
            self.collect_metrics()
            self._run.metrics(
                {f"system/{name}": value for name, value in self.aggregate_metrics().items()}, self._step()
            )
            for each in self.monitors:
                each.clear_metrics()

    def _step(self) -> int:
        self._logging_step += 1
        return int(self._logging_step)
