"""What a trial costs the driver: a real study with its storage, its lease and its outbox, on simulated workers."""

from __future__ import annotations

import dataclasses
import resource
import sqlite3
import statistics
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.known_trials import PRECISION, add_known_trials
from benchmarks.cluster.simulation import CallKind, CurveSource, DriverMeter, SimulatedBackend
from benchmarks.curves.table import CurveTable
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.search.study_store import StudyStore
from fmnist_search.tracking import metric_names, tag_names
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workflows.study.api import run_study
from fmnist_search.workspace import Workspace

CURVES = Path(__file__).parents[1] / "curves" / "cpu.jsonl"
STUDY = CURVES.with_suffix(".toml")
FLUSH_SECONDS = 600.0
PLOT_INTERVAL = 3600.0


@dataclass(frozen=True)
class Simulation:
    """A study on simulated workers.

    It knows `known` trials when it starts and has `trials` when it ends. `storage` is Optuna's, by default SQLite in
    the folder, and `tracked` says whether it writes to MLflow, in SQLite in the folder. With `plots`, the confusion
    matrix of each completed trial is drawn.
    """

    workers: int = 64
    known: int = 0
    trials: int = 1000
    sampler: str = "tpe"
    pruner: str = "halving"
    tracked: bool = True
    plots: bool = False
    seed: int = 0
    storage: str | None = None
    train_images: int = 12_000

    def config(self) -> StudyConfig:
        """Return its study: that of the recorded curves."""
        changes = {
            "name": "simulated",
            "seed": self.seed,
            "sampler": self.sampler,
            "pruner": self.pruner,
            "budget.trials": self.trials,
            "data.train_images": self.train_images,
            "finalists.recipes": 0,
            "execution.device": "cpu",
            "execution.workers": self.workers,
            "execution.precision": PRECISION,
        }
        return StudyConfig.load(STUDY, changes)


@dataclass(frozen=True)
class SimulationRun:
    """What a simulation did: the meter of its driver, seconds of the clock, and of all threads of this process."""

    simulation: Simulation
    workspace: Workspace
    meter: DriverMeter
    search_seconds: float
    flush_seconds: float
    process_cpu_seconds: float
    child_cpu_seconds: float


def run_simulation(simulation: Simulation, folder: Path, messages: list[str]) -> SimulationRun:
    """Run the study of a simulation in a new folder; messages of the study are added to the list."""
    curves, meter, config = CurveSource(CurveTable.read(CURVES)), DriverMeter(), simulation.config()
    workspace = Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}", folder / "files", storage=simulation.storage)
    workspace.folder.mkdir(parents=True, exist_ok=True)
    if simulation.known:
        add_known_trials(workspace.storage_url, config, simulation.known, curves)
    tracking = TrackingOptions(simulation.tracked, PLOT_INTERVAL if simulation.plots else None, FLUSH_SECONDS)
    callback = _Messages(messages)
    cpu, started = time.process_time(), time.perf_counter()
    children = _child_seconds()
    run_study(
        config,
        workspace=workspace,
        tracking=tracking,
        callback=callback,
        backend_factory=lambda execution, _: SimulatedBackend(execution, simulation.workers, curves, meter),
    )
    ended, last = time.perf_counter(), meter.calls[-1].ended_at
    return SimulationRun(
        simulation,
        workspace,
        meter,
        search_seconds=last - started,
        flush_seconds=ended - last,
        process_cpu_seconds=time.process_time() - cpu,
        child_cpu_seconds=_child_seconds() - children,
    )


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Messages(StudyCallback):
    def __init__(self, messages: list[str]):
        self._messages = messages

    def on_message(self, text: str) -> None:
        self._messages.append(text)


# ------------------------------------------------------------------------------- the driver's CPU


@dataclass(frozen=True)
class DriverCost:
    """What a trial costs the driver, in milliseconds, among the trials that ended from `first` to `last`.

    `cpu_ms` is the CPU time of the driver's thread as it happened, with trials that were pruned. `whole_trial_ms` is
    that of a trial that reports all its epochs: what asking and ending cost, and a report after each epoch. `wall_ms`
    is the time by the clock, which also has waits for the disk and for other threads. `reports` is per trial.
    """

    workers: int
    first: int
    last: int
    cpu_ms: float
    whole_trial_ms: float
    ask_ms: float
    report_ms: float
    end_ms: float
    reports: float
    wall_ms: float


def driver_cost(run: SimulationRun, first: int, last: int) -> DriverCost:
    """Return what the trials from `first` to `last` cost; both are counted with the trials that were known before."""
    ends = [index for index, call in enumerate(run.meter.calls) if call.kind is CallKind.END]
    begin, end = (ends[number - run.simulation.known - 1] for number in (first, last))
    window, count = run.meter.calls[begin + 1 : end + 1], last - first
    cpu = {kind: sum(call.cpu_seconds for call in window if call.kind is kind) for kind in CallKind}
    by_epoch: defaultdict[int, list[float]] = defaultdict(list)
    for call in window:
        if call.kind is CallKind.REPORT:
            by_epoch[call.epoch].append(call.cpu_seconds)
    reports = sum(map(len, by_epoch.values()))
    of_each_epoch = [statistics.fmean(seconds) for seconds in by_epoch.values()]
    of_all_epochs = run.simulation.config().budget.epochs * statistics.fmean(of_each_epoch)  # some may have none here
    whole = cpu[CallKind.ASK] + cpu[CallKind.END] + count * of_all_epochs
    return DriverCost(
        workers=run.simulation.workers,
        first=first,
        last=last,
        cpu_ms=_milliseconds(sum(cpu.values()), count),
        whole_trial_ms=_milliseconds(whole, count),
        ask_ms=_milliseconds(cpu[CallKind.ASK], count),
        report_ms=_milliseconds(cpu[CallKind.REPORT], reports),
        end_ms=_milliseconds(cpu[CallKind.END], count),
        reports=round(reports / count, 2),
        wall_ms=_milliseconds(window[-1].ended_at - run.meter.calls[begin].ended_at, count),
    )


def _milliseconds(seconds: float, count: int) -> float:
    return round(1000 * seconds / count, 2)


def measure_driver(simulation: Simulation, window: int, folder: Path, messages: list[str]) -> DriverCost:
    """Return the cost of the last `window` trials of a simulation, all of whose workers are busy in this time.

    The study itself has more trials than the simulation says, one for each worker, so that each worker that becomes
    free asks for another trial.
    """
    longer = dataclasses.replace(simulation, trials=simulation.trials + simulation.workers)
    run = run_simulation(longer, folder, messages)
    check_budget(run)
    return driver_cost(run, simulation.trials - window, simulation.trials)


def check_budget(run: SimulationRun) -> None:
    """Raise AssertionError unless the study has exactly the trials of its budget, and none that runs."""
    store = StudyStore.load(run.workspace.storage_url, run.simulation.config().name)
    states = [record.state for record in store.trial_records()]
    assert len(states) == run.simulation.trials, f"{len(states)} trials instead of {run.simulation.trials}"
    assert all(state.is_final for state in states), "trials are left that have not ended"
    assert not store.running_trials(0.0), "trials are left that run"


# ---------------------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class RecordCheck:
    """What MLflow has of the epochs that the trials of a simulation reported.

    `search_seconds` is the time by the clock until the last trial had ended, `flush_seconds` the time from then until
    everything was delivered.
    """

    reported: int
    recorded: int
    missing: int
    repeated: int
    unknown: int
    open_runs: int
    search_seconds: float
    flush_seconds: float


def check_record(run: SimulationRun) -> RecordCheck:
    """Return how the points of validation accuracy in MLflow agree with the values in Optuna's storage."""
    records = StudyStore.load(run.workspace.storage_url, run.simulation.config().name).trial_records()
    reported = {
        (record.number, epoch, value)
        for record in records
        if record.number >= run.simulation.known
        for epoch, value in enumerate(record.curve, start=1)
    }
    with closing(sqlite3.connect(run.workspace.folder.parent / "mlflow.db")) as database:
        points = database.execute(
            "SELECT tags.value, metrics.step, metrics.value FROM metrics "
            "JOIN tags ON tags.run_uuid = metrics.run_uuid AND tags.key = ? WHERE metrics.key = ?",
            (tag_names.TRIAL, metric_names.VAL_ACCURACY),
        ).fetchall()
        (open_runs,) = database.execute("SELECT COUNT(*) FROM runs WHERE status = 'RUNNING'").fetchone()
    recorded = Counter((int(number), int(step), float(value)) for number, step, value in points)
    return RecordCheck(
        reported=len(reported),
        recorded=len(points),
        missing=len(reported - recorded.keys()),
        repeated=sum(count - 1 for count in recorded.values()),
        unknown=len(recorded.keys() - reported),
        open_runs=open_runs,
        search_seconds=round(run.search_seconds, 1),
        flush_seconds=round(run.flush_seconds, 1),
    )
