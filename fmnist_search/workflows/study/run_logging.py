"""The run of a study in MLflow: what is logged at its start, during the search, and at its end."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence

from fmnist_search.config.conditional_space import constant_values
from fmnist_search.data.images import Images
from fmnist_search.errors import UserError
from fmnist_search.recipe.plugins import plugin_sources
from fmnist_search.reporting.study_note import study_note
from fmnist_search.reporting.study_page import is_plotly_installed, study_page
from fmnist_search.reporting.study_plots import study_figures
from fmnist_search.reporting.style import figure_to_png
from fmnist_search.reporting.tables import displayed_columns, leaderboard_columns, leaderboard_csv, origins_csv
from fmnist_search.results.study import Importances, StopReason, StudySummary, TrialRecord
from fmnist_search.results.training import TrialState
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.suggest import base_recipe, displayed_names
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.tracking.provenance import command_line, environment
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.run_ref import RunRef
from fmnist_search.tracking.stored_runs import ENVIRONMENT_FILE
from fmnist_search.workflows.jobs import JobContext
from fmnist_search.workflows.study.search_progress import SearchProgress

PLOT_INTERVAL_FACTOR = 20
"""Figures of many trials take long: the interval between them is at least so many times that."""

PROGRESS_STATES = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED)


class StudyRunLogger:
    """Logs to the run of a study. Figures are rendered by the sender when it is idle."""

    def __init__(self, run: RunLogger, study_store: StudyStore, context: JobContext, plot_interval: float):
        self._run = run
        self._study_store = study_store
        self._context = context
        self._plot_interval = plot_interval
        self._plotted_at = time.monotonic()
        self._plotted: tuple[TrialRecord, ...] = ()
        self._progress: dict[str, float] = {}

    def log_start(self, images: Images, runtime: StudyRuntime, workers: int) -> None:
        """Log parameters, images, study file and environment; `workers` is the number of trials at a time."""
        config = self._study_store.config
        self._run.log_params(constant_values(config.space, base_recipe(config, runtime.precision)))
        self._run.log_dataset(images, vars(config.data))
        self._run.log_text("study.toml", config.to_toml())
        for name, source in plugin_sources().items():
            self._run.log_text(f"plugins/{name}", source)
        if config.origins:
            self._run.log_text("study_origins.csv", origins_csv(config.origins))
        self._run.log_text("command.txt", command_line() + "\n")
        self._run.log_text(ENVIRONMENT_FILE, json.dumps(environment(runtime.execution), indent=2))
        device = runtime.execution.device
        self._run.set_tags(
            {tag_names.DEVICE: device, tag_names.OPTUNA_STUDY: config.name, tag_names.WORKERS: str(workers)}
        )

    def log_progress(self, search: SearchProgress) -> None:
        """Log the changed progress metrics of the search, and render the figures if their interval is over."""
        progress = {metric_names.trial_count(state.value): float(search.counts[state]) for state in PROGRESS_STATES}
        if refused := search.counts[TrialState.REFUSED]:
            progress[metric_names.trial_count(TrialState.REFUSED.value)] = float(refused)
        if search.best_accuracy is not None:
            progress[metric_names.BEST_VAL_ACCURACY] = search.best_accuracy
        changed = {name: value for name, value in progress.items() if self._progress.get(name) != value}
        self._progress = progress
        self._run.log_metrics(changed, step=len(search))
        if time.monotonic() - self._plotted_at > self._plot_interval:
            self.log_plots(search.records)

    def log_plots(self, records: Sequence[TrialRecord]) -> None:
        """Log the leaderboard and the figures of these trials, unless they were logged already."""
        plotted = tuple(records)
        if plotted == self._plotted:
            return
        self._plotted, self._plotted_at = plotted, time.monotonic()
        self._context.sender.run_when_idle(lambda: self._log_tables_and_plots(plotted))

    def close(self, summary: StudySummary) -> None:
        """Log the note and the figures, and end the run."""
        self._log_note(summary)
        self.log_plots(self._study_store.trial_records())
        tags = {tag_names.ENDED_BY: summary.stop_reason.name.lower()}
        if summary.best is None or summary.stop_reason in (StopReason.FAILURES, StopReason.LOSSES):
            tags[tag_names.REASON] = summary.stop_reason.value  # the command fails, and `mlflow run` with it
        self._run.set_tags(tags)
        interrupted = summary.stop_reason is StopReason.INTERRUPTED
        self._run.end("KILLED" if interrupted else "FINISHED", "interrupted" if interrupted else "finished")

    def _log_note(self, summary: StudySummary) -> None:
        config = self._study_store.config
        space = {"space.common.family": ", ".join(config.space.families), **dict(config.domains())}
        names = displayed_names(config, (trial.recipe for trial in summary.trials))
        note = study_note(summary, names, space, budget=config.budget, importances=self._importances())
        self._run.set_note(note)

    def _importances(self) -> Importances | None:
        try:
            found = self._study_store.importances()
        except UserError:  # too few trials
            return None
        return found if found.are_reliable else None  # a note has no room for doubts

    def _log_tables_and_plots(self, records: Sequence[TrialRecord]) -> None:
        config = self._study_store.config
        resolved = [dataclasses.replace(record, run_id=self._resolve_run_id(record)) for record in records]
        names = displayed_names(config, (record.recipe for record in records))
        self._run.log_table("leaderboard.json", displayed_columns(leaderboard_columns(resolved, names)))
        self._run.log_text("leaderboard.csv", leaderboard_csv(resolved, names))
        if not self._context.plots:
            return
        began, importances = time.monotonic(), self._importances()
        for name, draw in study_figures(records, config.space, importances).items():
            self._run.log_artifact(f"plots/{name}.png", figure_to_png(draw()))
        if is_plotly_installed():
            page = study_page(config.name, config.question, records, config.space, importances)
            self._run.log_text("plots/study.html", page)
        self._plot_interval = max(self._plot_interval, PLOT_INTERVAL_FACTOR * (time.monotonic() - began))

    def _resolve_run_id(self, record: TrialRecord) -> str | None:
        """Return the id of a trial's run, which exists by the time that figures are rendered."""
        ref = RunRef.from_stored(record.run_id) if record.run_id else None
        return (ref.id or self._context.sender.run_id(ref.key)) if ref else None
