"""The storage through which the driver of a study works: it waits out outages, and writes only while it has the lease.

It has the trials in memory, because only the driver writes them, and shows paused trials to samplers and pruners as
pruned.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState
from sqlalchemy import orm

from fmnist_search.search.known_trials import KnownTrials, as_stored
from fmnist_search.search.lease import Lease
from fmnist_search.search.outage_retries import OUTAGE_SECONDS, OutageRetries
from fmnist_search.search.outages import limit_idle_transactions
from fmnist_search.search.trial_writer import TrialWriter, Write, make_writer

_HAS_WRITTEN = "has_written"
"""Key in the information of a session: whether its transaction has written something."""

T = TypeVar("T")


class DriverStorage(BaseStorage):
    """Optuna's storage for the driver of a study, the only process that writes its trials.

    Trials are loaded once and then read from memory. A write is in the database before its method returns or, within
    `transaction`, before that ends. Attributes of studies are read from the database each time.

    Each operation is retried for `outage_seconds` while the database is gone, restarts, is locked or cannot be written.
    `on_message` gets a line about an outage, and one when the database is back. An operation that was committed
    although its answer was lost is not repeated.

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
        make_writer: Callable[[RDBStorage, Lease | None], TrialWriter] = make_writer,
    ):
        self._rdb = rdb
        self._retries = OutageRetries(rdb, lease, on_message, outage_seconds)
        self._writer = make_writer(rdb, lease)
        # Other threads read while the driver writes.
        self._lock = threading.RLock()
        self._studies: dict[int, KnownTrials] = {}
        self._study_ids: dict[int, int] = {}
        self._fixed: dict[tuple[str, Any], Any] = {}
        self._open_writes: list[Write] | None = None
        if lease is not None:
            _check_lease_on_commit(rdb, lease)

    def check_lease(self) -> None:
        """Check in the database that this process still drives the study.

        Raises:
            LeaseLost: if another process has taken it over.
        """
        self._retries.run(self._retries.verify_lease)

    # ------------------------------------------------------------------------------------- studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create a study."""

        def created() -> int | None:
            return next(
                (found._study_id for found in self._rdb.get_all_studies() if found.study_name == study_name), None
            )

        return self._retries.run(lambda: self._rdb.create_new_study(directions, study_name), created)

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""

        def deleted() -> bool | None:
            return None if any(found._study_id == study_id for found in self._rdb.get_all_studies()) else True

        with self._lock:
            self._retries.run(lambda: self._rdb.delete_study(study_id), deleted)
            self._studies.pop(study_id, None)
            self._fixed.clear()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Store an attribute of a study."""
        self._retries.run(lambda: self._rdb.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Store an attribute of Optuna's."""
        self._retries.run(lambda: self._rdb.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study."""
        return self._fixed_value("id", study_name, self._rdb.get_study_id_from_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self._fixed_value("name", study_id, self._rdb.get_study_name_from_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study."""
        return list(self._fixed_value("directions", study_id, self._rdb.get_study_directions))

    def _fixed_value(self, kind: str, key: Any, read: Callable[[Any], T]) -> T:
        """Return what is read from the database once, because it never changes."""
        with self._lock:
            if (kind, key) not in self._fixed:
                self._fixed[kind, key] = self._retries.run(lambda: read(key))
            found: T = self._fixed[kind, key]
            return found

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes of a study."""
        return self._retries.run(lambda: self._rdb.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes of Optuna's."""
        return self._retries.run(lambda: self._rdb.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies."""
        return self._retries.run(self._rdb.get_all_studies)

    # ----------------------------------------------------------------------------- trials: writing

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the changes of trials in this context together, at its end. A trial that is created is there at once.

        What was changed before an exception is stored too.
        """
        with self._lock:
            if self._open_writes is not None:  # within another one, at whose end it is committed
                yield
                return
            self._open_writes = []
            try:
                yield
            finally:
                try:
                    self._commit()
                finally:
                    self._open_writes = None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial and return its id."""
        with self._lock:
            known = self._known(study_id)
            self._commit()
            trial = _new_trial(template_trial, number=len(known))
            for name, distribution in trial.distributions.items():
                known.check_distribution(name, distribution)

            def created() -> int | None:
                # Only the driver creates trials, so one that was not there before is the one whose answer was lost.
                newest = self._writer.newest_trial_id(study_id)
                return newest if newest > known.newest_id else None

            trial_id = self._retries.run(lambda: self._writer.create(study_id, len(known), trial), created)
            trial._trial_id = trial_id
            known.add(trial)
            self._study_ids[trial_id] = study_id
            if not self._writer.is_exact:
                known.replace(self._retries.run(lambda: self._rdb.get_trial(trial_id)))
            return trial_id

    def set_trial_state_values(self, trial_id: int, state: OptunaState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial, and its values; return whether it was changed."""
        with self._lock:
            if state is OptunaState.RUNNING and self.get_trial(trial_id).state is not OptunaState.WAITING:
                return False
            self._write("set_trial_state_values", trial_id, state, None if values is None else list(values))
            return True

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Store a parameter of a trial, unless it has it already."""
        with self._lock:
            known = self._known_with(trial_id)
            known.check_distribution(param_name, distribution)
            if param_name not in known.get(trial_id).params:
                self._write("set_trial_param", trial_id, param_name, param_value_internal, distribution)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Store the value of a step of a trial."""
        self._write("set_trial_intermediate_value", trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store an attribute of a trial."""
        self._write("set_trial_user_attr", trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Store an attribute of Optuna's."""
        self._write("set_trial_system_attr", trial_id, key, value)

    def _write(self, method: str, trial_id: int, *arguments: Any) -> None:
        with self._lock:
            known, write = self._known_with(trial_id), Write(method, trial_id, arguments, datetime.now())
            self.check_trial_is_updatable(trial_id, known.get(trial_id).state)
            known.change(method, trial_id, arguments, write.at)
            if self._open_writes is None:
                self._execute([write])
            else:
                self._open_writes.append(write)

    def _commit(self) -> None:
        """Write what the open transaction has changed so far."""
        writes = self._open_writes
        if writes:
            self._open_writes = []
            self._execute(writes)

    def _execute(self, writes: Sequence[Write]) -> None:
        try:
            self._retries.run(lambda: self._writer.write(writes))
            if not self._writer.is_exact:
                for trial_id in {write.trial_id for write in writes}:
                    self._known_with(trial_id).replace(self._retries.run(partial(self._rdb.get_trial, trial_id)))
        except BaseException:
            self._studies.clear()  # the trials in memory are no longer those in the database
            raise

    # ----------------------------------------------------------------------------- trials: reading

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the id of a trial."""
        with self._lock:
            return self._known(study_id).id_of(trial_number)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a copy of a trial as it is stored: a paused one is running."""
        with self._lock:
            return self._known_with(trial_id).copy_of(trial_id)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """Return the attributes of Optuna's of a trial."""
        with self._lock:
            return dict(self._known_with(trial_id).get(trial_id).system_attrs)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[OptunaState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study by number; a paused one is shown as pruned."""
        with self._lock:
            trials = self._known(study_id).shown(states)
        return copy.deepcopy(trials) if deepcopy else trials

    def _known(self, study_id: int) -> KnownTrials:
        if study_id not in self._studies:
            trials = self._retries.run(lambda: self._rdb.get_all_trials(study_id, deepcopy=False))
            self._studies[study_id] = KnownTrials(trials)
            self._study_ids.update((trial._trial_id, study_id) for trial in trials)
        return self._studies[study_id]

    def _known_with(self, trial_id: int) -> KnownTrials:
        if trial_id not in self._study_ids:
            for study in self.get_all_studies():
                self._known(study._study_id)
        return self._known(self._study_ids[trial_id])

    def remove_session(self) -> None:
        """Close the session of this thread."""
        self._rdb.remove_session()


def _new_trial(template: FrozenTrial | None, number: int) -> FrozenTrial:
    """Return a trial that is created without a template or with it, with the attributes that are read from it later."""
    if template is None:
        trial = create_trial(state=OptunaState.RUNNING)
        trial.datetime_start = datetime.now()
    else:
        trial = copy.deepcopy(template)
        trial.user_attrs, trial.system_attrs = as_stored(trial.user_attrs), as_stored(trial.system_attrs)
    trial.number = number
    return trial


def _check_lease_on_commit(rdb: RDBStorage, lease: Lease) -> None:
    """Let each session that writes check the lease as its last statement, when it holds the locks of its rows."""

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

    rdb.remove_session()
    limit_idle_transactions(rdb.engine, lease.seconds / 2)
