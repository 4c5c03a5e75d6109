"""The contract of leases: one process drives a study, and the next one takes over when it has died or is silent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from fmnist_search.errors import UserError
from fmnist_search.search.lease import Lease, current_driver
from fmnist_search.search.storage import open_storage
from tests.support.frozen_processes import freeze
from tests.support.postgresql import PostgresqlServer

HEARTBEAT_SECONDS, LEASE_SECONDS = 0.2, 3.0

DRIVER_SCRIPT = f"""
import sys, time
import optuna
from fmnist_search.errors import UserError
from fmnist_search.search.driver_storage import DriverStorage
from fmnist_search.search.lease import Lease
from fmnist_search.search.storage import open_storage

rdb = open_storage(sys.argv[1])
try:
    lease = Lease.acquire(rdb, "small", {HEARTBEAT_SECONDS}, {LEASE_SECONDS})
    study = optuna.create_study(storage=DriverStorage(rdb, lease, print), study_name="small", load_if_exists=True)
    study.set_user_attr("count", 0)
    print("driver", flush=True)
    for number in range(1, 10**9):
        study.set_user_attr("count", number)
        time.sleep(0.01)
except UserError as error:
    print(error, flush=True)
"""

FROZEN_RENEWAL_SCRIPT = f"""
import signal, sys, threading, time
import sqlalchemy as sa
from fmnist_search.search.lease import Lease
from fmnist_search.search.storage import open_storage

renewals = []

@sa.event.listens_for(sa.Engine, "after_cursor_execute")
def freeze_once(connection, cursor, statement, *rest):
    if statement.startswith("UPDATE fmnist_search_drivers") and not renewals:
        renewals.append(statement)
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # to this thread, so that it does not go on

lease = Lease.acquire(open_storage(sys.argv[1]), "small", {HEARTBEAT_SECONDS}, {LEASE_SECONDS})
print("driver", flush=True)
while not lease.is_lost:
    time.sleep(0.01)
"""
"""It stops itself between the statement of its first renewal and the end of that transaction."""


def acquire(url: str, study: str = "small") -> Lease:
    return Lease.acquire(open_storage(url), study, HEARTBEAT_SECONDS, LEASE_SECONDS)


@contextmanager
def driver_process(url: str, script: str = DRIVER_SCRIPT) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that drives the study and, by default, writes to it all the time."""
    process = subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "driver\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def sqlite_files(url: str) -> list[Path]:
    """Return the file of a database in SQLite, which a frozen process could keep locked."""
    return [Path(url.removeprefix("sqlite:///"))] if url.startswith("sqlite") else []


def stored_count(url: str) -> int:
    return int(optuna.load_study(study_name="small", storage=open_storage(url)).user_attrs["count"])


def test_a_study_has_one_driver(database_url: str) -> None:
    with acquire(database_url), acquire(database_url, "other"):
        with pytest.raises(UserError) as caught:
            acquire(database_url)
        (line,) = caught.value.lines
        assert line.startswith(f"study 'small': is searched by process {os.getpid()} on ")
        assert "`fmnist-search watch small`" in line
        assert "`fmnist-search stop small`" in line
        driver = current_driver(database_url, "small")
        assert driver
        assert driver.process_id == os.getpid()
        assert abs(driver.started_at - time.time()) < 60
    assert current_driver(database_url, "small") is None
    with acquire(database_url) as lease:
        assert lease.took_over is None


def test_a_lease_is_renewed_for_as_long_as_its_process_runs(database_url: str) -> None:
    with acquire(database_url) as lease:
        time.sleep(LEASE_SECONDS + 2 * HEARTBEAT_SECONDS)
        driver = current_driver(database_url, "small")
        assert driver
        assert driver.silent_seconds < LEASE_SECONDS
        assert not lease.is_lost


def test_a_lease_that_is_gone_from_the_database_is_lost(database_url: str) -> None:
    lease = acquire(database_url)
    with open_storage(database_url).engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM fmnist_search_drivers")
    deadline = time.monotonic() + 120
    while not lease.is_lost:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(UserError, match="was taken over by another process, which has ended since"):
        lease.check()
    lease.release()
    lease.release()  # does nothing
    with acquire(database_url) as successor:
        lease.release()
        successor.check()


def test_a_driver_of_another_container_is_waited_for_until_it_is_silent(database_url: str) -> None:
    storage = open_storage(database_url)
    lease = Lease.acquire(storage, "small", 60, 120)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE fmnist_search_drivers SET namespace = 'another', session = 'another'")
        connection.exec_driver_sql("UPDATE fmnist_search_drivers SET process = 'elsewhere 7 1000'")
    lease.release()  # which is no longer that of this process
    with pytest.raises(UserError, match=r"by process 7 on elsewhere since .*; wait for it, or end it there$"):
        acquire(database_url)
    age = "UPDATE fmnist_search_drivers SET renewed_at = renewed_at - 100"
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(age)
    with pytest.raises(UserError, match=r"no sign for 10. s, and the study can be taken over after 120 s"):
        acquire(database_url)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(age)
    assert current_driver(database_url, "small") is None
    with acquire(database_url) as successor:
        assert successor.took_over
        assert (successor.took_over.machine, successor.took_over.process_id) == ("elsewhere", 7)


def test_a_database_that_does_not_exist_has_no_driver(tmp_path: Path) -> None:
    assert current_driver(f"sqlite:///{tmp_path / 'optuna.db'}", "small") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("not a database" * 100)
    with pytest.raises(UserError, match=r"cannot be read \(file is not a database\); check that it exists"):
        current_driver(f"sqlite:///{tmp_path / 'optuna.db'}", "small")


def test_a_database_without_leases_has_no_driver(database_url: str) -> None:
    open_storage(database_url)
    assert current_driver(database_url, "small") is None


def test_optuna_works_beside_the_table_of_leases(database_url: str) -> None:
    with acquire(database_url):
        pass
    storage = optuna.storages.RDBStorage(database_url)
    assert storage.get_current_version() == storage.get_head_version()
    optuna.create_study(storage=storage, study_name="small").add_trial(optuna.create_trial(value=0.5))
    optuna.delete_study(study_name="small", storage=storage)


def test_of_several_processes_at_once_one_gets_the_lease(database_url: str) -> None:
    storages = [open_storage(database_url) for _ in range(4)]
    barrier, leases, refusals = threading.Barrier(len(storages)), list[Lease](), list[str]()

    def race(storage: optuna.storages.RDBStorage) -> None:
        barrier.wait()
        try:
            leases.append(Lease.acquire(storage, "small", HEARTBEAT_SECONDS, LEASE_SECONDS))
        except UserError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=race, args=(storage,)) for storage in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lease,) = leases
    assert ["is searched by" in refusal for refusal in refusals] == [True, True, True]
    lease.release()


@pytest.mark.slow
def test_the_lease_of_a_killed_process_is_taken_over_at_once(database_url: str) -> None:
    with driver_process(database_url) as process:
        process.kill()
        process.wait()
        assert current_driver(database_url, "small") is None
        with acquire(database_url) as lease:
            assert lease.took_over
            assert lease.took_over.process_id == process.pid


@pytest.mark.slow
def test_a_process_of_another_container_is_not_taken_for_one_that_has_ended(database_url: str) -> None:
    with driver_process(database_url) as process:
        process.kill()
        process.wait()
        with open_storage(database_url).engine.begin() as connection:
            connection.exec_driver_sql("UPDATE fmnist_search_drivers SET namespace = 'another', lease_seconds = 60")
        with pytest.raises(UserError, match="wait for it, or end it there"):
            acquire(database_url)
        driver = current_driver(database_url, "small")
        assert driver
        assert driver.process_id == process.pid


@pytest.mark.slow
def test_a_process_that_was_frozen_and_lost_its_lease_changes_nothing(database_url: str) -> None:
    with driver_process(database_url) as process:
        freeze(process, sqlite_files(database_url))
        with pytest.raises(UserError, match="is searched by"):
            acquire(database_url)
        time.sleep(LEASE_SECONDS + 2 * HEARTBEAT_SECONDS)
        lease = acquire(database_url)
        assert lease.took_over
        assert lease.took_over.process_id == process.pid
        count = stored_count(database_url)
        os.kill(process.pid, signal.SIGCONT)
        output, _ = process.communicate(timeout=120)
        assert output.startswith(f"study 'small': this search was taken over by process {os.getpid()} on ")
        assert len(output.splitlines()) == 1
        assert stored_count(database_url) == count
        lease.check()
        lease.release()


@pytest.mark.slow
def test_a_process_that_was_frozen_while_it_renewed_its_lease_blocks_nobody(postgresql: PostgresqlServer) -> None:
    url = postgresql.create_database()
    with driver_process(url, FROZEN_RENEWAL_SCRIPT) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        time.sleep(LEASE_SECONDS)
        with open_storage(url).engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '20s'")  # else a broken program waits here for ever
            connection.exec_driver_sql("SELECT * FROM fmnist_search_drivers FOR UPDATE")
        with acquire(url) as lease:
            assert lease.took_over
            assert lease.took_over.process_id == process.pid
            os.kill(process.pid, signal.SIGCONT)
            process.communicate(timeout=120)
            assert process.returncode == 0  # it has seen that its lease is lost


@pytest.mark.slow
def test_a_process_that_was_frozen_for_a_moment_goes_on(database_url: str) -> None:
    with driver_process(database_url) as process:
        freeze(process, sqlite_files(database_url))
        time.sleep(LEASE_SECONDS + 2 * HEARTBEAT_SECONDS)
        count = stored_count(database_url)
        os.kill(process.pid, signal.SIGCONT)
        deadline = time.monotonic() + 120
        while stored_count(database_url) == count:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(UserError, match="is searched by"):
            acquire(database_url)
