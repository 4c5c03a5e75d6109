"""The contract of the driver's storage.

It has in memory what is stored, an outage loses nothing, and samplers see paused trials as pruned.
"""

from __future__ import annotations

import math
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from fmnist_search.errors import UserError
from fmnist_search.search.driver_storage import DriverStorage
from fmnist_search.search.lease import Lease, LeaseLost
from fmnist_search.search.outages import StorageUnreachable
from fmnist_search.search.storage import open_storage
from fmnist_search.search.trial_attributes import PAUSED_ATTRIBUTE
from fmnist_search.search.trial_writer import OptunaTrialWriter, SqlTrialWriter, TrialWriter, make_writer
from tests.support.postgresql import LossyProxy, PostgresqlServer

optuna.logging.set_verbosity(optuna.logging.WARNING)


@contextmanager
def driven_study(url: str, outage_seconds: float = 60) -> Iterator[tuple[optuna.Study, list[str]]]:
    """Yield a study as its driver sees it, and the messages about the storage."""
    rdb, messages = open_storage(url), list[str]()
    with Lease.acquire(rdb, "small", heartbeat_seconds=1, lease_seconds=60) as lease:
        storage = DriverStorage(rdb, lease, messages.append, outage_seconds)
        yield optuna.create_study(storage=storage, study_name="small", direction="maximize"), messages


def run_trial(study: optuna.Study) -> None:
    trial = study.ask()
    value = trial.suggest_float("x", 0, 1)
    trial.set_user_attr("recipe", {"x": value})
    trial.report(value, 1)
    study.tell(trial, value)


def assert_whole(url: str, trials: int) -> None:
    """Check that another process finds these trials, each complete and stored once."""
    stored = optuna.load_study(study_name="small", storage=open_storage(url)).trials
    assert [trial.number for trial in stored] == list(range(trials))
    assert {trial.state for trial in stored} == {TrialState.COMPLETE}
    for trial in stored:
        assert trial.value == trial.params["x"] == trial.intermediate_values[1] == trial.user_attrs["recipe"]["x"]


@contextmanager
def in_background(action: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=action)
    thread.start()
    yield
    thread.join()


# --------------------------------------------------------------------------------- memory and database

WRITERS = [pytest.param(make_writer, id="sql"), pytest.param(lambda rdb, _: OptunaTrialWriter(rdb), id="optuna")]


def test_the_driver_knows_the_tables_of_this_version_of_optuna(database_url: str) -> None:
    # Otherwise it writes with Optuna's own methods, which is correct and many times slower.
    assert isinstance(make_writer(open_storage(database_url), None), SqlTrialWriter)


@pytest.mark.parametrize("writer", WRITERS)
def test_another_process_reads_what_the_driver_has_in_memory(
    database_url: str, writer: Callable[[RDBStorage, Lease | None], TrialWriter]
) -> None:
    storage = DriverStorage(open_storage(database_url), None, print, make_writer=writer)
    study = optuna.create_study(storage=storage, study_name="small", direction="maximize")

    def assert_equal() -> None:
        stored = optuna.load_study(study_name="small", storage=open_storage(database_url)).trials
        assert list(map(repr, study.trials)) == list(map(repr, stored))  # one NaN does not equal another

    first = study.ask()
    assert_equal()
    for trial in (first, study.ask(), study.ask(), study.ask()):
        trial.suggest_float("x", 1e-3, 1, log=True)
        trial.suggest_int("y", 1, 9, step=2)
        trial.suggest_categorical("z", ["a", None, 2.5, False])
        trial.set_user_attr("pair", (1, {"a": (2,)}))
        for step, value in enumerate((0.5, math.nan, math.inf, -math.inf)):
            trial.report(value, step)
    assert_equal()
    first.set_user_attr("pair", None)
    storage.set_trial_system_attr(first._trial_id, "rung", 0.25)
    study.tell(1, state=TrialState.PRUNED)  # after an infinite value
    study.tell(2, 0.75)
    study.tell(3, state=TrialState.FAIL)
    assert_equal()
    storage.set_trial_state_values(first._trial_id, TrialState.WAITING)
    study.enqueue_trial({"x": 0.5, "z": None}, user_attrs={"queued": (1, 2)})
    study.add_trial(optuna.create_trial(value=0.5, params={"w": 1}, distributions={"w": IntDistribution(1, 5)}))
    assert_equal()
    assert [study.ask().number for _ in range(3)] == [0, 4, 6]
    assert_equal()


@pytest.mark.parametrize("writer", WRITERS)
def test_the_driver_refuses_what_optuna_refuses(
    tmp_path: Path, writer: Callable[[RDBStorage, Lease | None], TrialWriter]
) -> None:
    storage = DriverStorage(open_storage(f"sqlite:///{tmp_path / 'optuna.db'}"), None, print, make_writer=writer)
    study = optuna.create_study(storage=storage, study_name="small")
    trial = study.ask()
    trial.suggest_categorical("z", ["a", "b"])
    assert not storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    with pytest.raises(ValueError, match="does not support dynamic value space"):
        study.ask().suggest_categorical("z", ["a", "c"])
    study.tell(trial, 0.5)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("a", 1)
    with pytest.raises(KeyError):
        storage.get_trial(1_000)
    with pytest.raises(KeyError):
        storage.get_trial_id_from_study_id_trial_number(study._study_id, 1_000)


def test_changes_of_a_transaction_are_stored_at_its_end_also_after_an_error(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"

    def stored() -> list[dict[str, object]]:
        return [trial.user_attrs for trial in optuna.load_study(study_name="small", storage=open_storage(url)).trials]

    with driven_study(url) as (study, _):
        assert isinstance(study._storage, DriverStorage)
        with study._storage.transaction():
            trial = study.ask()
            trial.set_user_attr("a", 1)
            assert study.trials[0].user_attrs == {"a": 1}
            assert stored() == [{}]
            with study._storage.transaction():
                trial.set_user_attr("b", 2)
        assert stored() == [{"a": 1, "b": 2}]

        def fail() -> None:
            assert isinstance(study._storage, DriverStorage)
            with study._storage.transaction():
                trial.set_user_attr("c", 3)
                raise RuntimeError("in between")

        with pytest.raises(RuntimeError, match="in between"):
            fail()
        assert stored() == [{"a": 1, "b": 2, "c": 3}]


def test_a_trial_that_was_returned_stays_as_it_was(tmp_path: Path) -> None:
    with driven_study(f"sqlite:///{tmp_path / 'optuna.db'}") as (study, _):
        trial = study.ask()
        before = study.get_trials(deepcopy=False)
        trial.report(0.5, 1)
        study.tell(trial, 0.5)
        assert [(shown.state, shown.intermediate_values) for shown in before] == [(TrialState.RUNNING, {})]


# ------------------------------------------------------------------------------------ paused trials


def test_samplers_and_pruners_see_a_paused_trial_as_pruned_with_its_last_value(tmp_path: Path) -> None:
    with driven_study(f"sqlite:///{tmp_path / 'optuna.db'}") as (study, _):
        trial = study.ask()
        trial.report(0.3, 1)
        trial.report(0.4, 2)
        trial.set_user_attr(PAUSED_ATTRIBUTE, "promoted later")
        (shown,) = study.trials
        assert (shown.state, shown.value, shown.intermediate_values) == (TrialState.PRUNED, 0.4, {1: 0.3, 2: 0.4})
        assert study.get_trials(states=(TrialState.RUNNING,)) == []
        assert study._storage.get_trial(shown._trial_id).state is TrialState.RUNNING
        trial.set_user_attr(PAUSED_ATTRIBUTE, None)
        assert [shown.state for shown in study.trials] == [TrialState.RUNNING]
        assert study.tell(trial, 0.5).value == 0.5


def test_a_trial_that_waits_again_is_asked_next_with_its_parameters(tmp_path: Path) -> None:
    with driven_study(f"sqlite:///{tmp_path / 'optuna.db'}") as (study, _):
        trial = study.ask()
        value = trial.suggest_float("x", 0, 1)
        trial.report(0.3, 1)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        again = study.ask()
        assert (again.number, again.suggest_float("x", 0, 1)) == (trial.number, value)
        assert [shown.state for shown in study.trials] == [TrialState.RUNNING]


# ------------------------------------------------------------------------------------------- leases


def test_every_write_is_refused_after_the_lease_is_lost(database_url: str) -> None:
    with driven_study(database_url) as (study, _):
        run_trial(study)
        trial = study.ask()
        study.enqueue_trial({"x": 0.5})
        waiting = study.get_trials(states=(TrialState.WAITING,))[0]._trial_id
        before = optuna.load_study(study_name="small", storage=open_storage(database_url)).trials
        assert isinstance(study._storage, DriverStorage)
        together = study._storage.transaction()
        together.__enter__()
        trial.set_user_attr("together", 1)
        _give_lease_to_another(database_url)
        writes: list[Callable[[], object]] = [
            lambda: together.__exit__(None, None, None),
            lambda: trial.suggest_float("x", 0, 1),
            lambda: trial.report(0.5, 1),
            lambda: trial.set_user_attr("a", 1),
            lambda: study._storage.set_trial_system_attr(trial._trial_id, "a", 1),
            lambda: study.set_user_attr("a", 1),
            lambda: study._storage.set_study_system_attr(study._study_id, "a", 1),
            lambda: study._storage.set_trial_state_values(waiting, TrialState.RUNNING),
            lambda: study.tell(trial, 0.5),
            lambda: study._storage.create_new_trial(study._study_id),
            lambda: study.enqueue_trial({"x": 0.1}),
            lambda: study._storage.create_new_study([study.direction], "another"),
            lambda: study._storage.delete_study(study._study_id),
        ]
        for write in writes:
            with pytest.raises(LeaseLost, match="was taken over by process 7 on elsewhere because it gave no sign"):
                write()
        stored = optuna.load_study(study_name="small", storage=open_storage(database_url))
        assert stored.trials == study.trials == before
        assert stored.user_attrs == {}
        assert optuna.get_all_study_names(open_storage(database_url)) == ["small"]


def _give_lease_to_another(url: str) -> None:
    engine = open_storage(url).engine
    with engine.begin() as connection:
        if engine.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL lock_timeout = '20s'")
        connection.exec_driver_sql("UPDATE fmnist_search_drivers SET session = 'x', process = 'elsewhere 7 1'")


@pytest.mark.slow
def test_a_driver_that_is_frozen_within_a_transaction_blocks_nobody(postgresql: PostgresqlServer) -> None:
    url = postgresql.create_database()
    rdb = open_storage(url)
    with Lease.acquire(rdb, "small", heartbeat_seconds=0.2, lease_seconds=1) as lease:
        DriverStorage(rdb, lease, print)
        connection = rdb.engine.connect()
        lease.check_in(connection)
        _give_lease_to_another(url)
        with pytest.raises(StorageUnreachable, match="idle"):
            connection.close()
        with pytest.raises(LeaseLost):
            optuna.create_study(storage=DriverStorage(rdb, lease, print), study_name="small")


# ------------------------------------------------------------------------------------------ outages


def test_a_sqlite_file_that_is_away_for_a_moment_loses_nothing(tmp_path: Path) -> None:
    database = tmp_path / "data" / "optuna.db"
    url = f"sqlite:///{database}"
    with driven_study(url) as (study, messages):
        run_trial(study)
        database.parent.rename(tmp_path / "moved")

        def return_folder() -> None:
            time.sleep(0.5)
            (tmp_path / "moved").rename(database.parent)

        with in_background(return_folder):
            run_trial(study)
        assert messages == []
        run_trial(study)
    assert_whole(url, 3)


@pytest.mark.slow
def test_a_locked_sqlite_file_is_waited_for_and_reported_once(tmp_path: Path) -> None:
    database = tmp_path / "optuna.db"
    with driven_study(f"sqlite:///{database}") as (study, messages):
        run_trial(study)

        def keep_locked() -> None:
            with closing(sqlite3.connect(database, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                locked.set()
                time.sleep(7)
                connection.execute("ROLLBACK")

        locked = threading.Event()
        with in_background(keep_locked):
            locked.wait()
            run_trial(study)
        gone, back = messages
        assert gone.startswith(f"storage {database}: does not answer (database is locked)")
        assert back.startswith(f"storage {database}: answers again after ")
    assert_whole(f"sqlite:///{database}", 2)


def test_an_outage_that_does_not_end_is_one_line(tmp_path: Path) -> None:
    database = tmp_path / "data" / "optuna.db"
    with driven_study(f"sqlite:///{database}", outage_seconds=0.3) as (study, _):
        run_trial(study)
        database.parent.rename(tmp_path / "moved")
        with pytest.raises(UserError) as caught:
            run_trial(study)
        (line,) = caught.value.lines
        assert line.startswith(f"storage {database}: has not answered for 0.3 s (")
        assert "run the same command again" in line
        assert not database.parent.exists()
    assert_whole(f"sqlite:///{tmp_path / 'moved' / 'optuna.db'}", 1)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 5])
def test_a_server_that_is_killed_and_comes_back_loses_nothing(postgresql: PostgresqlServer, seconds: int) -> None:
    url = postgresql.create_database()
    with driven_study(url) as (study, messages):
        run_trial(study)
        postgresql.kill()

        def restart() -> None:
            time.sleep(seconds)
            postgresql.start()

        with in_background(restart):
            for _ in range(5):
                run_trial(study)
        assert len(messages) == 2 if seconds else messages in ([], messages[:2])
    assert_whole(url, 6)


@pytest.mark.slow
def test_a_server_that_is_read_only_for_a_while_loses_nothing(postgresql: PostgresqlServer) -> None:
    url = postgresql.create_database()
    name = url.partition("?")[0].rpartition("/")[2]
    end_connections = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}';"
    with driven_study(url) as (study, _):
        run_trial(study)
        postgresql.psql(f"ALTER DATABASE {name} SET default_transaction_read_only = on; {end_connections}")

        def allow_writing() -> None:
            time.sleep(1)
            postgresql.psql(f"ALTER DATABASE {name} RESET default_transaction_read_only;")

        with in_background(allow_writing):
            run_trial(study)
    assert_whole(url, 2)


@pytest.mark.slow
def test_an_operation_whose_answer_was_lost_is_not_repeated(postgresql: PostgresqlServer) -> None:
    url = postgresql.create_database()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(LossyProxy(url, Path(folder))) as proxy,
        driven_study(proxy.url) as (study, _),
    ):
        proxy.lose_next_commit()
        trial = study.ask()
        assert proxy.has_lost_commit
        proxy.lose_next_commit()
        value = trial.suggest_float("x", 0, 1)
        assert proxy.has_lost_commit
        for write in (
            lambda: trial.report(value, 1),
            lambda: trial.set_user_attr("recipe", {"x": value}),
            lambda: study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING),
            lambda: study.ask(),
            lambda: study.tell(trial, value),
        ):
            proxy.lose_next_commit()
            write()
            assert proxy.has_lost_commit
        run_trial(study)
    assert_whole(url, 2)
