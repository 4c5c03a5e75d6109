"""The faults of a soak test: what each kind does to the search, its workers, its servers and its disk."""

from __future__ import annotations

import contextlib
import signal
import urllib.request
from collections.abc import Callable

import psutil

from benchmarks.soak.commands import Command
from benchmarks.soak.plan import FaultKind, PlannedFault
from benchmarks.soak.project import LEASE_SECONDS, SECOND_STUDY, STUDY
from benchmarks.soak.run import REFUSED, SECOND_TRIALS, NothingToHit, Soak
from benchmarks.soak.servers import free_port

INTERRUPTED = 130
MANY_TRIALS = 8
"""`--fresh` is given only while the search has as many trials left, so that it does not end meanwhile."""

Inject = Callable[[Soak, PlannedFault], str]


def inject(soak: Soak, fault: PlannedFault) -> str:
    """Apply a fault, and return what it did.

    Raises:
        NothingToHit: if what it would hit is not there at the moment.
    """
    return _INJECTIONS[fault.kind](soak, fault)


# --------------------------------------------------------------------------- signals to the search


def _signal_search(number: signal.Signals, *, ends_in_order: bool) -> Inject:
    def send(soak: Soak, _: PlannedFault) -> str:
        search = soak.search
        # A process that still imports its libraries has no handlers yet.
        search.expected |= {INTERRUPTED} if ends_in_order else {-number}
        search.expected |= {-number, 1, 128 + number} if ends_in_order and not search.has_trained else set()
        search.send(number)
        return f"{number.name} to {search.output.name} after {search.seconds:.1f} s"

    return send


def _kill_search_and_worker(soak: Soak, fault: PlannedFault) -> str:
    worker = _worker_to_hit(soak)
    text = _signal_search(signal.SIGKILL, ends_in_order=False)(soak, fault)
    _kill(worker)
    return f"{text}, and to its worker {worker.pid}"


def _stop_command(soak: Soak, _: PlannedFault) -> str:
    search = soak.search
    if not search.has_trained:
        raise NothingToHit("the search has not trained yet")
    search.expected.add(INTERRUPTED)
    soak.project.commands.start("stop", "stop", STUDY, expected={0, REFUSED})
    return f"`stop` of {search.output.name}"


def _freeze_search(soak: Soak, fault: PlannedFault) -> str:
    return _freeze_process(soak, soak.search, fault.seconds)


def _freeze_search_long(soak: Soak, _: PlannedFault) -> str:
    return _freeze_process(soak, soak.search, LEASE_SECONDS + 4)


def _freeze_process(soak: Soak, search: Command, seconds: float) -> str:
    search.send(signal.SIGSTOP)
    soak.later(seconds, lambda: search.send(signal.SIGCONT))
    return f"SIGSTOP to {search.output.name} for {seconds:g} s"


def _take_over(soak: Soak, _: PlannedFault) -> str:
    frozen = soak.search
    if not frozen.has_trained:
        raise NothingToHit("the search has not trained yet")
    frozen.expected.add(REFUSED)
    seconds = 2 * LEASE_SECONDS + 15
    text = _freeze_process(soak, frozen, seconds)
    soak.later(LEASE_SECONDS + 2, lambda: _start_other(soak))
    soak.later(seconds, lambda: _allow_refusals(soak))
    return f"{text}; another search takes over"


def _allow_refusals(soak: Soak) -> None:
    """Expect that searches are refused that have not taken over yet: on a busy machine the frozen one goes on first."""
    for search in soak.searches:
        if not search.has_trained:
            search.expected.add(REFUSED)


def _start_other(soak: Soak) -> None:
    soak.start_search(expected={REFUSED} if len(soak.searches) > 1 else set())


# --------------------------------------------------------------------------------------- workers


def _kill_workers(count: int) -> Inject:
    def kill(soak: Soak, _: PlannedFault) -> str:
        workers = soak.search.workers[:count]
        if len(workers) < count:
            raise NothingToHit("no worker runs")
        for worker in workers:
            _kill(worker)
        return f"SIGKILL to {', '.join(f'worker {worker.pid}' for worker in workers)}"

    return kill


def _freeze_worker(soak: Soak, fault: PlannedFault) -> str:
    worker = _worker_to_hit(soak)
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.suspend()
    soak.later(fault.seconds, lambda: _resume(worker))
    return f"SIGSTOP to worker {worker.pid} for {fault.seconds:g} s"


def _worker_to_hit(soak: Soak) -> psutil.Process:
    workers = soak.search.workers
    if not workers:
        raise NothingToHit("no worker runs")
    return workers[0]


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def _resume(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()


# ------------------------------------------------------------------------------ servers and the disk


def _mlflow_down(soak: Soak, fault: PlannedFault) -> str:
    if soak.is_down(fault.kind):
        raise NothingToHit("the MLflow server is down already")
    server = soak.project.mlflow
    server.kill()
    soak.begin_outage(fault.kind, fault.seconds, lambda: server.start(wait=False), lambda: server.is_answering)
    return f"the MLflow server is killed, and started after {fault.seconds:g} s"


def _postgresql_down(soak: Soak, fault: PlannedFault) -> str:
    server = soak.project.postgresql
    if server is None or soak.is_down(fault.kind):
        raise NothingToHit("no PostgreSQL server runs")
    server.kill()
    soak.begin_outage(fault.kind, fault.seconds, server.start)
    return f"PostgreSQL is killed, and started after {fault.seconds:g} s"


def _disk_full(soak: Soak, fault: PlannedFault) -> str:
    disk = soak.project.disk
    if disk is None:
        raise NothingToHit("no small file system can be mounted here")
    disk.fill()
    soak.begin_outage(fault.kind, fault.seconds, disk.empty)
    return f"the disk is full for {fault.seconds:g} s"


# -------------------------------------------------------------------------------- other commands


def _second_search(soak: Soak, _: PlannedFault) -> str:
    first = soak.search
    first.expected |= set() if first.has_trained else {REFUSED}
    second = soak.start_search(expected={REFUSED})
    return f"{second.output.name} on the same study as {first.output.name}"


def _second_study(soak: Soak, _: PlannedFault) -> str:
    if any(command.is_running for command in soak.second_studies.values()):
        raise NothingToHit("a second study runs already")
    name = f"{SECOND_STUDY}-{len(soak.second_studies) + 1}"
    soak.second_studies[name] = soak.project.search(SECOND_TRIALS, name=name, file=SECOND_STUDY)
    return f"the study {name} in the same folder"


def _fresh(soak: Soak, _: PlannedFault) -> str:
    search = soak.search
    if search.remaining_trials < MANY_TRIALS or soak.has_outage:
        raise NothingToHit("the search has not trained yet, or soon ends")
    arguments = ("search", f"{STUDY}.toml", "--fresh", "--trials", "1")
    soak.exclusive = soak.project.commands.start("fresh", *arguments, expected={REFUSED})
    return f"`--fresh` while {search.output.name} runs"


def _beside(*arguments: str) -> Inject:
    def start(soak: Soak, _: PlannedFault) -> str:
        if not soak.budgets and not soak.search.has_trained:
            raise NothingToHit("the study has not begun")
        soak.project.commands.start(arguments[0], *arguments)
        return f"`{' '.join(arguments)}`"

    return start


def _ui(soak: Soak, _: PlannedFault) -> str:
    """Start the UI on the store itself, since a server has its own; end it after it was read."""
    port = free_port()
    store = f"sqlite:///{soak.project.mlflow.database}"
    command = soak.project.commands.start(
        "ui", "ui", "--port", str(port), "--tracking-uri", store, expected={0, INTERRUPTED, -signal.SIGTERM, 143}
    )

    def read(attempts: int) -> None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                command.send(signal.SIGTERM)
        except OSError:
            if attempts and command.is_running:
                soak.later(1, lambda: read(attempts - 1))
                return
            soak.problems.append(f"{command.output.name}: did not answer: {command.tail()}")
            command.send(signal.SIGTERM)

    soak.later(3, lambda: read(60))
    return "`ui` on the same store"


_INJECTIONS: dict[FaultKind, Inject] = {
    FaultKind.KILL_SEARCH: _signal_search(signal.SIGKILL, ends_in_order=False),
    FaultKind.KILL_WORKER: _kill_workers(1),
    FaultKind.KILL_TWO_WORKERS: _kill_workers(2),
    FaultKind.KILL_SEARCH_AND_WORKER: _kill_search_and_worker,
    FaultKind.QUIT_SEARCH: _signal_search(signal.SIGQUIT, ends_in_order=False),
    FaultKind.INTERRUPT_SEARCH: _signal_search(signal.SIGINT, ends_in_order=True),
    FaultKind.TERMINATE_SEARCH: _signal_search(signal.SIGTERM, ends_in_order=True),
    FaultKind.HANG_UP_SEARCH: _signal_search(signal.SIGHUP, ends_in_order=True),
    FaultKind.STOP_COMMAND: _stop_command,
    FaultKind.FREEZE_SEARCH: _freeze_search,
    FaultKind.FREEZE_SEARCH_LONG: _freeze_search_long,
    FaultKind.TAKE_OVER: _take_over,
    FaultKind.FREEZE_WORKER: _freeze_worker,
    FaultKind.MLFLOW_DOWN: _mlflow_down,
    FaultKind.POSTGRESQL_DOWN: _postgresql_down,
    FaultKind.DISK_FULL: _disk_full,
    FaultKind.SECOND_SEARCH: _second_search,
    FaultKind.SECOND_STUDY: _second_study,
    FaultKind.FRESH: _fresh,
    FaultKind.GC: _beside("gc"),
    FaultKind.STATUS: _beside("status", STUDY, "--json"),
    FaultKind.LEADERBOARD: _beside("leaderboard", STUDY, "--json"),
    FaultKind.UI: _ui,
}
