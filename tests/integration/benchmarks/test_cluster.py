"""The benchmark of clusters on simulated workers: real studies that can be repeated, and a record that is complete."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial

from benchmarks.cluster.driver import (
    CURVES,
    Simulation,
    SimulationRun,
    check_budget,
    check_record,
    driver_cost,
    run_simulation,
)
from benchmarks.cluster.known_trials import make_trials
from benchmarks.cluster.simulation import CurveSource
from benchmarks.curves.table import CurveTable
from fmnist_search.search.storage import open_storage

pytestmark = pytest.mark.slow

SMALL = Simulation(workers=8, known=24, trials=40, train_images=1024)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimulationRun:
    return run_simulation(SMALL, tmp_path_factory.mktemp("tracked"), [])


def stored_trials(run: SimulationRun) -> list[FrozenTrial]:
    return optuna.load_study(study_name="simulated", storage=open_storage(run.workspace.storage_url)).trials


def test_the_budget_is_met_exactly_and_mlflow_has_each_epoch_once(run: SimulationRun) -> None:
    check_budget(run)
    record = check_record(run)
    assert record.reported == record.recorded > 16
    assert (record.missing, record.repeated, record.unknown, record.open_runs) == (0, 0, 0, 0)


def test_the_same_seed_gives_the_same_trials(run: SimulationRun, tmp_path: Path) -> None:
    again = run_simulation(dataclasses.replace(SMALL, tracked=False), tmp_path, [])
    seen = [(trial.params, trial.intermediate_values, trial.state) for trial in stored_trials(run)]
    assert seen == [(trial.params, trial.intermediate_values, trial.state) for trial in stored_trials(again)]


def test_each_trial_of_the_window_has_its_cost(run: SimulationRun) -> None:
    cost = driver_cost(run, 28, 32)
    assert (cost.workers, cost.first, cost.last) == (8, 28, 32)
    assert cost.reports >= 1
    assert min(cost.ask_ms, cost.report_ms, cost.end_ms, cost.cpu_ms, cost.whole_trial_ms) > 0


def test_known_trials_are_like_trials_that_were_searched(run: SimulationRun) -> None:
    trials = stored_trials(run)
    known, searched = trials[:24], trials[24:]
    assert {trial.state for trial in known} == {trial.state for trial in searched}
    ours = {name for trial in searched for name in trial.user_attrs} - {"run_key"}
    assert {name for trial in known for name in trial.user_attrs} == ours
    rungs = {name for trial in searched for name in trial.system_attrs if not name.startswith("tpe:")}
    assert {name for trial in known for name in trial.system_attrs} == rungs
    config, curves = SMALL.config(), CurveSource(CurveTable.read(CURVES))
    assert [trial.params for trial in make_trials(config, 24, curves)] == [trial.params for trial in known]
