"""What the stores hold at the end of a soak test: Optuna's trials, and MLflow's runs with all their points."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from fmnist_search.search.storage import open_storage

Points = dict[str, list[tuple[int, float]]]
"""The points of a run by metric key: step and value, in the order of the steps."""


@dataclass(frozen=True)
class StoredRun:
    """A run of MLflow with its tags, its parameters and all points of its metrics."""

    run_id: str
    name: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: Points = field(default_factory=dict)

    def __str__(self) -> str:
        return f"run {self.run_id[:8]} {self.name!r} ({self.status}, state {self.tags.get('state')})"


def read_runs(database: Path) -> list[StoredRun]:
    """Return all runs of MLflow's SQLite store that were not deleted; a query for each run would take minutes."""
    tags: dict[str, dict[str, str]] = defaultdict(dict)
    params: dict[str, dict[str, str]] = defaultdict(dict)
    points: dict[str, Points] = defaultdict(lambda: defaultdict(list))
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
        for key, value, run_id in store.execute("SELECT key, value, run_uuid FROM tags"):
            tags[run_id][key] = value
        for key, value, run_id in store.execute("SELECT key, value, run_uuid FROM params"):
            params[run_id][key] = value
        for key, value, step, run_id in store.execute("SELECT key, value, step, run_uuid FROM metrics ORDER BY step"):
            points[run_id][key].append((step, value))
        runs = store.execute("SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active'").fetchall()
    return [
        StoredRun(run_id, name, status, tags[run_id], params[run_id], dict(points[run_id]))
        for run_id, name, status in runs
    ]


def read_trials(storage_url: str, study: str) -> list[optuna.trial.FrozenTrial]:
    """Return all trials of a study as Optuna holds them."""
    return optuna.load_study(study_name=study, storage=open_storage(storage_url, create=False)).get_trials()
