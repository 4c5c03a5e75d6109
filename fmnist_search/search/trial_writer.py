"""Writes of trials, several in one transaction: by SQL into Optuna's tables, or with Optuna's methods.

Optuna's methods take one to two milliseconds each, in which they read rows that the driver has in memory. A trial of
nine epochs has forty writes.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy.dialects import postgresql, sqlite

from fmnist_search.search.lease import Lease


@dataclass(frozen=True)
class Write:
    """A call of a method of Optuna's storage that changes a trial, `set_trial_user_attr` for example, and its time."""

    method: str
    trial_id: int
    arguments: tuple[Any, ...]
    at: datetime


class TrialWriter(Protocol):
    """Writes trials. Each of its transactions checks the lease, and all can be repeated except `create`.

    `is_exact` says whether it stores exactly what it is given, times included.
    """

    is_exact: bool

    def create(self, study_id: int, number: int, trial: FrozenTrial) -> int:
        """Store a new trial with all that it has; return its id."""

    def newest_trial_id(self, study_id: int) -> int:
        """Return the greatest id of a study's trials, -1 if it has none."""

    def write(self, writes: Sequence[Write]) -> None:
        """Store changes of trials."""


def make_writer(rdb: RDBStorage, lease: Lease | None) -> TrialWriter:
    """Return a writer by SQL, if it knows the tables of this version of Optuna."""
    inspector = sa.inspect(rdb.engine)
    is_known = rdb.engine.dialect.name in _DIALECTS and all(
        {column["name"] for column in inspector.get_columns(name)} == set(table.columns.keys())
        for name, table in _METADATA.tables.items()
    )
    return SqlTrialWriter(rdb.engine, lease) if is_known else OptunaTrialWriter(rdb)


class OptunaTrialWriter:
    """Writes with the methods of Optuna's storage, each in a transaction of its own."""

    is_exact = False

    def __init__(self, rdb: RDBStorage):
        self._rdb = rdb

    def create(self, study_id: int, number: int, trial: FrozenTrial) -> int:
        """Store a new trial; Optuna numbers it, and gives it the present time."""
        is_new = trial.state is OptunaState.RUNNING and not trial.params and not trial.user_attrs
        return self._rdb.create_new_trial(study_id, None if is_new else trial)

    def newest_trial_id(self, study_id: int) -> int:
        """Return the greatest id of a study's trials, -1 if it has none."""
        return max((trial._trial_id for trial in self._rdb.get_all_trials(study_id, deepcopy=False)), default=-1)

    def write(self, writes: Sequence[Write]) -> None:
        """Call the methods; those that have set a state before the answer was lost are not called again."""
        for write in writes:
            if write.method != "set_trial_state_values" or not self._has_state(write):
                getattr(self._rdb, write.method)(write.trial_id, *write.arguments)

    def _has_state(self, write: Write) -> bool:
        return self._rdb.get_trial(write.trial_id).state is write.arguments[0]


# Optuna's tables. The types are those of its models: PostgreSQL has a type of its own for each enumeration.
_METADATA = sa.MetaData()
_FINITE, _NAN, _POSITIVE, _NEGATIVE = "FINITE", "NAN", "INF_POS", "INF_NEG"
_VALUE_TYPE = sa.Enum(_FINITE, _POSITIVE, _NEGATIVE, name="trialvaluetype")
_INTERMEDIATE_TYPE = sa.Enum(_FINITE, _POSITIVE, _NEGATIVE, _NAN, name="trialintermediatevaluetype")


def _table(name: str, key: str, columns: Mapping[str, Any]) -> sa.Table:
    plain = (sa.Column(column, kind) for column, kind in columns.items())
    return sa.Table(name, _METADATA, sa.Column(key, sa.Integer, primary_key=True), *plain)


_ATTRIBUTE = {"trial_id": sa.Integer, "key": sa.String, "value_json": sa.Text}
_TRIALS = _table(
    "trials",
    "trial_id",
    {
        "number": sa.Integer,
        "study_id": sa.Integer,
        "state": sa.Enum(OptunaState, name="trialstate"),
        "datetime_start": sa.DateTime,
        "datetime_complete": sa.DateTime,
    },
)
_PARAMS = _table(
    "trial_params",
    "param_id",
    {"trial_id": sa.Integer, "param_name": sa.String, "param_value": sa.Double, "distribution_json": sa.Text},
)
_VALUES = _table(
    "trial_values",
    "trial_value_id",
    {"trial_id": sa.Integer, "objective": sa.Integer, "value": sa.Double, "value_type": _VALUE_TYPE},
)
_INTERMEDIATE_VALUES = _table(
    "trial_intermediate_values",
    "trial_intermediate_value_id",
    {
        "trial_id": sa.Integer,
        "step": sa.Integer,
        "intermediate_value": sa.Double,
        "intermediate_value_type": _INTERMEDIATE_TYPE,
    },
)
_USER_ATTRIBUTES = _table("trial_user_attributes", "trial_user_attribute_id", _ATTRIBUTE)
_SYSTEM_ATTRIBUTES = _table("trial_system_attributes", "trial_system_attribute_id", _ATTRIBUTE)

_DIALECTS: Mapping[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}

_Row = tuple[str, dict[str, Any]]
"""The name of a statement, and the values of its parameters."""


class SqlTrialWriter:
    """Writes by SQL, in one transaction a call. Rows that are there already are replaced."""

    is_exact = True

    def __init__(self, engine: sa.Engine, lease: Lease | None):
        self._engine = engine
        self._lease = lease
        dialect = engine.dialect.name
        self._create = sa.insert(_TRIALS).returning(_TRIALS.c.trial_id)
        self._newest = sa.select(sa.func.max(_TRIALS.c.trial_id)).where(_TRIALS.c.study_id == sa.bindparam("study"))
        trial = _TRIALS.c.trial_id == sa.bindparam("trial")
        self._statements: dict[str, Any] = {
            "param": _upsert(dialect, _PARAMS, "param_name"),
            "value": _upsert(dialect, _VALUES, "objective"),
            "intermediate": _upsert(dialect, _INTERMEDIATE_VALUES, "step"),
            "user": _upsert(dialect, _USER_ATTRIBUTES, "key"),
            "system": _upsert(dialect, _SYSTEM_ATTRIBUTES, "key"),
            "wait": sa.update(_TRIALS).where(trial).values(state=OptunaState.WAITING),
            "begin": sa.update(_TRIALS)
            .where(trial)
            .values(state=OptunaState.RUNNING, datetime_start=sa.bindparam("at")),
            "end": sa.update(_TRIALS)
            .where(trial)
            .values(state=sa.bindparam("ended"), datetime_complete=sa.bindparam("at")),
        }

    def create(self, study_id: int, number: int, trial: FrozenTrial) -> int:
        """Store a new trial with all that it has; return its id."""
        row = {
            "study_id": study_id,
            "number": number,
            "state": trial.state,
            "datetime_start": _to_utc(trial.datetime_start),
            "datetime_complete": _to_utc(trial.datetime_complete),
        }
        with self._engine.begin() as connection:
            trial_id = int(connection.execute(self._create, row).scalar_one())
            self._execute(connection, _content(trial_id, trial))
            self._check_lease(connection)
        return trial_id

    def newest_trial_id(self, study_id: int) -> int:
        """Return the greatest id of a study's trials, -1 if it has none."""
        with self._engine.connect() as connection:
            newest = connection.execute(self._newest, {"study": study_id}).scalar_one()
        return -1 if newest is None else int(newest)

    def write(self, writes: Sequence[Write]) -> None:
        """Store changes in one transaction."""
        rows = [row for write in writes for row in _ROWS[write.method](write.trial_id, write.at, *write.arguments)]
        with self._engine.begin() as connection:
            self._execute(connection, rows)
            self._check_lease(connection)

    def _execute(self, connection: sa.Connection, rows: Sequence[_Row]) -> None:
        for name, group in itertools.groupby(rows, key=lambda row: row[0]):
            connection.execute(self._statements[name], [values for _, values in group])

    def _check_lease(self, connection: sa.Connection) -> None:
        """Check the lease last, when the transaction has its locks."""
        if self._lease is not None:
            self._lease.check_in(connection)


def _upsert(dialect: str, table: sa.Table, key: str) -> Any:
    """Return a statement that inserts a row, or replaces the one of the same trial and key."""
    names = [column.name for column in table.columns if not column.primary_key]
    insert = _DIALECTS[dialect](table).values({name: sa.bindparam(name) for name in names})
    changed = {name: insert.excluded[name] for name in names if name not in ("trial_id", key)}
    return insert.on_conflict_do_update(index_elements=["trial_id", key], set_=changed)


def _content(trial_id: int, trial: FrozenTrial) -> list[_Row]:
    """Return the rows of a trial beside that in the table of trials."""
    rows: list[_Row] = []
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        rows += _param_rows(trial_id, None, name, distribution.to_internal_repr(value), distribution)
    for key, attribute in trial.user_attrs.items():
        rows += _attribute_rows("user", trial_id, key, attribute)
    for key, attribute in trial.system_attrs.items():
        rows += _attribute_rows("system", trial_id, key, attribute)
    for step, value in trial.intermediate_values.items():
        rows += _intermediate_rows(trial_id, None, step, value)
    return rows + _value_rows(trial_id, trial.values)


def _param_rows(trial_id: int, _: Any, name: str, value: float, distribution: BaseDistribution) -> list[_Row]:
    row = {"trial_id": trial_id, "param_name": name, "param_value": value}
    return [("param", {**row, "distribution_json": distribution_to_json(distribution)})]


def _attribute_rows(statement: str, trial_id: int, key: str, value: Any) -> list[_Row]:
    return [(statement, {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)})]


def _intermediate_rows(trial_id: int, _: Any, step: int, value: float) -> list[_Row]:
    stored, kind = _stored(value)
    row = {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
    return [("intermediate", row)]


def _value_rows(trial_id: int, values: Sequence[float] | None) -> list[_Row]:
    pairs = [(objective, *_stored(value)) for objective, value in enumerate(values or ())]
    return [
        ("value", {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind})
        for objective, stored, kind in pairs
    ]


def _state_rows(trial_id: int, at: datetime, state: OptunaState, values: Sequence[float] | None = None) -> list[_Row]:
    rows = _value_rows(trial_id, values)
    if state is OptunaState.WAITING:
        return [*rows, ("wait", {"trial": trial_id})]
    if state is OptunaState.RUNNING:
        return [*rows, ("begin", {"trial": trial_id, "at": _to_utc(at)})]
    return [*rows, ("end", {"trial": trial_id, "ended": state, "at": _to_utc(at)})]


_ROWS: Mapping[str, Callable[..., list[_Row]]] = {
    "set_trial_param": _param_rows,
    "set_trial_user_attr": lambda trial_id, _, key, value: _attribute_rows("user", trial_id, key, value),
    "set_trial_system_attr": lambda trial_id, _, key, value: _attribute_rows("system", trial_id, key, value),
    "set_trial_intermediate_value": _intermediate_rows,
    "set_trial_state_values": _state_rows,
}


def _stored(value: float) -> tuple[float | None, str]:
    """Return a value and its kind, as Optuna stores them: numbers that are not finite are no values in databases."""
    if math.isnan(value):
        return None, _NAN
    if math.isinf(value):
        return None, _POSITIVE if value > 0 else _NEGATIVE
    return value, _FINITE


def _to_utc(local: datetime | None) -> datetime | None:
    """Return a time as Optuna stores it: that of UTC, without a time zone."""
    return local.astimezone(UTC).replace(tzinfo=None) if local else None
