"""The soak test: its plan follows from the seed, and its invariants notice what is lost, doubled or left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.soak.champion import check_champion, expected_versions
from benchmarks.soak.invariants import Invariant, check_study
from benchmarks.soak.plan import SECONDS, WEIGHTS, FaultKind, make_plan
from benchmarks.soak.stores import read_runs, read_trials
from fmnist_search.search.study_store import StudyStore
from tests.integration.conftest import FinishedStudy, copy_study

ROOT = Path(__file__).parents[3]
ALL_KINDS = tuple(FaultKind)
OPTUNA, MLFLOW = "fmnist-search/optuna.db", "mlflow.db"


def test_the_plan_follows_from_the_seed() -> None:
    plan = make_plan(3, 3600, 20, ALL_KINDS)
    assert plan == make_plan(3, 3600, 20, ALL_KINDS)
    assert plan != make_plan(4, 3600, 20, ALL_KINDS)
    assert plan[:59] == make_plan(3, 1200, 20, ALL_KINDS)  # a longer test begins like a shorter one
    assert len(plan) == 179
    assert all(abs(fault.at - 20 * number) <= 8 for number, fault in enumerate(plan, start=1))


def test_each_kind_is_planned_as_often_as_its_weight_says() -> None:
    deck = len(ALL_KINDS) + sum(weight - 1 for weight in WEIGHTS.values())
    counts = Counter(fault.kind for fault in make_plan(0, 10.0 * (deck + 1), 10, ALL_KINDS))
    assert counts == {kind: WEIGHTS.get(kind, 1) for kind in ALL_KINDS}
    durations = {fault.seconds for fault in make_plan(0, 10_000, 10, (FaultKind.MLFLOW_DOWN,))}
    assert durations == set(SECONDS[FaultKind.MLFLOW_DOWN]) == {0, 20, 60}


# ------------------------------------------------------------------------------------ invariants


def open_study(folder: Path) -> StudyStore:
    return StudyStore.load(f"sqlite:///{folder / OPTUNA}", "tiny")


def check(folder: Path, budget: int = 4) -> list[Invariant]:
    trials = read_trials(f"sqlite:///{folder / OPTUNA}", "tiny")
    return check_study(trials, open_study(folder).trial_records(), read_runs(folder / MLFLOW), budget)


def broken(found: Iterable[Invariant]) -> set[str]:
    return {invariant.statement for invariant in found if not invariant.holds}


@pytest.fixture(scope="module")
def copies(finished: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """One copy of a finished study; each test puts back what it changes."""
    return copy_study(finished, tmp_path_factory.mktemp("soak"))


@contextlib.contextmanager
def changed(database: Path, *statements: str) -> Iterator[None]:
    """Change a database, and put it back afterwards."""
    before = {path: path.read_bytes() for path in database.parent.glob(f"{database.name}*")}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement
        connection.commit()
    try:
        yield
    finally:
        for path in database.parent.glob(f"{database.name}*"):
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)


@pytest.mark.slow
def test_a_study_that_nothing_happened_to_keeps_all_invariants(copies: FinishedStudy) -> None:
    found = check(copies.folder)
    assert [invariant for invariant in found if not invariant.holds] == []
    assert len({invariant.statement for invariant in found}) == len(found) == 8


TRIAL_RUN = "(SELECT run_uuid FROM tags WHERE key = 'trial' AND value = '1')"
SPENT = "the budget of 4 trials is spent exactly"
ONE_RUN, POINTS = "each trial has one run, of its state", "each run has each point once"
VALUES, OWNERS = "each run has the value of its trial", "no run is without a trial"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database", "statements", "expected"),
    [
        (
            OPTUNA,
            ["UPDATE trials SET state = 'RUNNING' WHERE number = 3", "DELETE FROM trial_values WHERE trial_id = 4"],
            {SPENT, "no trial is left without an end in Optuna", OWNERS},
        ),
        (
            MLFLOW,
            [f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid = {TRIAL_RUN}"],
            {"no run is left without an end in MLflow", ONE_RUN},
        ),
        (MLFLOW, [f"UPDATE tags SET value = 'running' WHERE key = 'state' AND run_uuid = {TRIAL_RUN}"], {ONE_RUN}),
        (MLFLOW, ["UPDATE tags SET value = '2' WHERE key = 'trial' AND value = '1'"], {ONE_RUN}),
        (MLFLOW, ["UPDATE tags SET value = '9' WHERE key = 'trial' AND value = '1'"], {ONE_RUN, OWNERS}),
        (
            MLFLOW,
            [f"UPDATE metrics SET value = value / 2 WHERE key = 'val/accuracy' AND run_uuid = {TRIAL_RUN}"],
            {VALUES},
        ),
        (MLFLOW, [f"DELETE FROM metrics WHERE key = 'train/loss' AND step = 2 AND run_uuid = {TRIAL_RUN}"], {POINTS}),
        (
            MLFLOW,
            [
                "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics "
                f"WHERE key IN ('train/loss', 'time/trial_seconds') AND run_uuid = {TRIAL_RUN}"
            ],
            {POINTS},
        ),
        (
            MLFLOW,
            ["UPDATE metrics SET value = 0.99 WHERE key = 'best/val_accuracy'"],
            {"the best trial has the highest value"},
        ),
    ],
)
def test_each_invariant_notices_what_breaks_it(
    copies: FinishedStudy, database: str, statements: list[str], expected: set[str]
) -> None:
    with changed(copies.folder / database, *statements):
        assert broken(check(copies.folder)) == expected


@pytest.mark.slow
def test_a_budget_that_is_exceeded_is_noticed(copies: FinishedStudy) -> None:
    assert broken(check(copies.folder, budget=3)) == {"the budget of 3 trials is spent exactly"}


@pytest.mark.slow
def test_the_champion_is_worked_out_from_the_stored_trainings_and_versions(copies: FinishedStudy) -> None:
    study, runs = open_study(copies.folder), read_runs(copies.folder / MLFLOW)
    client = MlflowClient(f"sqlite:///{copies.folder / MLFLOW}")
    assert broken(check_champion(study, runs, client, [4])) == set()
    others = [dataclasses.replace(run, points={"val/accuracy": [(2, 0.99)]}) for run in runs]
    assert broken(check_champion(study, others, client, [4])) == {"the confirmed recipe is the one with the best mean"}
    client.set_model_version_tag("fmnist-search", "1", "study", "other")
    assert broken(check_champion(study, runs, client, [4])) == {"each selection has made one version"}
    client.set_model_version_tag("fmnist-search", "1", "study", "tiny")
    client.delete_registered_model_alias("fmnist-search", "champion")
    assert broken(check_champion(study, runs, client, [4])) == {"the champion is the version that the rule selects"}


@pytest.mark.slow
def test_a_version_is_expected_each_time_that_other_recipes_are_the_best(copies: FinishedStudy) -> None:
    study = open_study(copies.folder)
    records, settings = study.trial_records(), study.config.finalists
    best = max(records, key=lambda record: record.value or 0.0).number
    assert expected_versions(records, settings, [4, 4, 4]) == 1
    assert expected_versions(records, settings, [best + 1, 4]) == 1
    assert expected_versions(records, settings, [best, 4] if best else [4]) == (2 if best else 1)


# --------------------------------------------------------------------------------- a short soak test

SHORT = ["--minutes", "2", "--every", "13.3", "--seed", "29"]
SHORT += ["--faults", "kill-search", "mlflow-down", "take-over", "kill-worker"]


@pytest.mark.slow
def test_a_study_survives_eight_faults_in_two_minutes(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *SHORT, "--output", result],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert found["counts"]["faults"] == 8
    assert {fault["kind"] for fault in found["plan"]} == {"kill-search", "mlflow-down", "take-over", "kill-worker"}
    assert found["counts"]["trials"] >= 16
    assert all(invariant["holds"] for invariant in found["invariants"])
