"""Measure what a trial costs apart from its training (ask, report, tell) as a study grows to a thousand trials."""

from __future__ import annotations

import itertools
import json
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import optuna
import typer

from benchmarks.machine import machine, versions
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.execution import Execution
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.training import Decision, EpochReport, Overhead, TrialResult, TrialState
from fmnist_search.search.driver_storage import DriverStorage
from fmnist_search.search.lease import Lease
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking.delivery_process import DeliveryProcess
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.run_logger import RunLogger
from fmnist_search.tracking.sender import Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.study_runs import open_study_run
from fmnist_search.tracking.training_run_logger import TrainingRunLogger
from fmnist_search.tracking.writer import MlflowWriter

BASELINE_STUDY = Path(__file__).parents[1] / "studies" / "baseline.toml"
WINDOW = 25
"""The value at the nth trial is the median of this many trials up to it."""
REPORTED_TRIALS = (25, 100, 250, 500, 1000)


def main(
    study: Annotated[Path, typer.Argument(help="Study file.")] = BASELINE_STUDY,
    sampler: Annotated[str, typer.Option(help="Sampler.")] = "tpe",
    trials: Annotated[int, typer.Option(help="Number of trials.", min=WINDOW)] = 1000,
    tracked: Annotated[bool, typer.Option("--tracked", help="Record the trials in MLflow too.")] = False,
    in_process: Annotated[bool, typer.Option("--in-process", help="A process sends to MLflow, not a thread.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure ask, an epoch's report and tell in milliseconds, in one process, on SQLite, as a search does.

    With --tracked, also measure recording the trials in an embedded MLflow store: how long the driver takes to send a
    trial's events, how long MLflow takes for all, and the CPU time of both.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = StudyConfig.load(study, {"sampler": sampler, "budget.trials": trials})
    with tempfile.TemporaryDirectory() as folder:
        rdb, execution = open_storage(f"sqlite:///{folder}/optuna.db"), config.execution
        with Lease.acquire(rdb, config.name, execution.heartbeat_seconds, execution.lease_seconds) as lease:
            study_store = StudyStore.open_in(DriverStorage(rdb, lease, typer.echo), config)
            study_store.runtime = StudyRuntime(Execution(), "float32")
            recorder = _TrialRecorder(Path(folder), config, in_process=in_process) if tracked else None
            times = [_time_trial(study_store, random.Random(number), recorder) for number in range(trials)]
            delivery = recorder.finish() if recorder else None
    rows = {stop: _median_milliseconds(times[stop - WINDOW : stop]) for stop in REPORTED_TRIALS if stop <= trials}
    if as_json:
        figures = {"sampler": sampler, "milliseconds": rows, "delivery": delivery and delivery._asdict()}
        typer.echo(json.dumps({"machine": machine(), "versions": versions(), **figures}))
        return
    typer.echo(f"{machine()}; {versions()}; {sampler}, medians of {WINDOW} trials, milliseconds")
    typer.echo("  trial     ask  report    tell  ask + tell  record")
    for stop, (ask, report, tell, recorded) in rows.items():
        typer.echo(f"{stop:7d} {ask:7.1f} {report:7.1f} {tell:7.1f} {ask + tell:11.1f} {recorded:7.1f}")
    if delivery:
        driver, others, process = (1000 * seconds / trials for seconds in delivery[2:])
        typer.echo(
            f"MLflow has all {delivery.epochs} epochs {delivery.seconds:.1f} s after the last trial; CPU ms a trial: "
            f"driver {driver:.1f}, of these in other threads {others:.1f}; process of the sender {process:.1f}"
        )


def _time_trial(
    study_store: StudyStore, rng: random.Random, recorder: _TrialRecorder | None
) -> tuple[float, float, float, float]:
    """Run one trial with a random curve; return the seconds of ask, of a report (mean), of tell, and of recording."""
    marks = [time.perf_counter()]
    trial = study_store.ask()
    marks.append(time.perf_counter())
    value, reports, state = rng.uniform(0.6, 0.8), [], TrialState.COMPLETED
    for epoch in range(1, study_store.config.budget.epochs + 1):
        value += (0.93 - value) * rng.uniform(0.1, 0.4)
        reports.append(EpochReport(epoch, 0.0, 0.0, 0.0, value, 0.0, 0.0))
        if study_store.decide(trial, reports[-1]) is Decision.PRUNE:
            state = TrialState.PRUNED
            break
    marks.append(time.perf_counter())
    result = TrialResult(state, tuple(reports), 0.0)
    study_store.tell(trial, result, "")
    marks.append(time.perf_counter())
    if recorder:
        recorder.record(trial.recipe, result)
    marks.append(time.perf_counter())
    ask, reported, tell, recorded = (after - before for before, after in itertools.pairwise(marks))
    return ask, reported / len(reports), tell, recorded


class Delivery(NamedTuple):
    """What the record has cost: the time from the last trial until MLflow had all, and CPU times."""

    epochs: int
    seconds: float
    driver_cpu_seconds: float
    other_threads_cpu_seconds: float
    process_cpu_seconds: float


class _TrialRecorder:
    """Records trials in an embedded MLflow store and waits for none, as a search does."""

    def __init__(self, folder: Path, config: StudyConfig, *, in_process: bool):
        uri = f"sqlite:///{folder}/mlflow.db"
        tracking = MlflowStore(uri, config.experiment)
        outbox = Outbox(folder / "outbox.db", uri)
        writer = MlflowWriter(tracking.client, outbox)
        self._sender = Sender(outbox, DeliveryProcess(outbox, uri, typer.echo) if in_process else writer, typer.echo)
        self._client = tracking.client
        self._study_run = RunLogger.existing(self._sender, open_study_run(tracking, config.name, None).run_id)
        self._runs: list[TrainingRunLogger] = []
        self._epochs = 0
        self._began = (time.process_time(), time.thread_time(), _children_cpu_seconds())

    def record(self, recipe: Recipe, result: TrialResult) -> None:
        """Send the events of a trial."""
        names, number = list(recipe.to_flat_dict()), len(self._runs)
        name = f"{number:03d} {recipe.label}"
        run = TrainingRunLogger.start(self._sender, name, recipe, names, {"kind": "trial"}, self._study_run)
        for report in result.epochs:
            run.log_epoch(report, report is result.epochs[-1])
        run.finish(result, Overhead(), {})
        self._runs.append(run)
        self._epochs += len(result.epochs)

    def finish(self) -> Delivery:
        """Wait until MLflow has everything, check that it has each epoch once, and return what that took."""
        since = time.perf_counter()
        assert self._sender.flush(600)
        seconds = time.perf_counter() - since
        driver, main = time.process_time() - self._began[0], time.thread_time() - self._began[1]
        run_ids = [str(run.run_id) for run in self._runs]
        self._sender.close()
        process = _children_cpu_seconds() - self._began[2]
        points = sum(len(self._client.get_metric_history(run_id, "val/accuracy")) for run_id in run_ids)
        if (points, len(set(run_ids))) != (self._epochs, len(self._runs)):
            raise RuntimeError(f"MLflow has {points} of {self._epochs} epochs")
        return Delivery(self._epochs, seconds, driver, driver - main, process)


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _median_milliseconds(times: list[tuple[float, float, float, float]]) -> list[float]:
    return [1000 * statistics.median(column) for column in zip(*times, strict=True)]


if __name__ == "__main__":
    typer.run(main)
