"""The run of a soak test: the search is started again whenever it ends, while faults are injected."""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.soak.commands import TRACEBACK, Command
from benchmarks.soak.plan import FaultKind, PlannedFault
from benchmarks.soak.project import TRIALS_PER_STAGE, Project

POLL_SECONDS = 0.1
RESTART_SECONDS = 1.0
"""A search that could not start is started again after so long, else at once."""
PATIENCE_SECONDS = 90.0
"""A fault that meets nothing, such as a worker to kill, waits so long for it."""
SILENCE_SECONDS = 240.0
"""A search that prints nothing for so long hangs."""
TWO_SEARCHES_SECONDS = 90.0
"""If two searches of the study run, one must have ended after so long."""
LAST_SECONDS = 900.0
"""The time that the undisturbed search at the end has."""
REFUSED = 2
"""The exit code of a command that could not do its work, for a reason that it names."""


class NothingToHit(Exception):
    """What a fault would hit is not there at the moment."""


@dataclass
class InjectedFault:
    """A planned fault, the second at which it was injected, and what it did. `at` is None if it met nothing."""

    planned: PlannedFault
    at: float | None = None
    effect: str = ""


@dataclass
class Outage:
    """A time in which a server or the disk was unavailable; `ended` is None while it is."""

    kind: FaultKind
    started: float
    ended: float | None = None

    def overlaps(self, start: float, end: float) -> bool:
        """Whether it was in effect between two times."""
        return self.started <= end and (self.ended is None or self.ended >= start)


@dataclass
class Soak:
    """A soak test that runs. `inject` applies a fault and returns what it did."""

    project: Project
    plan: Sequence[PlannedFault]
    inject: Callable[[Soak, PlannedFault], str]
    print_line: Callable[[str], None] = print
    faults: list[InjectedFault] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)
    """The numbers of trials with which a search has ended, in their order."""
    second_studies: dict[str, Command] = field(default_factory=dict)
    searches: list[Command] = field(default_factory=list)
    exclusive: Command | None = None
    """A command during which no other fault is injected, since it would do harm without the search."""
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _counter: Any = field(default_factory=itertools.count)
    _started: float = field(default_factory=time.monotonic)
    _two_since: float | None = None
    _sizes: dict[int, tuple[int, float]] = field(default_factory=dict)
    _checked: set[Command] = field(default_factory=set)

    # ----------------------------------------------------------------------------------- for faults

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def search(self) -> Command:
        """The search that was started last.

        Raises:
            NothingToHit: if none runs.
        """
        running = [search for search in self.searches if search.is_running]
        if not running:
            raise NothingToHit("no search runs")
        return running[-1]

    @property
    def trials(self) -> int:
        """The number of trials that the search runs to."""
        return TRIALS_PER_STAGE * (len(self.budgets) + 1)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after some seconds."""
        heapq.heappush(self._agenda, (time.monotonic() + seconds, next(self._counter), action))

    def begin_outage(
        self, kind: FaultKind, seconds: float, end: Callable[[], None], is_over: Callable[[], bool] = lambda: True
    ) -> None:
        """Note that something is unavailable, end that after some seconds, and note when it is over."""
        outage = Outage(kind, time.monotonic())
        self.outages.append(outage)

        def note_end() -> None:
            if is_over():
                outage.ended = time.monotonic()
            else:
                self.later(0.5, note_end)

        def finish() -> None:
            end()
            note_end()

        self.later(seconds, finish)

    @property
    def has_outage(self) -> bool:
        """Whether something is unavailable at this moment."""
        return any(outage.ended is None for outage in self.outages)

    def is_down(self, kind: FaultKind) -> bool:
        """Whether something of a kind is unavailable at this moment."""
        return any(outage.kind is kind and outage.ended is None for outage in self.outages)

    def start_search(self, *, expected: set[int] | None = None) -> Command:
        """Start another search of the study."""
        command = self.project.search(self.trials)
        command.expected |= expected or set()
        self.searches.append(command)
        return command

    # ------------------------------------------------------------------------------------- the run

    def run(self, seconds: float) -> None:
        """Inject the planned faults for some seconds, then let the search and all second studies come to their end."""
        for planned in self.plan:
            self.later(planned.at, functools.partial(self._inject, InjectedFault(planned)))
        self.start_search()
        while self.seconds < seconds or self._agenda:
            self._tick()
        self._finish_search()
        self._finish_second_studies()
        for command in self.project.commands.commands:
            self._check_beside(command)

    def _tick(self) -> None:
        while self._agenda and self._agenda[0][0] <= time.monotonic():
            heapq.heappop(self._agenda)[2]()
        self._check_searches()
        time.sleep(POLL_SECONDS)

    def _inject(self, fault: InjectedFault) -> None:
        if self.exclusive and self.exclusive.is_running:
            self.later(0.5, lambda: self._inject(fault))
            return
        try:
            fault.effect = self.inject(self, fault.planned)
        except NothingToHit as nothing:
            if self.seconds - fault.planned.at < PATIENCE_SECONDS:
                self.later(0.5, lambda: self._inject(fault))
                return
            fault.effect = f"met nothing: {nothing}"
        except (OSError, psutil.Error) as error:
            fault.effect = f"could not be injected: {error!r}"
        else:
            fault.at = self.seconds
        self.faults.append(fault)
        self.print_line(f"{self.seconds:7.1f} s  {fault.planned.kind:<24}{fault.effect}")

    def _check_searches(self) -> None:
        for search in [*self.searches]:
            if search.exit_code is not None:
                self.searches.remove(search)
                self._on_search_ended(search)
            elif self._is_silent(search):
                self.problems.append(
                    f"{search.output.name}: printed nothing for {SILENCE_SECONDS:.0f} s; it was killed"
                )
                search.expected.add(-signal.SIGKILL)
                search.send(signal.SIGKILL)
        self._check_number_of_searches()
        if not self.searches:
            self.start_search()

    def _on_search_ended(self, search: Command) -> None:
        code = search.exit_code
        self._checked.add(search)
        self.print_line(
            f"{self.seconds:7.1f} s      {search.output.name} ended with {code} after {search.seconds:.1f} s"
        )
        if code == 0:
            self.budgets.append(int(search.arguments[search.arguments.index("--trials") + 1]))
        elif code not in search.expected | self._expected_by_outage(search):
            self.problems.append(f"{search.output.name}: exit code {code} was not expected: {search.tail()}")
        if code == REFUSED:
            time.sleep(RESTART_SECONDS)

    def _expected_by_outage(self, command: Command) -> set[int]:
        """Return the exit code that a command may have because something was unavailable.

        A search rides out an outage of its storage, but it needs the storage to start.
        """
        ended = command.ended or time.monotonic()
        for outage in self.outages:
            until = min(ended, command.started + 30) if outage.kind is FaultKind.POSTGRESQL_DOWN else ended
            if outage.overlaps(command.started, until):
                return {REFUSED}
        return set()

    def _is_silent(self, search: Command) -> bool:
        size, now = search.output.stat().st_size, time.monotonic()
        known, since = self._sizes.get(search.pid, (-1, now))
        if size != known or (self.outages and self.outages[-1].overlaps(since, now)):
            self._sizes[search.pid] = (size, now)
            return False
        return now - since > SILENCE_SECONDS

    def _check_number_of_searches(self) -> None:
        if len(self.searches) < 2:
            self._two_since = None
            return
        self._two_since = self._two_since or time.monotonic()
        if time.monotonic() - self._two_since > TWO_SEARCHES_SECONDS:
            names = ", ".join(search.output.name for search in self.searches)
            self.problems.append(f"{names}: ran on one study for {TWO_SEARCHES_SECONDS:.0f} s; all but one were killed")
            for search in self.searches[1:]:
                search.expected.add(-signal.SIGKILL)
                search.send(signal.SIGKILL)

    def _finish_search(self) -> None:
        """Let the search come to its end without faults; the study has then exactly its trials."""
        deadline, stages = time.monotonic() + LAST_SECONDS, len(self.budgets)
        while len(self.budgets) == stages or self.searches:
            for search in [*self.searches]:
                if search.exit_code is not None:
                    self.searches.remove(search)
                    self._on_search_ended(search)
            if not self.searches and len(self.budgets) == stages:
                self.start_search()
            if time.monotonic() > deadline:
                self.problems.append(f"the last search did not end within {LAST_SECONDS:.0f} s")
                break
            time.sleep(POLL_SECONDS)

    def _finish_second_studies(self) -> None:
        for name, first in self.second_studies.items():
            with contextlib.suppress(Exception):
                first.process.wait(LAST_SECONDS)
            if first.exit_code != 0:
                again = self.project.search(SECOND_TRIALS, name=name, file="second")
                with contextlib.suppress(Exception):
                    again.process.wait(LAST_SECONDS)

    def _check_beside(self, command: Command) -> None:
        """Note what is wrong with the end of a command: its exit code, or a traceback in its output."""
        if TRACEBACK in command.text:
            self.problems.append(f"{command.output.name}: printed a traceback: {command.tail(3)}")
        if command in self._checked:
            return
        self._checked.add(command)
        if command.exit_code not in command.expected | self._expected_by_outage(command):
            self.problems.append(
                f"{command.output.name}: exit code {command.exit_code} was not expected: {command.tail()}"
            )


SECOND_TRIALS = 4
"""The trials of a second study in the same folder."""
