"""Studies that know thousands of trials already, made in seconds instead of by searching them."""

from __future__ import annotations

import bisect
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import InMemoryStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy import create_engine, func, insert, select

from benchmarks.cluster.simulation import CurveSource
from fmnist_search.config.pruners import Halving, NoPruner
from fmnist_search.config.samplers import Random
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.execution import Execution
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.search.trial_attributes import OUTCOME_ATTRIBUTE, outcome_attribute

PRECISION = "float32"
Table = type[models.BaseModel]
Row = dict[str, Any]


class Halvings:
    """Asynchronous successive halving over sorted values; it stores what Optuna's pruner stores."""

    def __init__(self, settings: Halving, epochs: int):
        self._first, self._factor, self._epochs = settings.first_rung(epochs), settings.reduction_factor, epochs
        self._values: defaultdict[int, list[float]] = defaultdict(list)

    def run(self, curve: Sequence[float]) -> tuple[int, dict[str, float]]:
        """Return how many epochs a trial with this curve trains, and Optuna's attributes of its rungs."""
        attributes: dict[str, float] = {}
        for rung in range(len(curve)):
            step = self._first * self._factor**rung
            if step > self._epochs:
                break
            value, values = curve[step - 1], self._values[rung]
            attributes[f"completed_rung_{rung}"] = value
            bisect.insort(values, value)
            kept = max(len(values) // self._factor, 1)
            if value < values[-kept]:
                return step, attributes
        return self._epochs, attributes


def add_known_trials(url: str, config: StudyConfig, count: int, curves: CurveSource) -> None:
    """Create the study in a storage, with `count` trials of a random search with halving that have ended.

    Their parameters are drawn by the study's own code, and they have every attribute of a trial that was searched.
    They have no runs in MLflow.
    """
    store = StudyStore.open(url, config)
    store.runtime = StudyRuntime(Execution(threads=1), PRECISION)
    insert_trials(url, config.name, make_trials(config, count, curves))


def insert_trials(url: str, name: str, trials: Sequence[FrozenTrial]) -> None:
    """Insert trials into an empty study, in one transaction: `study.add_trials` takes a minute for a thousand."""
    engine = create_engine(url)
    with engine.begin() as connection:
        (study_id,) = connection.execute(
            select(models.StudyModel.study_id).where(models.StudyModel.study_name == name)
        ).one()
        first = (connection.execute(select(func.max(models.TrialModel.trial_id))).scalar() or 0) + 1
        for model, rows in _rows(study_id, first, trials).items():
            connection.execute(insert(model), rows)
    engine.dispose()


def _rows(study_id: int, first: int, trials: Sequence[FrozenTrial]) -> dict[Table, list[Row]]:
    """Return the rows of trials by table; the first trial gets the id `first`."""
    rows: defaultdict[Table, list[Row]] = defaultdict(list)
    for number, trial in enumerate(trials):
        of_trial = {"trial_id": first + number}
        times = {"datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}
        about = {"number": number, "study_id": study_id, "state": trial.state, **times}
        rows[models.TrialModel].append({**of_trial, **about})
        for table, own_rows in _rows_of_trial(trial):
            rows[table] += [{**of_trial, **row} for row in own_rows]
    return rows


def _rows_of_trial(trial: FrozenTrial) -> Iterator[tuple[Table, list[Row]]]:
    value_type = models.TrialValueModel.TrialValueType.FINITE
    yield models.TrialValueModel, [{"objective": 0, "value": trial.value, "value_type": value_type}]
    report_type = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    yield (
        models.TrialIntermediateValueModel,
        [
            {"step": step, "intermediate_value": value, "intermediate_value_type": report_type}
            for step, value in trial.intermediate_values.items()
        ],
    )
    params = [(name, trial.distributions[name], value) for name, value in trial.params.items()]
    yield (
        models.TrialParamModel,
        [
            {
                "param_name": name,
                "param_value": distribution.to_internal_repr(value),
                "distribution_json": distribution_to_json(distribution),
            }
            for name, distribution, value in params
        ],
    )
    yield models.TrialUserAttributeModel, _attribute_rows(trial.user_attrs)
    yield models.TrialSystemAttributeModel, _attribute_rows(trial.system_attrs)


def _attribute_rows(attributes: Mapping[str, Any]) -> list[Row]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def make_trials(config: StudyConfig, count: int, curves: CurveSource) -> list[FrozenTrial]:
    """Return trials of a random search with halving that have ended; the same config gives the same trials."""
    drawn = config.model_copy(update={"sampler": Random(), "pruner": NoPruner()})
    store = StudyStore.open_in(InMemoryStorage(), drawn)
    store.runtime = StudyRuntime(Execution(threads=1), PRECISION)
    settings = config.pruner if isinstance(config.pruner, Halving) else Halving()
    halvings, epochs = Halvings(settings, config.budget.epochs), config.budget.epochs
    started = datetime.now() - timedelta(days=1)
    made = []
    for number in range(count):
        asked = store.ask()
        reports = curves.reports(asked.recipe)[:epochs]
        accuracies = [report.val_accuracy or 0.0 for report in reports]
        length, rungs = halvings.run(accuracies)
        state = TrialState.COMPLETED if length == epochs else TrialState.PRUNED
        trial = asked.optuna_trial
        made.append(
            optuna.trial.create_trial(
                state=OptunaState.COMPLETE if state is TrialState.COMPLETED else OptunaState.PRUNED,
                value=accuracies[length - 1],
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**trial.user_attrs, OUTCOME_ATTRIBUTE: _outcome(state, reports[:length])},
                system_attrs=rungs,
                intermediate_values=dict(enumerate(accuracies[:length], start=1)),
            )
        )
        made[-1].datetime_start = started + timedelta(seconds=number)
        made[-1].datetime_complete = started + timedelta(seconds=number + 60)
    return made


def _outcome(state: TrialState, reports: Sequence[EpochReport]) -> dict[str, Any]:
    seconds = sum(report.seconds for report in reports)
    return outcome_attribute(TrialResult(state, tuple(reports), seconds, 10_000), run_id="")
