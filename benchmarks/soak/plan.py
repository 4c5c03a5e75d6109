"""The plan of a soak test: which fault is injected when. It follows from the seed alone, so it can be replayed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

JITTER = 0.4
"""The time of a fault differs from the regular one by at most this share of the interval."""


class FaultKind(StrEnum):
    """The kinds of faults, in the words of `--faults`."""

    KILL_SEARCH = "kill-search"
    KILL_WORKER = "kill-worker"
    KILL_TWO_WORKERS = "kill-two-workers"
    KILL_SEARCH_AND_WORKER = "kill-search-and-worker"
    QUIT_SEARCH = "quit-search"
    INTERRUPT_SEARCH = "interrupt-search"
    TERMINATE_SEARCH = "terminate-search"
    HANG_UP_SEARCH = "hang-up-search"
    STOP_COMMAND = "stop-command"
    FREEZE_SEARCH = "freeze-search"
    FREEZE_SEARCH_LONG = "freeze-search-long"
    TAKE_OVER = "take-over"
    FREEZE_WORKER = "freeze-worker"
    MLFLOW_DOWN = "mlflow-down"
    POSTGRESQL_DOWN = "postgresql-down"
    DISK_FULL = "disk-full"
    SECOND_SEARCH = "second-search"
    SECOND_STUDY = "second-study"
    FRESH = "fresh"
    GC = "gc"
    STATUS = "status"
    LEADERBOARD = "leaderboard"
    UI = "ui"


WEIGHTS = {FaultKind.KILL_SEARCH: 4, FaultKind.KILL_WORKER: 2, FaultKind.MLFLOW_DOWN: 2}
"""How often a kind is injected for each time that the others are."""

SECONDS: dict[FaultKind, tuple[float, ...]] = {
    FaultKind.FREEZE_SEARCH: (0.5, 2.0),
    FaultKind.FREEZE_WORKER: (0.5, 20.0),
    FaultKind.MLFLOW_DOWN: (0.0, 20.0, 60.0),
    FaultKind.POSTGRESQL_DOWN: (0.0, 5.0, 20.0),
    FaultKind.DISK_FULL: (2.0, 8.0),
}
"""How long a fault of a kind lasts, one of these."""


@dataclass(frozen=True)
class PlannedFault:
    """A fault that is injected `at` so many seconds after the start, and lasts `seconds` if its kind has a duration."""

    at: float
    kind: FaultKind
    seconds: float = 0.0


def make_plan(seed: int, duration: float, interval: float, kinds: Sequence[FaultKind]) -> tuple[PlannedFault, ...]:
    """Return a fault for every `interval` of `duration` seconds.

    All kinds come in random order, each as often as its weight says, then again.
    """
    draws = random.Random(seed)
    deck: list[FaultKind] = []
    planned: list[PlannedFault] = []
    for number in range(1, int(duration / interval)):
        if not deck:
            deck = [kind for kind in kinds for _ in range(WEIGHTS.get(kind, 1))]
            draws.shuffle(deck)
        at = interval * (number + draws.uniform(-JITTER, JITTER))
        kind = deck.pop()
        planned.append(PlannedFault(round(at, 2), kind, draws.choice(SECONDS.get(kind, (0.0,)))))
    return tuple(planned)
