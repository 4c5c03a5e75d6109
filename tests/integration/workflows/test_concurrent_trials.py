"""Two trials at a time: the same results as one after the other, and nothing lost to lost workers or interruptions."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import signal
import sqlite3
import statistics
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from fmnist_search import run_study
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.files import DataSource
from fmnist_search.data.loading import load_images
from fmnist_search.execution import pool
from fmnist_search.execution.backend import BackendFactory
from fmnist_search.execution.thread_backend import ThreadBackend
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.model_summary import summarize
from fmnist_search.results.study import StopReason, StudySummary, TrialRecord
from fmnist_search.results.training import Decision, EpochReport, Overhead, Stopper, TrialState, never_stop
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_store import StudyStore
from fmnist_search.training.trial import run_trial
from fmnist_search.workflows.callbacks import StudyCallback
from fmnist_search.workflows.lookup import outbox_status, status
from fmnist_search.workflows.sending import sync
from fmnist_search.workflows.settings import TrackingOptions
from fmnist_search.workspace import Workspace
from tests.integration.conftest import CommandResult, fork_command, run_command, start_python
from tests.support.command_server import RunningCommand

SMALL_STUDY = """
name = "small"

[data]
train_images = 600
validation = 500

[budget]
trials = 5
epochs = 2

[sampler]
name = "random"

[pruner]
name = "none"

[space.common]
batch_size = [50, 100]
optimizer.learning_rate = { low = 3e-3, high = 3e-2, log = true }

[space.cnn]
depth = 2
width_1 = [4, 8]
width_2 = 8
dropout = { low = 0.1, high = 0.5 }

[finalists]
recipes = 0
seeds = 2
epochs = 2
images = "slice"
refit = "none"

[execution]
workers = 2
threads = 1
precision = "float32"
"""
TWO_RECIPE_CHANGES = {"space.common": {"batch_size": [50, 100]}, "space.cnn": {"depth": 1, "width_1": 4}}


@dataclass(frozen=True)
class StudyFolder:
    """A folder with a study in it."""

    folder: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace.resolve(self.tracking_uri)

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def storage_url(self) -> str:
        return f"sqlite:///{self.folder / 'fmnist-search' / 'optuna.db'}"

    @property
    def study_store(self) -> StudyStore:
        return StudyStore.load(self.storage_url, "small")

    @property
    def trial_records(self) -> list[TrialRecord]:
        return list(status("small", workspace=self.workspace).trials)

    @property
    def optuna_trials(self) -> list[FrozenTrial]:
        # A test that waits for the start of a study must not create its databases.
        return optuna.load_study(study_name="small", storage=open_storage(self.storage_url, create=False)).trials

    @property
    def client(self) -> MlflowClient:
        assert (self.folder / "mlflow.db").is_file()
        return MlflowClient(self.tracking_uri)

    def runs(self, kind: str) -> list[Run]:
        experiment = self.client.get_experiment_by_name("fmnist-search")
        assert experiment is not None
        found = [run for run in self.client.search_runs([experiment.experiment_id]) if run.data.tags["kind"] == kind]
        return sorted(found, key=lambda run: str(run.info.run_name))

    def statuses(self) -> Counter[str]:
        return Counter(run.info.status for kind in ("study", "trial", "finalist") for run in self.runs(kind))

    def run_study(
        self,
        stopper: Stopper = never_stop,
        callback: StudyCallback | None = None,
        backend_factory: BackendFactory | None = None,
        flush_timeout: float = TrackingOptions.flush_timeout,
        **changes: Any,
    ) -> StudySummary:
        """Run the study with other settings in this process."""
        return run_study(
            make_config(changes),
            workspace=self.workspace,
            tracking=TrackingOptions(plot_interval=None, flush_timeout=flush_timeout),
            stopper=stopper,
            callback=callback,
            backend_factory=backend_factory,
        )


def make_config(changes: dict[str, Any]) -> StudyConfig:
    tables = tomllib.loads(SMALL_STUDY)
    for key, value in changes.items():
        *path, last = key.replace("__", ".").split(".")
        table = tables
        for name in path:
            table = table[name]
        table[last] = value
    return StudyConfig.from_dict(tables)


@pytest.fixture
def study_folder(tmp_path: Path) -> StudyFolder:
    (tmp_path / "small.toml").write_text(SMALL_STUDY)
    return StudyFolder(tmp_path)


def without_times_and_ids(records: list[TrialRecord]) -> list[TrialRecord]:
    """Return the records without times and ids, which differ between any two runs."""
    unmeasured = {"seconds": 0.0, "seconds_per_epoch": 0.0, "run_id": None, "overhead": Overhead()}
    return [dataclasses.replace(record, **unmeasured) for record in records]


def worker_processes(pid: int | None = None) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            if "fmnist_search.execution.worker_main" in child.cmdline():
                found.append(child)
    return found


@pytest.fixture(autouse=True)
def no_worker_left() -> Iterator[None]:
    yield
    assert worker_processes() == []


class WorkerKiller:
    """A stopper that kills worker processes at the first reports of trials, so many times."""

    def __init__(self, times: int, which: Callable[[list[psutil.Process]], list[psutil.Process]] = list):
        self.kills_left = times
        self.select = which

    def __call__(self, report: EpochReport) -> Decision:
        if report.epoch == 1 and self.kills_left:
            self.kills_left -= 1
            for process in self.select(worker_processes()):
                process.kill()
        return Decision.CONTINUE


# ------------------------------------------------------------------------------ equal results


@dataclass(frozen=True)
class BothRuns:
    """The same study with one trial and with two trials at a time, and the result of the second command."""

    sequential: StudyFolder
    concurrent: StudyFolder
    result: CommandResult


@pytest.fixture(scope="module", params=["threads", pytest.param("processes", marks=pytest.mark.slow)])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BothRuns:
    options = ["--backend", request.param, "--set", "finalists.recipes=2"]
    study_folders, outcomes = [], []
    for workers in (1, 2):
        folder = tmp_path_factory.mktemp(f"workers{workers}")
        (folder / "small.toml").write_text(SMALL_STUDY)
        outcomes.append(run_command(folder, "search", "small.toml", "--workers", workers, *options))
        assert outcomes[-1].exit_code == 0, outcomes[-1].stderr
        study_folders.append(StudyFolder(folder))
    return BothRuns(*study_folders, outcomes[-1])


def test_two_trials_at_a_time_give_the_same_results_as_one_at_a_time(both: BothRuns) -> None:
    assert [record.number for record in both.concurrent.trial_records] == [0, 1, 2, 3, 4]
    assert all(record.state is TrialState.COMPLETED for record in both.concurrent.trial_records)
    assert without_times_and_ids(both.concurrent.trial_records) == without_times_and_ids(both.sequential.trial_records)


def test_two_trials_at_a_time_store_the_same_weights_as_one_at_a_time(both: BothRuns) -> None:
    for number in range(5):
        one, two = (
            torch.load(study_folder.folder / "fmnist-search" / "weights" / "small" / f"{number:03d}.pt")
            for study_folder in (both.sequential, both.concurrent)
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_finalists_have_the_same_scores_with_one_and_with_two_workers(both: BothRuns) -> None:
    one, two = (study_folder.study_store.champion for study_folder in (both.sequential, both.concurrent))
    assert one is not None
    assert two is not None
    assert one[0] == two[0]
    assert one[1].confirmed_score == two[1].confirmed_score
    assert one[1].test == two[1].test
    assert len(both.concurrent.runs("finalist")) == 4


def test_a_recipe_of_the_search_gives_the_same_result_alone(both: BothRuns, source: DataSource) -> None:
    record = both.concurrent.trial_records[3]
    runtime = both.concurrent.study_store.runtime
    assert runtime is not None
    result = run_trial(record.recipe, load_images(record.recipe.data, source), runtime.execution)
    assert tuple(epoch.val_accuracy for epoch in result.epochs) == record.curve


def test_every_trial_has_a_finished_run_with_all_epochs(both: BothRuns) -> None:
    assert both.concurrent.statuses() == {"FINISHED": 1 + 5 + 4}
    for record in both.concurrent.trial_records:
        assert record.run_id is not None
        for key in ("val/accuracy", "train/loss", "time/epoch_seconds"):
            points = both.concurrent.client.get_metric_history(record.run_id, key)
            assert [point.step for point in points] == [1, 2]
        points = both.concurrent.client.get_metric_history(record.run_id, "val/accuracy")
        assert tuple(point.value for point in points) == record.curve


def test_the_studys_run_says_how_many_trials_run_at_a_time(both: BothRuns) -> None:
    for study_folder, workers in ((both.sequential, "1"), (both.concurrent, "2")):
        (study,) = study_folder.runs("study")
        assert study.data.tags["workers"] == workers


def test_each_trial_is_a_line_when_it_ends(both: BothRuns) -> None:
    lines = [line for line in both.result.stderr.splitlines() if line[:3].isdigit()]
    assert sorted(line[:3] for line in lines) == ["000", "001", "002", "003", "004"]
    assert "5 of 5 trials" in lines[-1]


# ------------------------------------------------------------------------------ overhead


@pytest.mark.parametrize("workers", [1, 2])
def test_each_trial_logs_its_overhead_once(both: BothRuns, workers: int) -> None:
    study_folder = both.sequential if workers == 1 else both.concurrent
    for record in study_folder.trial_records:
        assert record.run_id is not None
        metrics = study_folder.client.get_run(record.run_id).data.metrics
        for name in ("overhead", "build", "capture", "sampling", "tracking"):
            assert len(study_folder.client.get_metric_history(record.run_id, f"time/{name}_seconds")) == 1
        assert metrics["time/overhead_seconds"] == pytest.approx(record.overhead.seconds)
        assert metrics["time/build_seconds"] == pytest.approx(record.overhead.build)
        assert metrics["time/sampling_seconds"] == pytest.approx(record.overhead.sampling)
        assert metrics["time/capture_seconds"] == 0
        assert metrics["time/tracking_seconds"] > 0
        assert 0 < metrics["time/build_seconds"] < metrics["time/overhead_seconds"]
        assert 0 < metrics["time/sampling_seconds"] < metrics["time/overhead_seconds"]
        parts = metrics["time/build_seconds"] + metrics["time/sampling_seconds"]
        assert metrics["time/overhead_seconds"] > 0.99 * parts
        epochs = study_folder.client.get_metric_history(record.run_id, "time/epoch_seconds")
        assert metrics["time/trial_seconds"] >= sum(point.value for point in epochs)


def test_each_trial_has_its_costs_in_optuna_and_in_mlflow(both: BothRuns) -> None:
    for record in both.sequential.trial_records:
        assert record.run_id is not None
        client, size = both.sequential.client, summarize(record.recipe.model)
        seconds = [point.value for point in client.get_metric_history(record.run_id, "time/epoch_seconds")]
        metrics = client.get_run(record.run_id).data.metrics
        assert (record.parameters, record.mult_adds) == (size.parameters, size.mult_adds)
        assert (metrics["model/parameters"], metrics["model/mult_adds"]) == (size.parameters, size.mult_adds)
        assert metrics["time/seconds_per_epoch"] == pytest.approx(statistics.fmean(seconds))
        assert record.seconds_per_epoch == pytest.approx(metrics["time/seconds_per_epoch"])


def test_status_shows_the_mean_overhead_of_a_trial(both: BothRuns) -> None:
    text = run_command(both.concurrent.folder, "status", "small").stdout
    (line,) = (line for line in text.splitlines() if "beside its training" in line)
    shown = run_command(both.concurrent.folder, "status", "small", "--json").json["overhead"]
    assert shown.keys() == {"seconds", "build", "capture", "sampling", "tracking"}
    for name in ("seconds", "build", "sampling"):
        mean = sum(getattr(record.overhead, name) for record in both.concurrent.trial_records) / 5
        assert shown[name] == pytest.approx(mean)
        assert f"{mean * 1000:.0f} ms" in line
    assert shown["tracking"] > 0
    assert "capture" not in line


# ----------------------------------------------------------------------------------- lost workers


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_goes_on_and_counts_once_in_the_budget(study_folder: StudyFolder) -> None:
    messages: list[str] = []

    class Recorder(StudyCallback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    summary = study_folder.run_study(WorkerKiller(1, lambda processes: processes[:1]), Recorder(), budget__trials=2)
    assert summary.stop_reason is StopReason.TRIALS
    assert [record.state for record in summary.trials] == [TrialState.COMPLETED] * 2
    assert [trial.state for trial in study_folder.optuna_trials] == [OptunaState.COMPLETE] * 2
    (lost,) = (trial for trial in study_folder.optuna_trials if "lost" in trial.user_attrs)
    (line,) = (line for line in messages if "SIGKILL" in line)
    assert line.startswith(f"{lost.number:03d}")
    assert line.endswith("it goes on from its last checkpoint")
    assert study_folder.statuses() == {"FINISHED": 3}


@pytest.mark.slow
def test_the_trial_of_a_worker_that_does_not_respond_goes_on(study_folder: StudyFolder) -> None:
    def stop_a_worker(report: EpochReport) -> Decision:
        if not stopped_pids:
            process = worker_processes()[0]
            stopped_pids.append(process.pid)
            process.suspend()
        return Decision.CONTINUE

    messages: list[str] = []

    class Recorder(StudyCallback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    stopped_pids: list[int] = []
    summary = study_folder.run_study(stop_a_worker, Recorder(), budget__trials=3, execution__heartbeat_seconds=2.0)
    assert summary.stop_reason is StopReason.TRIALS
    assert any("its worker process did not respond for 4 seconds and was ended" in line for line in messages)
    assert [record.state for record in summary.trials] == [TrialState.COMPLETED] * 3
    assert study_folder.statuses() == {"FINISHED": 4}
    assert not any(map(psutil.pid_exists, stopped_pids))


@pytest.mark.slow
def test_a_trial_whose_worker_dies_twice_at_the_same_epoch_has_failed(study_folder: StudyFolder) -> None:
    summary = study_folder.run_study(WorkerKiller(2), budget__trials=1)
    (record,) = summary.trials
    assert record.state is TrialState.FAILED
    assert record.reason is not None
    assert "again in epoch 2" in record.reason
    assert summary.stop_reason is StopReason.TRIALS
    assert study_folder.statuses() == {"FINISHED": 1, "FAILED": 1}
    assert [trial.state for trial in study_folder.optuna_trials] == [OptunaState.FAIL]


@pytest.mark.slow
def test_lost_trials_count_as_failures_of_the_budget(
    study_folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker that starts while the other one reports is killed too, which is another error after some times.
    monkeypatch.setattr(pool, "MAX_FAILED_STARTS", 100)
    summary = study_folder.run_study(WorkerKiller(100), budget__trials=4, budget__failures=2)
    assert summary.stop_reason is StopReason.FAILURES
    assert {record.state for record in summary.trials if record.state.is_final} == {TrialState.FAILED}
    assert OptunaState.RUNNING not in [trial.state for trial in study_folder.optuna_trials]
    # Both workers die at one moment: the trial beside the second failure may fail too, but none begins after it.
    ends = sorted(t.datetime_complete for t in study_folder.optuna_trials if t.state is OptunaState.FAIL)
    assert 2 <= len(ends) <= 3
    assert all(t.datetime_start <= ends[1] for t in study_folder.optuna_trials if t.datetime_start)


@pytest.mark.slow
def test_a_finalist_whose_worker_dies_goes_on_in_its_run(both: BothRuns, tmp_path: Path) -> None:
    kills_left = [1]
    messages: list[str] = []

    class Recorder(StudyCallback):
        def on_epoch_end(self, name: str, report: EpochReport) -> None:
            if name.startswith("finalist") and kills_left[0]:
                kills_left[0] -= 1
                worker_processes()[0].kill()

        def on_message(self, text: str) -> None:
            messages.append(text)

    study_folder = StudyFolder(tmp_path)
    summary = study_folder.run_study(callback=Recorder(), finalists__recipes=2)
    expected = both.sequential.study_store.champion
    assert expected is not None
    assert summary.champion is not None
    assert summary.champion.confirmed_score == expected[1].confirmed_score
    assert Counter(run.info.status for run in study_folder.runs("finalist")) == {"FINISHED": 4}
    assert any("SIGKILL" in line and "goes on from its last checkpoint" in line for line in messages)


@pytest.mark.in_process  # replaces the interpreter of the search
def test_a_worker_that_cannot_start_ends_the_search_with_one_error(
    study_folder: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    outcome = run_command(study_folder.folder, "search", "small.toml")
    assert outcome.exit_code == 2
    (line,) = outcome.errors
    assert "could not start" in line
    assert "--workers 1" in line
    assert StudyStore.study_names(study_folder.storage_url) == []
    monkeypatch.undo()
    assert run_command(study_folder.folder, "search", "small.toml", "--workers", 1, "--trials", 1).exit_code == 0


# -------------------------------------------------------------------------------- equal recipes

# These tests are about the search and not about its workers: threads start at once.


def test_a_recipe_that_is_suggested_again_while_it_is_trained_is_trained_once(study_folder: StudyFolder) -> None:
    summary = study_folder.run_study(backend_factory=ThreadBackend, **TWO_RECIPE_CHANGES, budget__trials=10)
    assert summary.stop_reason is StopReason.EXHAUSTED
    trained = [record for record in summary.trials if record.duplicate_of is None]
    assert {record.recipe.batch_size for record in trained} == {50, 100}
    assert len(trained) == len(study_folder.runs("trial")) == 2
    values = {record.number: record.value for record in trained}
    recipes = {record.number: record.recipe.seed_independent_key() for record in trained}
    duplicates = [record for record in summary.trials if record.duplicate_of is not None]
    assert len(duplicates) >= 40
    for record in duplicates:
        assert record.duplicate_of is not None
        assert record.value == values[record.duplicate_of]
        assert record.recipe.seed_independent_key() == recipes[record.duplicate_of]
    assert OptunaState.RUNNING not in [trial.state for trial in study_folder.optuna_trials]


def test_no_trial_starts_after_an_interruption_not_even_a_waiting_duplicate(study_folder: StudyFolder) -> None:
    started_names: list[str] = []

    class Recorder(StudyCallback):
        def on_training_start(self, name: str, recipe: Recipe) -> None:
            started_names.append(name)

    one = {"space.common": {"batch_size": 50}, "space.cnn": {"depth": 1, "width_1": 4}}
    summary = study_folder.run_study(lambda _: Decision.INTERRUPT, Recorder(), ThreadBackend, **one, budget__trials=4)
    assert summary.stop_reason is StopReason.INTERRUPTED
    assert len(started_names) == 1
    assert all(record.state is TrialState.INTERRUPTED for record in summary.trials)
    assert OptunaState.RUNNING not in [trial.state for trial in study_folder.optuna_trials]


def test_one_epoch_trains_only_the_best_of_all_candidates_in_full(study_folder: StudyFolder) -> None:
    running: set[str] = set()
    running_sets: list[tuple[str, ...]] = []

    class Recorder(StudyCallback):
        def on_training_start(self, name: str, recipe: Recipe) -> None:
            running.add(name)
            running_sets.append(tuple(sorted(running)))

        def on_training_end(self, name: str) -> None:
            running.discard(name)

    summary = study_folder.run_study(
        callback=Recorder(),
        backend_factory=ThreadBackend,
        budget__trials=7,
        budget__epochs=3,
        pruner={"name": "one-epoch", "survivors": 2},
    )
    candidates, survivors = summary.trials[:5], summary.trials[5:]
    assert [(record.state, record.epochs) for record in candidates] == [(TrialState.PRUNED, 1)] * 5
    assert [(record.state, record.epochs) for record in survivors] == [(TrialState.COMPLETED, 3)] * 2
    best = sorted(candidates, key=lambda record: (-(record.value or 0.0), record.number))[:2]
    assert [record.recipe for record in survivors] == [record.recipe for record in best]
    assert [record.curve[0] for record in survivors] == [record.value for record in best]
    # Survivors depend on all candidates and not on each other, so they may run at the same time.
    names = [run.info.run_name for run in study_folder.runs("trial")]
    assert tuple(names[5:]) in running_sets
    assert not any(set(names[:5]) & set(group) and set(names[5:]) & set(group) for group in running_sets)


def test_a_grid_search_trains_each_recipe_once(study_folder: StudyFolder) -> None:
    grid = {"space.common": {"batch_size": [50, 100, 200]}, "space.cnn": {"depth": 1, "width_1": [4, 8]}}
    summary = study_folder.run_study(
        backend_factory=ThreadBackend, **grid, sampler={"name": "grid"}, budget={"epochs": 1}
    )
    assert summary.stop_reason is StopReason.EXHAUSTED
    drawn = Counter((record.recipe.batch_size, record.recipe.widths) for record in summary.trials)
    assert drawn == dict.fromkeys(itertools.product((50, 100, 200), ("4", "8")), 1)
    assert all(record.state is TrialState.COMPLETED for record in summary.trials)


# -------------------------------------------------------------------------------------- budgets


STOP_CASES = [
    ({"budget__target": 0.05}, StopReason.TARGET, 2),
    ({"budget__total_epochs": 3}, StopReason.EPOCHS, 3 + 1),
    ({"budget__trials": 3}, StopReason.TRIALS, 3),
]


@pytest.mark.parametrize(
    ("budget", "reason", "max_trials"),
    [
        pytest.param(*case, id=case[1].name.lower(), marks=pytest.mark.slow if case[1] is StopReason.TRIALS else ())
        for case in STOP_CASES
    ],
)
def test_trials_that_run_when_a_limit_is_reached_are_trained_to_their_ends(
    study_folder: StudyFolder, budget: dict[str, Any], reason: StopReason, max_trials: int
) -> None:
    budget = {"budget__trials": 40, "budget__epochs": 1} | budget
    summary = study_folder.run_study(backend_factory=ThreadBackend, **budget)
    assert summary.stop_reason is reason
    assert all(record.state is TrialState.COMPLETED for record in summary.trials)
    assert len(summary.trials) <= max_trials
    if reason is StopReason.TRIALS:
        assert len(summary.trials) == max_trials
    assert OptunaState.RUNNING not in [trial.state for trial in study_folder.optuna_trials]
    assert study_folder.run_study(**budget, execution__workers=1).new_trials == 0


@pytest.mark.slow
def test_the_limit_of_minutes_counts_the_time_of_all_sessions(study_folder: StudyFolder) -> None:
    minutes = 3 / 60
    first = study_folder.run_study(budget__trials=2, budget__minutes=minutes)
    between = study_folder.study_store.searched_seconds
    assert 0 < between <= first.seconds
    second = study_folder.run_study(budget__trials=1_000, budget__minutes=minutes)
    assert second.stop_reason is StopReason.MINUTES
    assert 3 <= study_folder.study_store.searched_seconds <= between + second.seconds
    assert status("small", workspace=study_folder.workspace).stop_reason is StopReason.MINUTES


# ------------------------------------------------------------------------------------- interrupted


def wait_until(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):  # the stores are being created
            if condition():
                return
        time.sleep(0.1)
    raise AssertionError("the condition did not become true")


def both_first_epochs_done(study_folder: StudyFolder) -> bool:
    running = [trial for trial in study_folder.optuna_trials if trial.state is OptunaState.RUNNING]
    return sum(bool(trial.intermediate_values) for trial in running) == 2


def interrupt(process: RunningCommand, *, times: int = 1, interval: float = 2.3) -> tuple[CommandResult, float]:
    """Send SIGINT so many times; return the result, and the seconds from the last one to the end of the process."""
    for number in range(times):
        time.sleep(interval if number else 0)
        process.send_signal(signal.SIGINT)
    started = time.monotonic()
    stdout, stderr = process.communicate(timeout=120)
    return CommandResult(process.returncode, stdout, stderr), time.monotonic() - started


LONG_EPOCH_OPTIONS = ("--set", "data.train_images=5000")


@pytest.mark.slow
def test_ctrl_c_interrupts_all_running_trials_and_nothing_is_lost(study_folder: StudyFolder) -> None:
    arguments = ["search", "small.toml", "--trials", 2, *LONG_EPOCH_OPTIONS, "--set", "budget.epochs=10"]
    process = fork_command(study_folder.folder, *arguments)
    wait_until(lambda: both_first_epochs_done(study_folder))
    outcome, _ = interrupt(process)
    assert outcome.exit_code == 130, outcome.stderr
    assert "continues the study" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    records = study_folder.trial_records
    assert [record.state for record in records] == [TrialState.INTERRUPTED] * 2
    assert all(0 < record.epochs < 10 for record in records)
    assert study_folder.statuses() == {"KILLED": 3}

    assert run_command(study_folder.folder, *arguments).exit_code == 0
    for before, after in zip(records, study_folder.trial_records, strict=True):
        assert after.state is TrialState.COMPLETED
        assert after.recipe == before.recipe
        assert after.curve[: before.epochs] == before.curve
    assert study_folder.statuses() == {"FINISHED": 3}


LONG_STEP_OPTIONS = (
    *("--set", "data.train_images=20000", "--set", "space.cnn.width_1=512", "--set", "space.cnn.width_2=512"),
    *("--set", "space.cnn.kernel_1=7", "--set", "space.cnn.kernel_2=7"),
)
"""Epochs of minutes, in steps of seconds."""
SHORT_STEP_OPTIONS = (
    "--set",
    "data.train_images=50000",
    "--set",
    "space.cnn.width_1=64",
    "--set",
    "space.cnn.width_2=32",
)
"""Epochs of a minute, in steps so short that a thread enters and leaves torch many times while the process ends."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "workers"),
    [
        pytest.param(LONG_STEP_OPTIONS, 1, id="long-1"),
        pytest.param(SHORT_STEP_OPTIONS, 2, id="short-2"),
        pytest.param(LONG_STEP_OPTIONS, 2, id="long-2", marks=pytest.mark.exhaustive),
        pytest.param(SHORT_STEP_OPTIONS, 1, id="short-1", marks=pytest.mark.exhaustive),
    ],
)
def test_a_second_ctrl_c_stops_in_the_middle_of_an_epoch(
    study_folder: StudyFolder, steps: tuple[str, ...], workers: int
) -> None:
    arguments = ["search", "small.toml", "--trials", 2, "--workers", workers]
    process = fork_command(study_folder.folder, *arguments, *steps)
    wait_until(lambda: sum(trial.state is OptunaState.RUNNING for trial in study_folder.optuna_trials) == workers)
    wait_until(lambda: len(study_folder.runs("trial")) == workers)
    time.sleep(1)
    children = worker_processes(process.pid)
    outcome, seconds = interrupt(process, times=2)
    assert outcome.exit_code == 130, outcome.stderr
    assert seconds < 40  # an epoch takes longer
    assert "Traceback" not in outcome.stderr
    assert [(record.state, record.reason) for record in study_folder.trial_records] == [
        (TrialState.INTERRUPTED, "interrupted in the middle of an epoch")
    ] * workers
    assert study_folder.statuses() == {"KILLED": 1 + workers}
    assert not any(child.is_running() for child in children)
    waiting = [trial for trial in study_folder.optuna_trials if trial.state is OptunaState.WAITING]
    assert [trial.number for trial in waiting] == list(range(workers))


@pytest.mark.slow
def test_a_script_that_is_interrupted_twice_continues_after_run_study(study_folder: StudyFolder) -> None:
    changes = {"budget.trials": 1, "execution.workers": 1, "data.train_images": 15000, "space.cnn.width_1": 64}
    script = (
        "import sys; from fmnist_search import StudyConfig, Workspace, run_study\n"
        f"workspace = Workspace.resolve({study_folder.tracking_uri!r})\n"
        f"summary = run_study(StudyConfig.load('small.toml', {changes}), workspace=workspace)\n"
        "print(*(record.reason for record in summary.trials))\n"
        "sys.exit(7)"
    )
    process = start_python(study_folder.folder, "-c", script)
    wait_until(lambda: len(study_folder.runs("trial")) == 1)
    time.sleep(1)
    outcome, _ = interrupt(process, times=2)
    assert outcome.exit_code == 7, outcome.stderr
    assert outcome.stdout == "interrupted in the middle of an epoch\n"


@pytest.mark.slow
def test_a_second_ctrl_c_during_the_finalists_leaves_no_run_open(study_folder: StudyFolder) -> None:
    final = ["--set", "finalists.recipes=1", "--set", "finalists.images=all", "--trials", 1]
    wide = ["--set", "space.cnn.width_1=64", "--set", "space.cnn.width_2=64", "--set", "budget.epochs=1"]
    process = fork_command(study_folder.folder, "search", "small.toml", *final, *wide)
    wait_until(lambda: len(study_folder.runs("finalist")) == 2, 120)
    outcome, seconds = interrupt(process, times=2)
    assert outcome.exit_code == 130, outcome.stderr
    assert seconds < 40  # an epoch takes longer
    assert "Traceback" not in outcome.stderr
    assert Counter(run.info.status for run in study_folder.runs("finalist")) == {"KILLED": 2}
    assert study_folder.client.search_registered_models() == []


@pytest.mark.slow
def test_a_study_that_is_killed_leaves_no_worker_behind(study_folder: StudyFolder) -> None:
    process = fork_command(
        study_folder.folder, "search", "small.toml", *LONG_EPOCH_OPTIONS, "--set", "budget.epochs=99"
    )
    wait_until(lambda: both_first_epochs_done(study_folder))
    children = worker_processes(process.pid)
    assert len(children) == 2
    process.kill()
    _, stderr = process.communicate()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert "Traceback" not in stderr


# ------------------------------------------------------------------------------------- outages


@pytest.mark.parametrize(
    ("table", "workers"),
    [
        ("metrics", 2),
        pytest.param("params", 2, marks=pytest.mark.slow),
        pytest.param("metrics", 1, marks=pytest.mark.slow),
        pytest.param("tags", 2, marks=pytest.mark.slow),
    ],
)
def test_a_store_that_fails_stops_no_trial_and_gets_all_events_once_it_is_repaired(
    study_folder: StudyFolder, table: str, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = {"space.common": {"batch_size": [50, 100]}, "space.cnn": {"depth": 1, "width_1": [4, 8]}}
    settings = {**grid, "sampler": {"name": "grid"}, "budget": {"epochs": 2}, "execution__workers": workers}

    def rename(before: str, after: str) -> None:
        with contextlib.closing(sqlite3.connect(study_folder.folder / "mlflow.db", timeout=60)) as database:
            database.execute(f"ALTER TABLE {before} RENAME TO {after}")
            database.commit()

    def break_store(_: EpochReport) -> Decision:
        if next(epochs) == 4:
            rename(table, "renamed")
        return Decision.CONTINUE

    epochs = itertools.count()
    summary = study_folder.run_study(break_store, backend_factory=ThreadBackend, flush_timeout=0.2, **settings)
    assert summary.stop_reason is StopReason.EXHAUSTED
    assert OptunaState.RUNNING not in [trial.state for trial in study_folder.optuna_trials]
    assert "Traceback" not in capfd.readouterr().err
    assert outbox_status(workspace=study_folder.workspace).pending > 0

    rename("renamed", table)
    assert sync(workspace=study_folder.workspace) > 0
    completed = [record for record in study_folder.trial_records if record.state is TrialState.COMPLETED]
    assert Counter((record.recipe.batch_size, record.recipe.widths) for record in completed) == dict.fromkeys(
        itertools.product((50, 100), ("4", "8")), 1
    )
    assert study_folder.statuses() == {"FINISHED": 1 + 4}
    for record in completed:
        assert record.run_id is not None
        points = study_folder.client.get_metric_history(record.run_id, "val/accuracy")
        assert tuple(point.value for point in sorted(points, key=lambda point: point.step)) == record.curve
