"""What is put into the outbox stays there until it is done, whoever else uses the file and whatever is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.tracking.events import Event
from fmnist_search.tracking.outbox import Outbox

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
    while event := outbox.next_event():
        events.append(event)
        outbox.mark_delivered(event)
    return events


@given(st.lists(st.booleans(), max_size=20))
def test_events_come_in_their_order_and_what_can_come_later_at_the_end(
    tmp_path_factory: pytest.TempPathFactory, later: list[bool]
) -> None:
    with closing(Outbox(tmp_path_factory.mktemp("box") / "outbox.db", STORE_URI)) as outbox:
        for number, put_off in enumerate(later):
            outbox.put(Event(f"run {number}", "batch", {"number": number}, deferred=put_off))
        found = [event.body["number"] for event in drain(outbox)]
    assert found == sorted(range(len(later)), key=lambda number: (later[number], number))


def test_an_event_comes_back_as_it_was_and_says_whether_it_was_tried(outbox: Outbox) -> None:
    outbox.put(Event("run", "file", {"path": "a/b.png", "figures": [1.5, float("inf")]}, b"\x00\xff"))
    first, again = outbox.next_event(), outbox.next_event()
    assert first
    assert again
    assert (first.run_key, first.kind, first.content) == ("run", "file", b"\x00\xff")
    assert first.body == {"path": "a/b.png", "figures": [1.5, float("inf")]}
    assert (first.attempted, again.attempted) == (False, True)


def test_what_was_not_done_is_there_after_a_restart(outbox: Outbox, path: Path) -> None:
    for number in range(3):
        outbox.put(Event("run", "batch", {"number": number}))
    done = outbox.next_event()
    assert done
    outbox.mark_delivered(done)
    outbox.remember_run("study/001", "id")
    outbox.close()
    with closing(Outbox(path, STORE_URI)) as again:
        assert again.last_number == 3
        assert again.pending_count() == 2
        assert again.run_id("study/001") == "id"
        assert again.run_id("study/002") is None
        assert [event.body["number"] for event in drain(again)] == [1, 2]


def test_each_store_gets_its_own(outbox: Outbox, path: Path) -> None:
    outbox.put(Event("run", "batch"))
    with closing(Outbox(path, "http://other")) as other:
        assert other.next_event() is None
        assert other.pending_count() == 0
        other.put(Event("other", "batch"))
    assert [event.run_key for event in drain(outbox)] == ["run"]


def test_what_is_refused_is_put_aside_with_all_of_its_run_until_it_is_tried_again(outbox: Outbox) -> None:
    for run in ("bad", "good", "bad"):
        outbox.put(Event(run, "batch"))
    bad = outbox.next_event()
    assert bad
    outbox.reject(bad, "the run is deleted")
    assert [event.run_key for event in drain(outbox)] == ["good"]
    assert outbox.rejected_counts() == {"the run is deleted": 2}
    outbox.retry_rejected()
    assert outbox.rejected_counts() == {}
    assert [event.run_key for event in drain(outbox)] == ["bad", "bad"]


def test_what_is_refused_can_be_dropped(outbox: Outbox) -> None:
    outbox.put(Event("bad", "batch"))
    bad = outbox.next_event()
    assert bad
    outbox.reject(bad, "no")
    outbox.discard_rejected()
    assert (outbox.rejected_counts(), outbox.next_event()) == ({}, None)


def test_one_at_a_time_may_send_and_another_takes_over(outbox: Outbox, path: Path) -> None:
    assert outbox.try_lock()
    assert outbox.try_lock()
    with closing(Outbox(path, STORE_URI)) as other:
        assert not other.try_lock()
        outbox.close()
        assert other.try_lock()


def test_threads_may_put_at_once(outbox: Outbox) -> None:
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
from fmnist_search.tracking.events import Event
from fmnist_search.tracking.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]), "sqlite:///mlflow.db")
assert outbox.try_lock() or len(sys.argv) > 2
for number in range(1_000_000):
    outbox.put(Event("run", "batch", {"number": number}))
    print(number, flush=True)
"""


def test_a_process_that_is_killed_loses_nothing_that_it_put_in(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER_SCRIPT, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    seen = [process.stdout.readline() for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    seen += process.stdout.readlines()
    process.wait()
    last = max(int(line) for line in seen if line.endswith("\n"))
    with closing(Outbox(path, STORE_URI)) as outbox:
        assert outbox.try_lock()
        numbers = [event.body["number"] for event in drain(outbox)]
    assert numbers[: last + 1] == list(range(last + 1))


def test_processes_that_begin_at_once_lose_nothing(path: Path) -> None:
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
