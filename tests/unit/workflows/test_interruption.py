"""Interruption by signals: the first one asks to stop, a later SIGINT and a third SIGTERM stop at once."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fmnist_search.workflows.interruption import Interruption, interrupt_on_signals

HANGING_PROGRAM = """
import sqlite3, sys
from fmnist_search.execution.process_backend import ProcessBackend
from fmnist_search.recipe.execution import Execution
from fmnist_search.workflows.interruption import interrupt_on_signals

with (
    interrupt_on_signals(),
    ProcessBackend(Execution(threads=1), 2, command=("sh", "-c", "kill -STOP $$")) as backend,
):
    print(*backend.worker_pids, flush=True)
    one, other = (sqlite3.connect(sys.argv[1], timeout=300, isolation_level=None) for _ in range(2))
    one.execute("BEGIN EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")  # waits in C, where no handler of Python runs
"""
DEADLY_SIGNAL_PROGRAM = """
import signal, time
from fmnist_search.workflows.interruption import interrupt_on_signals

signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # background jobs of a shell ignore it
with interrupt_on_signals():
    print("ready", flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_requests_an_interruption_while_the_context_is_open(number: signal.Signals) -> None:
    inherited = signal.signal(number, signal.SIG_DFL)  # nohup and background jobs of a shell ignore some
    try:
        with interrupt_on_signals() as interruption:
            assert not interruption.is_requested
            signal.raise_signal(number)
            assert interruption.is_requested
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, inherited)


def test_a_second_sigint_raises_after_the_grace_period_and_sigterm_never() -> None:
    interruption = Interruption(grace_seconds=60.0)
    interruption.on_signal(signal.SIGINT, None)
    interruption.on_signal(signal.SIGINT, None)
    impatient = Interruption(grace_seconds=-1.0)
    impatient.on_signal(signal.SIGTERM, None)
    impatient.on_signal(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        impatient.on_signal(signal.SIGINT, None)


def test_a_sighup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interrupt_on_signals() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert not interruption.is_requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_third_sigterm_ends_a_process_that_hangs_and_its_stopped_workers(tmp_path: Path) -> None:
    with _start(HANGING_PROGRAM, str(tmp_path / "locked.db")) as process:
        assert process.stdout is not None
        workers = [psutil.Process(int(word)) for word in process.stdout.readline().split()]
        time.sleep(0.3)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def test_sigterms_are_counted_from_the_start_of_an_interruption() -> None:
    for _ in range(3):
        with interrupt_on_signals():
            signal.raise_signal(signal.SIGTERM)


def test_sigquit_ends_a_process_at_once() -> None:
    with _start(DEADLY_SIGNAL_PROGRAM) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGQUIT)
        assert process.wait(60) == -signal.SIGQUIT


@contextlib.contextmanager
def _start(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_another_thread_than_the_main_one_catches_no_signals() -> None:
    handlers: list[object] = []

    def run() -> None:
        with interrupt_on_signals() as interruption:
            handlers.append(signal.getsignal(signal.SIGINT))
            interruption.request()
            assert interruption.is_requested

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]
