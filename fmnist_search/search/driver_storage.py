"""The storage through which the driver of a study works: it waits out outages, and writes only while it has the lease.

It wraps Optuna's cached storage, and shows paused trials to samplers and pruners as pruned.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import threading
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy import orm
from sqlalchemy.exc import SQLAlchemyError

from fmnist_search.errors import UserError
from fmnist_search.files import is_missing
from fmnist_search.search.lease import Lease, LeaseLost
from fmnist_search.search.outages import StorageUnreachable, limit_idle_transactions, raise_outages
from fmnist_search.search.storage_url import shown_url
from fmnist_search.search.trial_attributes import PAUSED_ATTRIBUTE
from fmnist_search.sqlite_files import FileReplacedError

OUTAGE_SECONDS = 120.0
"""Seconds for which an operation is retried while the database does not answer or cannot be written."""

MESSAGE_SECONDS = 3.0
"""Seconds of an outage after which it is reported."""

LONGEST_PAUSE_SECONDS = 2.0
"""The longest pause between two tries."""

_HAS_WRITTEN = "has_written"
"""Key in the information of a session: whether its transaction has written something."""

T = TypeVar("T")


class DriverStorage(BaseStorage):
    """Optuna's storage for the driver of a study.

    Each operation is retried for `outage_seconds` while the database is gone, restarts, is locked or cannot be written.
    `on_message` gets a line when an outage has lasted `MESSAGE_SECONDS`, and one when the database is back. An
    operation that was committed although its answer was lost is not repeated.

    With a lease, each transaction that writes first checks that the lease is held, and fails with `LeaseLost` if not.
    `get_all_trials` shows a paused trial as pruned, with its last value; `get_trial` shows it as it is, running.

    An operation raises `UserError` if the outage lasts longer.
    """

    def __init__(
        self,
        rdb: RDBStorage,
        lease: Lease | None,
        on_message: Callable[[str], None],
        outage_seconds: float = OUTAGE_SECONDS,
    ):
        self._rdb = rdb
        self._lease = lease
        self._cached = get_storage(rdb)
        self._on_message = on_message
        self._outage_seconds = outage_seconds
        self._outage = _Outage(outage_seconds)
        self._newest_trial_ids: dict[int, int] = {}
        raise_outages(rdb)
        if lease is not None:
            _check_lease_on_commit(rdb, lease)

    # ------------------------------------------------------------------------------------- retries

    def _retry(self, operation: Callable[[], T], committed: Callable[[], T | None] = lambda: None) -> T:
        """Return what an operation returns, which is repeated while the database is out of reach.

        After a failure, `committed` returns the result if the operation was committed although it failed.
        """
        deadline = time.monotonic() + self._outage_seconds
        attempt = 0
        while True:
            try:
                result = committed() if attempt else None
                result = operation() if result is None else result
            except StorageUnreachable as error:
                attempt += 1
                self._wait(str(error), attempt, deadline)
            except FileReplacedError as error:
                attempt += 1
                if error.is_deleted or not self._is_file_missing or time.monotonic() > deadline:
                    raise
                self._wait("the file is missing", attempt, deadline)
            except LeaseLost:
                raise
            except Exception:  # Optuna refuses what contradicts the writes of a successor before the lease is checked
                with contextlib.suppress(StorageUnreachable, SQLAlchemyError):
                    self._verify_lease()
                raise
            else:
                if message := self._outage.end():
                    self._on_message(f"storage {self._shown}: {message}")
                return result

    def check_lease(self) -> None:
        """Check in the database that this process still drives the study.

        Raises:
            LeaseLost: if another process has taken it over.
        """
        self._retry(self._verify_lease)

    def _verify_lease(self) -> None:
        if self._lease is not None:
            self._lease.verify(self._rdb.engine)

    def _wait(self, reason: str, attempt: int, deadline: float) -> None:
        if message := self._outage.note(reason):
            self._on_message(f"storage {self._shown}: {message}")
        if time.monotonic() > deadline:
            raise UserError(
                f"storage {self._shown}: has not answered for {self._outage_seconds:g} s ({reason}); what was stored "
                "before is kept: run the same command again when the database is back",
                exit_code=1,
            )
        # Many processes that wait for one database do not come back at the same moment.
        time.sleep(random.uniform(0.0, min(LONGEST_PAUSE_SECONDS, 0.05 * 2.0**attempt)))

    @property
    def _is_file_missing(self) -> bool:
        url = self._rdb.engine.url
        return url.get_backend_name() == "sqlite" and is_missing(Path(str(url.database)))

    @property
    def _shown(self) -> str:
        return shown_url(self._rdb.engine.url)

    # ------------------------------------------------------------------------------------- studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study."""

        def created() -> int | None:
            return next(
                (found._study_id for found in self._rdb.get_all_studies() if found.study_name == study_name), None
            )

        return self._retry(lambda: self._cached.create_new_study(directions, study_name), created)

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""

        def deleted() -> bool | None:
            return None if any(found._study_id == study_id for found in self._rdb.get_all_studies()) else True

        self._retry(lambda: self._cached.delete_study(study_id), deleted)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Store an attribute of a study."""
        self._retry(lambda: self._cached.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Store an attribute of Optuna's."""
        self._retry(lambda: self._cached.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study."""
        return self._retry(lambda: self._cached.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self._retry(lambda: self._cached.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study."""
        return self._retry(lambda: self._cached.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes of a study."""
        return self._retry(lambda: self._cached.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes of Optuna's."""
        return self._retry(lambda: self._cached.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies."""
        return self._retry(self._cached.get_all_studies)

    # -------------------------------------------------------------------------------------- trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial and return its id."""
        if study_id not in self._newest_trial_ids:
            self._read_trials(study_id)
        newest = self._newest_trial_ids[study_id]

        def created() -> int | None:
            # Only the driver creates trials, so one that was not there before is the one whose answer was lost.
            trials = self._cached.get_all_trials(study_id, deepcopy=False)
            return trials[-1]._trial_id if trials and trials[-1]._trial_id > newest else None

        trial_id = self._retry(lambda: self._cached.create_new_trial(study_id, template_trial), created)
        self._newest_trial_ids[study_id] = trial_id
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: OptunaState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial, and its values; return whether it was changed."""

        def changed() -> bool | None:
            trial = self._cached.get_trial(trial_id)
            return True if trial.state is state and (values is None or list(values) == trial.values) else None

        return self._retry(lambda: self._cached.set_trial_state_values(trial_id, state, values), changed)

    # The following writes can be repeated: Optuna ignores a parameter that is stored twice, and replaces the others.

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Store a parameter of a trial."""
        self._retry(lambda: self._cached.set_trial_param(trial_id, param_name, param_value_internal, distribution))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Store the value of a step of a trial."""
        self._retry(lambda: self._cached.set_trial_intermediate_value(trial_id, step, intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store an attribute of a trial."""
        self._retry(lambda: self._cached.set_trial_user_attr(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store an attribute of Optuna's."""
        self._retry(lambda: self._cached.set_trial_system_attr(trial_id, key, value))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the id of a trial."""
        return self._retry(lambda: self._cached.get_trial_id_from_study_id_trial_number(study_id, trial_number))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial as it is stored: a paused one is running."""
        return self._retry(lambda: self._cached.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[OptunaState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study by number; a paused one is shown as pruned."""
        trials = [_as_shown(trial) for trial in self._read_trials(study_id)]
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _read_trials(self, study_id: int) -> list[FrozenTrial]:
        trials = self._retry(lambda: self._cached.get_all_trials(study_id, deepcopy=False))
        self._newest_trial_ids[study_id] = trials[-1]._trial_id if trials else -1
        return trials

    def remove_session(self) -> None:
        """Close the session of this thread."""
        self._rdb.remove_session()


class _Outage:
    """Since when the database has been out of reach, for all threads, and whether that was reported."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._is_reported = False

    def note(self, reason: str) -> str | None:
        """Note that an operation failed; return the message, once per outage."""
        with self._lock:
            now = time.monotonic()
            if self._began_at is None:
                self._began_at = now
            if self._is_reported or now - self._began_at < MESSAGE_SECONDS:
                return None
            self._is_reported = True
        return f"does not answer ({reason}); it is tried again for up to {self._seconds:g} s, and nothing is lost"

    def end(self) -> str | None:
        """Note that an operation succeeded; return the message if an outage was reported."""
        if self._began_at is None:
            return None
        with self._lock:
            began_at, is_reported = self._began_at, self._is_reported
            self._began_at, self._is_reported = None, False
        if began_at is None or not is_reported:
            return None
        return f"answers again after {time.monotonic() - began_at:.0f} s"


def _as_shown(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial as samplers and pruners shall see it."""
    if trial.state is not OptunaState.RUNNING or trial.user_attrs.get(PAUSED_ATTRIBUTE) is None:
        return trial
    shown = copy.copy(trial)
    shown.state = OptunaState.PRUNED
    shown.datetime_complete = trial.datetime_start
    if (last_step := trial.last_step) is not None and not math.isnan(trial.intermediate_values[last_step]):
        shown.values = [trial.intermediate_values[last_step]]
    return shown


def _check_lease_on_commit(rdb: RDBStorage, lease: Lease) -> None:
    """Let each transaction that writes check the lease as its last statement, when it holds the locks of its rows."""

    @sa.event.listens_for(rdb.scoped_session, "after_flush")
    def note_flush(session: orm.Session, _: orm.UOWTransaction) -> None:
        session.info[_HAS_WRITTEN] = True

    @sa.event.listens_for(rdb.scoped_session, "do_orm_execute")
    def note_statement(state: orm.ORMExecuteState) -> None:
        if not state.is_select:
            state.session.info[_HAS_WRITTEN] = True

    @sa.event.listens_for(rdb.scoped_session, "before_commit")
    def check(session: orm.Session) -> None:
        session.flush()
        if session.info.pop(_HAS_WRITTEN, False):
            lease.check_in(session.connection())

    @sa.event.listens_for(rdb.scoped_session, "after_rollback")
    def forget(session: orm.Session) -> None:
        session.info.pop(_HAS_WRITTEN, None)

    if rdb.engine.dialect.name == "postgresql":
        limit_idle_transactions(rdb, lease.seconds / 2)
