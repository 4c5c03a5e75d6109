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
from fmnist_search.config import StudyConfig
from fmnist_search.recipe import Execution, Recipe
from fmnist_search.results import EpochReport, Overhead, State, TrialResult
from fmnist_search.search.ledger import Conditions, Ledger
from fmnist_search.tracking import Run, Tracking

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
        tracking = Tracking(f"sqlite:///{folder}/mlflow.db", config.experiment) if tracked else None
        study_run = tracking.study_run(config.name, None) if tracking else None
        times = [_trial(ledger, random.Random(number), study_run) for number in range(trials)]
    rows = {stop: _medians(times[stop - WINDOW : stop]) for stop in STOPS if stop <= trials}
    if as_json:
        typer.echo(json.dumps({"machine": machine(), "versions": versions(), "sampler": sampler, "milliseconds": rows}))
        return
    typer.echo(f"{machine()}; {versions()}; {sampler}, medians of {WINDOW} trials, milliseconds")
    typer.echo("  trial     ask  report    tell  ask + tell  record")
    for stop, (ask, report, tell, record) in rows.items():
        typer.echo(f"{stop:7d} {ask:7.1f} {report:7.1f} {tell:7.1f} {ask + tell:11.1f} {record:7.1f}")


def _trial(ledger: Ledger, chance: random.Random, study_run: Run | None) -> tuple[float, float, float, float]:
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
    if study_run:
        _record(study_run, recipe, result)
    marks.append(time.perf_counter())
    ask, reported, tell, record = (after - before for before, after in itertools.pairwise(marks))
    return ask, reported / len(reports), tell, record


def _record(study_run: Run, recipe: Recipe, result: TrialResult) -> None:
    run = study_run.tracking.training_run(recipe.label, recipe, list(recipe.flat()), {"kind": "trial"}, study_run)
    for report in result.epochs:
        run.epoch(report, report is result.epochs[-1], time.time())
    run.finish(result, Overhead())


def _medians(times: list[tuple[float, float, float, float]]) -> list[float]:
    return [1000 * statistics.median(column) for column in zip(*times, strict=True)]


if __name__ == "__main__":
    typer.run(main)
