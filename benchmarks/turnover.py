"""What a trial costs apart from its training: ask, report and tell, as a study grows to a thousand trials."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import optuna
import typer

from benchmarks.machine import machine, versions
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.recipe import Execution, Recipe
from fmnist_search.results.study import EpochReport, Overhead, State, TrialResult
from fmnist_search.search.study_store import Conditions, Ledger
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import Run, TrainingRun
from fmnist_search.tracking.sender import Sender
from fmnist_search.tracking.store import Courier, Tracking
from fmnist_search.workflows.jobs import ARTISTS

BASELINE = Path(__file__).parents[1] / "studies" / "baseline.toml"
WINDOW = 25
"""A figure at the nth trial is the median of so many trials up to it."""
STOPS = (25, 100, 250, 500, 1000)


def main(
    study: Annotated[Path, typer.Argument(help="Study file.")] = BASELINE,
    sampler: Annotated[str, typer.Option(help="Sampler.")] = "tpe",
    trials: Annotated[int, typer.Option(help="How many trials.", min=WINDOW)] = 1000,
    tracked: Annotated[bool, typer.Option("--tracked", help="Keep a record in MLflow as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Milliseconds of ask, of an epoch's report and of tell, in one process, on SQLite with write-ahead logging.

    With --tracked, also of the record of a trial in an embedded MLflow store, which a study writes beside its training.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = StudyConfig.load(study, {"sampler": sampler, "budget.trials": trials})
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(f"sqlite:///{folder}/optuna.db", config)
        ledger.conditions = Conditions(Execution(), "float32")
        record = _Record(Path(folder), config) if tracked else None
        times = [_trial(ledger, random.Random(number), record) for number in range(trials)]
    rows = {stop: _medians(times[stop - WINDOW : stop]) for stop in STOPS if stop <= trials}
    if as_json:
        typer.echo(json.dumps({"machine": machine(), "versions": versions(), "sampler": sampler, "milliseconds": rows}))
        return
    typer.echo(f"{machine()}; {versions()}; {sampler}, medians of {WINDOW} trials, milliseconds")
    typer.echo("  trial     ask  report    tell  ask + tell  record")
    for stop, (ask, report, tell, recorded) in rows.items():
        typer.echo(f"{stop:7d} {ask:7.1f} {report:7.1f} {tell:7.1f} {ask + tell:11.1f} {recorded:7.1f}")


def _trial(ledger: Ledger, chance: random.Random, record: _Record | None) -> tuple[float, float, float, float]:
    """One trial whose curve is drawn; seconds of ask, of a report on average, of tell, and of its record in MLflow."""
    marks = [time.perf_counter()]
    trial, recipe = ledger.ask()
    marks.append(time.perf_counter())
    value, reports, state = chance.uniform(0.6, 0.8), [], State.COMPLETED
    for epoch in range(1, ledger.config.budget.epochs + 1):
        value += (0.93 - value) * chance.uniform(0.1, 0.4)
        reports.append(EpochReport(epoch, 0.0, 0.0, 0.0, value, 0.0, 0.0))
        if ledger.should_prune(trial, reports[-1]):
            state = State.PRUNED
            break
    marks.append(time.perf_counter())
    result = TrialResult(state, tuple(reports), 0.0)
    ledger.tell(trial, result, "")
    marks.append(time.perf_counter())
    if record:
        record.keep(recipe, result)
    marks.append(time.perf_counter())
    ask, reported, tell, recorded = (after - before for before, after in itertools.pairwise(marks))
    return ask, reported / len(reports), tell, recorded


class _Record:
    """The record of trials in an embedded MLflow store, each written to its end before the next."""

    def __init__(self, folder: Path, config: StudyConfig):
        uri = f"sqlite:///{folder}/mlflow.db"
        tracking = Tracking(uri, config.experiment)
        outbox = Outbox(folder / "outbox.db", uri)
        self._sender = Sender(outbox, Courier(tracking.client, outbox, ARTISTS), typer.echo)
        self._study_run = Run.known(self._sender, tracking.study_run(config.name, None))

    def keep(self, recipe: Recipe, result: TrialResult) -> None:
        """Write a trial, and wait until it is there."""
        names = list(recipe.flat())
        run = TrainingRun.begun(self._sender, recipe.label, recipe, names, {"kind": "trial"}, self._study_run)
        for report in result.epochs:
            run.epoch(report, report is result.epochs[-1])
        run.finish(result, Overhead(), {})
        self._sender.flush(60)


def _medians(times: list[tuple[float, float, float, float]]) -> list[float]:
    return [1000 * statistics.median(column) for column in zip(*times, strict=True)]


if __name__ == "__main__":
    typer.run(main)
