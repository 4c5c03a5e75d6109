"""Events stay in the outbox until they are delivered, with several users of the file and processes that are killed."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.processes import process_namespace
from fmnist_search.tracking.events import Event, RunProgress
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.outbox_file import OutboxError, OutboxFile
from fmnist_search.tracking.sender_lease import SenderLease

STORE_URI = "sqlite:///mlflow.db"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    with closing(Outbox(path, STORE_URI)) as outbox:
        yield outbox


def drain(outbox: Outbox) -> list[Event]:
    events = []
    while found := outbox.next_events():
        events += found
        outbox.mark_delivered(*found)
    return events


def test_a_password_in_the_address_is_not_stored_and_may_change(path: Path) -> None:
    with closing(Outbox(path, "https://me:k3yphrase@host")) as outbox:
        outbox.put(Event("run", "batch", {}))
        assert not any(b"k3yphrase" in file.read_bytes() for file in path.parent.iterdir())
    with closing(sqlite3.connect(path)) as database:  # as earlier versions stored events
        database.execute("UPDATE events SET store = 'https://me:k3yphrase@host'")
        database.commit()
    with closing(Outbox(path, "https://me:another@host")) as outbox:
        assert outbox.pending_count() == 0
    with closing(Outbox(path, "https://me:k3yphrase@host")) as outbox:
        assert outbox.pending_count() == 1
    with closing(Outbox(path, "https://me:another@host")) as outbox:
        assert [event.run_key for event in drain(outbox)] == ["run"]


def test_the_body_of_an_event_is_replaced_once(outbox: Outbox, path: Path) -> None:
    outbox.put(Event("run", "end", {"step": 1}))
    (event,) = outbox.next_events()
    for seconds in (0.5, 0.7):
        updated = outbox.update_body(event, {"step": 1, "seconds": seconds})
        assert updated
        assert updated.body == {"step": 1, "seconds": 0.5}
    with closing(Outbox(path, STORE_URI)) as again:
        assert [found.body for found in drain(again)] == [{"step": 1, "seconds": 0.5}]
    assert outbox.update_body(event, {"step": 1, "seconds": 0.5}) is None


@given(st.lists(st.booleans(), max_size=20))
def test_events_come_in_order_with_the_deferred_ones_last(
    tmp_path_factory: pytest.TempPathFactory, deferred: list[bool]
) -> None:
    with closing(Outbox(tmp_path_factory.mktemp("box") / "outbox.db", STORE_URI)) as outbox:
        for number, is_deferred in enumerate(deferred):
            outbox.put(Event(f"run {number}", "batch", {"number": number}, deferred=is_deferred))
        found = [event.body["number"] for event in drain(outbox)]
    assert found == sorted(range(len(deferred)), key=lambda number: (deferred[number], number))


def test_an_event_is_read_back_unchanged_and_marked_as_attempted(outbox: Outbox) -> None:
    outbox.put(Event("run", "file", {"path": "a/b.png", "figures": [1.5, float("inf")]}, b"\x00\xff"))
    (first,), (again,) = outbox.next_events(), outbox.next_events()
    assert (first.run_key, first.kind, first.content) == ("run", "file", b"\x00\xff")
    assert first.body == {"path": "a/b.png", "figures": [1.5, float("inf")]}
    assert (first.attempted, again.attempted) == (False, True)


def test_pending_events_survive_a_restart(outbox: Outbox, path: Path) -> None:
    for number in range(3):
        outbox.put(Event("run", "batch", {"number": number}))
    outbox.mark_delivered(outbox.next_events()[0])
    outbox.remember_run("study/001", "id")
    outbox.close()
    with closing(Outbox(path, STORE_URI)) as again:
        assert again.last_number == 3
        assert again.pending_count() == 2
        assert again.run_id("study/001") == "id"
        assert again.run_id("study/002") is None
        assert [event.body["number"] for event in drain(again)] == [1, 2]


def test_each_store_gets_its_own_events(outbox: Outbox, path: Path) -> None:
    outbox.put(Event("run", "batch"))
    with closing(Outbox(path, "http://other")) as other:
        assert other.next_events() == []
        assert other.pending_count() == 0
        other.put(Event("other", "batch"))
    assert [event.run_key for event in drain(outbox)] == ["run"]


def test_a_rejection_affects_all_events_of_the_run_until_they_are_retried(outbox: Outbox) -> None:
    for run in ("bad", "good", "bad"):
        outbox.put(Event(run, "batch"))
    outbox.reject(outbox.next_events()[0], "the run is deleted")
    assert [event.run_key for event in drain(outbox)] == ["good"]
    assert outbox.rejected_counts() == {"the run is deleted": 2}
    outbox.retry_rejected()
    assert outbox.rejected_counts() == {}
    assert [event.run_key for event in drain(outbox)] == ["bad", "bad"]


def test_rejected_events_can_be_discarded(outbox: Outbox) -> None:
    outbox.put(Event("bad", "batch"))
    outbox.reject(outbox.next_events()[0], "no")
    outbox.discard_rejected()
    assert (outbox.rejected_counts(), outbox.next_events()) == ({}, [])


def test_one_sender_at_a_time_has_the_lease_and_another_takes_it_over(outbox: Outbox, path: Path) -> None:
    assert outbox.lease.acquire()
    assert outbox.lease.acquire()
    with closing(Outbox(path, STORE_URI)) as other:
        assert not other.lease.acquire()
        assert other.lease.holder == f"process {os.getpid()} on {socket.gethostname()}"
        with closing(Outbox(path, "http://another")) as elsewhere:
            assert elsewhere.lease.acquire()
        outbox.close()
        assert other.lease.acquire()


def test_a_lease_that_is_not_renewed_is_free_and_its_holder_notices(path: Path) -> None:
    file = OutboxFile(path)
    with closing(file):
        slow, other = SenderLease(file, "store", seconds=1.5), SenderLease(file, "store", seconds=1.5)
        assert slow.acquire()
        time.sleep(1)
        slow.renew()
        time.sleep(0.6)
        assert not other.acquire()
        time.sleep(1)
        assert other.acquire()
        slow.renew()
        assert not slow.acquire()
        slow.release()
        assert not slow.acquire()


def test_an_event_that_is_damaged_in_the_file_is_rejected_with_those_of_its_run(outbox: Outbox, path: Path) -> None:
    for run in ("bad", "good", "bad"):
        outbox.put(Event(run, "batch", {"a key": 1}))
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE events SET body = '{\"a k' WHERE number = 1")
        database.commit()
    assert [event.run_key for event in drain(outbox)] == ["good"]
    assert outbox.rejected_counts() == {"the event is damaged in the outbox": 2}


def test_several_threads_can_put_events_at_once(outbox: Outbox) -> None:
    threads = [
        threading.Thread(target=lambda: [outbox.put(Event("run", "batch")) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drain(outbox)) == 200


WRITER_SCRIPT = """
import sys
from pathlib import Path
from fmnist_search.processes import process_namespace
from fmnist_search.tracking.events import Event, RunProgress
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.outbox_file import OutboxError, OutboxFile
from fmnist_search.tracking.sender_lease import SenderLease
outbox = Outbox(Path(sys.argv[1]), "sqlite:///mlflow.db")
assert outbox.lease.acquire() or len(sys.argv) > 2
for number in range(1_000_000):
    outbox.put(Event("run", "batch", {"number": number}))
    print(number, flush=True)
"""


def test_a_process_that_is_killed_loses_no_event(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER_SCRIPT, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    seen = [process.stdout.readline() for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    seen += process.stdout.readlines()
    process.wait()
    last = max(int(line) for line in seen if line.endswith("\n"))
    with closing(Outbox(path, STORE_URI)) as outbox:
        assert outbox.lease.acquire()
        numbers = [event.body["number"] for event in drain(outbox)]
    assert numbers[: last + 1] == list(range(last + 1))


def test_processes_that_start_at_once_lose_no_event(path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER_SCRIPT, str(path), "many"], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout
        assert [process.stdout.readline().strip() for _ in range(50)] == [str(number) for number in range(50)]
    for process in processes:
        process.kill()
        process.communicate()
    with closing(Outbox(path, STORE_URI)) as outbox:
        assert outbox.pending_count() >= 150


def test_events_and_the_progress_of_their_run_are_stored_together_or_not_at_all(outbox: Outbox, path: Path) -> None:
    assert outbox.progress("run") is None
    outbox.put(Event("run", "open"), Event("run", "batch"), progress=RunProgress())
    assert outbox.progress("run") == RunProgress(0, None)
    with pytest.raises(TypeError):  # no text is made of the second event
        outbox.put(Event("run", "batch"), Event("run", "end", {"at": object()}), progress=RunProgress(1, {"epochs": 1}))
    assert (outbox.pending_count(), outbox.progress("run")) == (2, RunProgress(0, None))
    outbox.put(Event("run", "end"), progress=RunProgress(3, {"state": "completed"}))
    outbox.put(Event("run", "batch"), progress=RunProgress(2))
    with closing(Outbox(path, STORE_URI)) as again:
        assert again.progress("run") == RunProgress(3, {"state": "completed"})
        again.forget_progress("run")
    assert outbox.progress("run") is None
    assert outbox.pending_count() == 4


def test_an_outbox_of_an_earlier_version_gets_the_table_of_the_progress(path: Path) -> None:
    with closing(Outbox(path, STORE_URI)) as outbox:
        outbox.put(Event("run", "batch"))
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE progress")
    with closing(Outbox(path, STORE_URI)) as outbox:
        assert outbox.progress("run") is None
        outbox.put(Event("run", "batch"), progress=RunProgress(1))
        assert (outbox.pending_count(), outbox.progress("run")) == (2, RunProgress(1))


def overwrite_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(os.urandom(4096))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def write_text(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)


@pytest.mark.parametrize("damage", [overwrite_page, truncate, write_text])
def test_a_damaged_file_is_named_with_the_remedy(path: Path, damage: Callable[[Path], None]) -> None:
    with closing(Outbox(path, STORE_URI)) as outbox:
        outbox.put(*(Event("run", "file", {"path": "a"}, os.urandom(1000)) for _ in range(50)))
    damage(path)
    with pytest.raises(OutboxError) as raised:
        Outbox(path, STORE_URI)
    (line,) = raised.value.lines
    assert line.startswith(f"outbox {path}: is damaged (")
    assert f"`mv {path} {path.with_name('damaged-outbox.db')}`" in line


@pytest.mark.exhaustive
def test_a_process_that_stops_while_it_makes_the_file_is_not_waited_for_without_end(path: Path) -> None:
    path.parent.mkdir()
    with FileLock(path.with_suffix(".made.lock")), pytest.raises(OutboxError) as caught:
        Outbox(path, STORE_URI)
    (line,) = caught.value.lines
    assert line.startswith(f"outbox {path}: another process has locked it for 60 s (")
    assert "end or continue that process" in line


def test_a_file_that_is_deleted_while_it_is_used_takes_no_more_events(outbox: Outbox, path: Path) -> None:
    outbox.put(Event("run", "batch"))
    path.unlink()
    with pytest.raises(OutboxError, match="was deleted or replaced"):
        outbox.put(Event("run", "batch"))


def test_a_lease_of_another_container_is_not_taken_for_one_of_an_ended_process(outbox: Outbox, path: Path) -> None:
    with closing(Outbox(path, STORE_URI)) as other:
        assert other.lease.acquire()
        with closing(sqlite3.connect(path)) as database:
            elsewhere = f"{socket.gethostname()} {2**22 + 1} 0 another container"  # no such process here
            database.execute("UPDATE senders SET process = ?", (elsewhere,))
            database.commit()
            assert not outbox.lease.acquire()
            database.execute("UPDATE senders SET process = ?", (f"{elsewhere[:-18]} {process_namespace()}",))
            database.commit()
            assert outbox.lease.acquire()
