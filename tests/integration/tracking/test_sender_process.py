"""The process that sends the events of a driver with many workers is replaced if it ends, and ends with its driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from fmnist_search.tracking.delivery_process import DeliveryProcess
from fmnist_search.tracking.events import Batch, EndRun
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.sender import Sender
from fmnist_search.tracking.store import MlflowStore
from fmnist_search.tracking.writer import MlflowWriter

EPOCHS = 40

DRIVER = """
import sys, time
from pathlib import Path
from fmnist_search.tracking.delivery_process import DeliveryProcess
from fmnist_search.tracking.events import Batch
from fmnist_search.tracking.outbox import Outbox
from fmnist_search.tracking.sender import Sender

outbox = Outbox(Path(sys.argv[1]), sys.argv[2])
process = DeliveryProcess(outbox, sys.argv[2], print)
sender = Sender(outbox, process, print)
sender.remember_run(sys.argv[3], sys.argv[3])
for epoch in range(1, 10_000):
    sender.send(Batch([("val/accuracy", 0.5, epoch, epoch)]).event(sys.argv[3]))
    print(process.pid, flush=True)
    time.sleep(0.1)
"""


SILENT_ONCE = """
import pathlib, sys, time
started = pathlib.Path(sys.argv[1])
if started.exists():
    sys.exit(3)
started.touch()
print('{"problem": "", "is_blocked": false, "seconds": {}}', flush=True)
time.sleep(600)
"""


@pytest.fixture
def store(tmp_path: Path) -> MlflowStore:
    return MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", "fmnist-search")


def wait_until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)


def steps(client: MlflowClient, run_id: str) -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run_id, "val/accuracy"))


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced_and_every_point_is_in_mlflow_once(
    tmp_path: Path, store: MlflowStore
) -> None:
    run_id, messages, tasks = store.create_run("a run", {}), list[str](), list[str]()
    outbox, before = Outbox(tmp_path / "outbox.db", store.uri), psutil.Process().children()
    process = DeliveryProcess(outbox, store.uri, messages.append)
    with Sender(outbox, process, messages.append) as sender:
        sender.remember_run(run_id, run_id)
        time.sleep(0.3)
        assert process.pid is None  # nothing is started before there is an event
        for epoch in range(1, EPOCHS + 1):
            sender.send(Batch([("val/accuracy", 0.5, epoch, epoch)]).event(run_id))
            if epoch == EPOCHS // 2:
                wait_until(lambda: process.pid is not None and sender.tracking_seconds(run_id) > 0)
                first = process.pid
                assert first
                os.kill(first, signal.SIGKILL)
        sender.run_when_idle(lambda: tasks.append("drawn"))
        sender.send(EndRun("FINISHED", EPOCHS + 1, EPOCHS).event(run_id))
        assert sender.flush(60)
        assert tasks == ["drawn"]
        assert process.pid not in (first, None)
        wait_until(lambda: not sender.problem)  # the new process says how it is twice a second
    stored = store.client.get_run(run_id)
    assert (stored.info.status, steps(store.client, run_id)) == ("FINISHED", list(range(1, EPOCHS + 1)))
    assert messages == [
        "the process that sends to MLflow was ended by SIGKILL; another one is started, and nothing is lost"
    ]
    assert psutil.Process().children() == before


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_process_and_the_next_one_sends_the_rest(
    tmp_path: Path, store: MlflowStore
) -> None:
    run_id, path = store.create_run("a run", {}), tmp_path / "outbox.db"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(path), store.uri, run_id], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout
    wait_until(lambda: bool(steps(store.client, run_id)))
    pid = next(int(line) for line in driver.stdout if line.strip() != "None")
    driver.kill()
    driver.communicate()
    wait_until(lambda: not psutil.pid_exists(pid), seconds=10)
    outbox = Outbox(path, store.uri)
    outbox.put(Batch([("val/accuracy", 0.5, 10_000, 10_000)]).event(run_id))
    with Sender(outbox, MlflowWriter(store.client, outbox), print) as sender:
        sender.send(EndRun("FINISHED", 1, 1).event(run_id))  # it is delivered before the sender is closed
    *earlier, last = steps(store.client, run_id)
    assert (earlier, last) == (list(range(1, len(earlier) + 1)), 10_000)
    assert store.client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_process_that_is_stopped_or_ends_at_once_is_replaced_and_named(tmp_path: Path) -> None:
    outbox, messages = Outbox(tmp_path / "outbox.db", "store"), list[str]()
    before = psutil.Process().children()
    command = [sys.executable, "-c", SILENT_ONCE, str(tmp_path / "started")]
    process = DeliveryProcess(outbox, "store", messages.append, command, silence_seconds=0.5)
    with Sender(outbox, process, messages.append) as sender:
        sender.send(Batch().event("run"))
        wait_until(lambda: "exit code 3" in sender.problem)
        assert not sender.flush(0.2)
    assert ["SIGKILL" in message for message in messages] == [True, False]
    assert psutil.Process().children() == before
