"""Studies in the storage of a folder, whose trials were not trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.workspace import Workspace


def store_trials(
    folder: Path, config: StudyConfig, trials: Mapping[Sequence[float], float], *, threads: int | None = 1
) -> None:
    """Store a study with trials of these learning curves and seconds; short curves are those of pruned trials.

    Without `threads`, the study has not measured how its trials are to run.
    """
    store = StudyStore.open(Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}").storage_url, config)
    if threads is not None:
        store.runtime = StudyRuntime(Execution(threads=threads), "float32")
    for curve, seconds in trials.items():
        state = TrialState.COMPLETED if len(curve) == config.budget.epochs else TrialState.PRUNED
        reports = [EpochReport(n, 1.0, 0.5, 1.0, value, 0.1, 0.25) for n, value in enumerate(curve, 1)]
        trial = store.ask()
        for report in reports:
            store.decide(trial, report)
        store.tell(trial, TrialResult(state, tuple(reports), seconds), "")
