"""What the charts of a study show, before any library draws them: which trials enter, and where they stand.

`figures.py` draws them as pictures, `interactive.py` as a page; both say the same. Knows neither MLflow nor Optuna.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fmnist_search.config.space import Space
from fmnist_search.reporting.axes import Axis, build_axes
from fmnist_search.results.study import Importances, TrialRecord
from fmnist_search.results.training import TrialState

MIN_SURFACE_POINTS = 8
"""Distinct points without which a surface between them would be made up."""
OUTLIER_FACTOR = 3.0
"""Quartile distances below the lower quartile (Tukey, Exploratory Data Analysis, 1977) beyond which a trial would
squeeze all others together."""
MIN_PAUSE_SECONDS, MIN_PAUSE_SHARE = 30.0, 0.1
"""A study that did nothing for so long, and for such a share of its work, was paused."""


@dataclass(frozen=True)
class Chart:
    """One chart: its title, the trials that enter it, and a line that says which those are."""

    title: str
    trials: tuple[TrialRecord, ...]
    note: str
    axes: tuple[Axis, ...] = ()
    is_ranked_by_importance: bool = False

    def first_axes(self, count: int) -> tuple[tuple[Axis, ...], str]:
        """So many of the axes, the most important where that is known, and the note that says so."""
        if count >= len(self.axes):
            return self.axes, self.note
        which = f"the {count} most important" if self.is_ranked_by_importance else f"the first {count}"
        return self.axes[:count], f"{self.note}; {which} of {len(self.axes)} hyperparameters"


@dataclass(frozen=True)
class Cost:
    """What accuracy is bought with, and how a trial's share of it is read; 0 where it is not known."""

    label: str
    value_of: Callable[[TrialRecord], float]


COSTS = {
    "accuracy_parameters": Cost("parameters", lambda row: float(row.parameters)),
    "accuracy_seconds": Cost("seconds of training", lambda row: row.seconds),
}


@dataclass(frozen=True)
class TimelineBar:
    """A trial on the timeline, in seconds since the study began, its pauses left out."""

    trial: TrialRecord
    start: float
    end: float


class StudyView:
    """The trials of a study and the hyperparameters it searches, the most important first where that is known."""

    def __init__(self, trials: Sequence[TrialRecord], space: Space, importances: Importances | None = None):
        self.trials = tuple(row for row in trials if row.duplicate_of is None)
        self.duplicates = len(trials) - len(self.trials)
        self.importances = importances
        shares = importances.by_name if importances else {}
        known = {axis.name: axis for axis in build_axes(space, self.trials)}
        self.axes = tuple(known[name] for name in {**dict.fromkeys(n for n in shares if n in known), **known})

    @cached_property
    def completed(self) -> tuple[TrialRecord, ...]:
        """The trials whose values can be compared."""
        return tuple(row for row in self.trials if row.state is TrialState.COMPLETED and row.value is not None)

    @cached_property
    def charts(self) -> dict[str, Chart]:
        """The charts for which there is something to show, by name, in the order in which one looks at them."""
        compared = self.completed if len(self.completed) > 1 else ()
        there = tuple(axis for axis in self.axes if any(row.number in axis.values for row in compared))
        found = {
            "history": self._chart("Optimisation history", self._history_trials()),
            "importances": self._importance_chart(),
            "parallel_coordinates": self._chart("Parallel coordinates", compared if there else (), there),
            "slices": self._chart("Slices", compared if there else (), there),
            "contour": self._contour_chart(compared),
            "learning_curves": self._chart("Learning curves", self._trials_with_curves()),
            "timeline": self._chart("Timeline", tuple(bar.trial for bar in self.timeline[0])),
            **{name: self._cost_chart(cost) for name, cost in COSTS.items()},
        }
        return {name: chart for name, chart in found.items() if chart is not None and chart.trials}

    @cached_property
    def timeline(self) -> tuple[list[TimelineBar], list[float]]:
        """When trials ran, and where the study was paused."""
        return timeline_bars(self.trials)

    def _chart(self, title: str, trials: Sequence[TrialRecord], axes: Sequence[Axis] = ()) -> Chart:
        return Chart(title, tuple(trials), self.note(trials), tuple(axes), self.importances is not None)

    def note(self, trials: Sequence[TrialRecord]) -> str:
        """Which trials enter, and which do not: "12 completed trials; 5 pruned do not enter"."""
        numbers = {row.number for row in trials}
        others = [row for row in self.trials if row.number not in numbers]
        left = _state_counts(others)
        if self.duplicates:
            left.append(f"{self.duplicates} answered from equal ones")
        inside = f"{_join_words(_state_counts(trials)) or 'no'} {'trial' if len(trials) == 1 else 'trials'}"
        verb = "does" if len(others) + self.duplicates == 1 else "do"
        return f"{inside}; {_join_words(left)} {verb} not enter" if left else inside

    def _history_trials(self) -> tuple[TrialRecord, ...]:
        valued = any(row.value is not None for row in self.trials)
        return tuple(r for r in self.trials if r.value is not None or r.state is TrialState.FAILED) if valued else ()

    def _trials_with_curves(self) -> tuple[TrialRecord, ...]:
        curved = tuple(row for row in self.trials if row.curve)
        return curved if any(len(row.curve) > 1 for row in curved) else ()

    def _cost_chart(self, cost: Cost) -> Chart:
        known = [row for row in self.completed if cost.value_of(row) > 0]
        return self._chart(f"Accuracy against {cost.label}", known if len(known) > 1 else ())

    def _importance_chart(self) -> Chart | None:
        if not self.importances or not self.importances.by_name:
            return None
        note = f"PED-ANOVA over {self.importances.trials} completed trials; no others enter"
        return Chart("Importance of the hyperparameters", self.completed, note)

    def _contour_chart(self, trials: Sequence[TrialRecord]) -> Chart | None:
        """The first two of the most important hyperparameters that some trials have both of."""
        if not self.importances:
            return None
        ranked = [axis for axis in self.axes if axis.name in self.importances.by_name]
        pairs = sorted(itertools.combinations(range(len(ranked)), 2), key=lambda pair: (sum(pair), pair))
        for first, second in pairs:
            x, y = ranked[first], ranked[second]
            both = [row for row in trials if row.number in x.values and row.number in y.values]
            if len({x.position(row) for row in both}) > 1 and len({y.position(row) for row in both}) > 1:
                return self._chart(f"Accuracy over {x.label} and {y.label}", both, (x, y))
        return None


# ------------------------------------------------------------------------------------------ figures


def best_so_far(trials: Iterable[TrialRecord]) -> list[tuple[int, float]]:
    """Trial numbers at which the best value of a completed trial rose, each with that value."""
    steps: list[tuple[int, float]] = []
    for row in sorted(trials, key=lambda row: row.number):
        if row.state is TrialState.COMPLETED and row.value is not None and (not steps or row.value > steps[-1][1]):
            steps.append((row.number, row.value))
    return steps


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places, the cheapest first, of the points (cost, gain) to which no other is at once as cheap and as good.

    Of equal points the first is on the front.
    """
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1], place))
    front: list[int] = []
    for place in order:
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front


def display_range(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value worth the space of a chart: far outliers below lie outside."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 1.0)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    fence = lower - OUTLIER_FACTOR * (upper - lower)
    return min(value for value in values if value >= fence), max(values)


def timeline_bars(trials: Sequence[TrialRecord]) -> tuple[list[TimelineBar], list[float]]:
    """When trials ran, in seconds since the first began, and at which of these seconds pauses are left out."""
    timed = [(r, r.started_at, r.ended_at) for r in trials if r.started_at is not None and r.ended_at is not None]
    spans = sorted((began, ended, row.number) for row, began, ended in timed)
    idle: dict[float, float] = {}
    last = spans[0][0] if spans else 0.0
    for began, ended, _ in spans:
        if began > last:
            idle[began] = began - last
        last = max(last, ended)
    start = spans[0][0] if spans else 0.0
    work = last - start - sum(idle.values())
    pauses = {began: gap for began, gap in idle.items() if gap > max(MIN_PAUSE_SECONDS, MIN_PAUSE_SHARE * work)}

    def since(moment: float) -> float:
        return moment - start - sum(gap for began, gap in pauses.items() if began <= moment)

    bars = [TimelineBar(row, since(began), since(max(began, ended))) for row, began, ended in timed]
    return bars, [since(began) for began in pauses]


def surface_points(chart: Chart) -> list[tuple[float, float, float]]:
    """The distinct places (x, y) of a contour with the mean value there; none where they are too few for a surface."""
    x, y = chart.axes
    found: dict[tuple[float, float], list[float]] = {}
    for row in chart.trials:
        across, up = x.position(row), y.position(row)
        if across is not None and up is not None and row.value is not None:
            found.setdefault((across, up), []).append(row.value)
    wide = all(len({place[side] for place in found}) > 2 for side in (0, 1))
    if len(found) < MIN_SURFACE_POINTS or not (wide and x.is_ordered and y.is_ordered):
        return []
    return [(across, up, statistics.fmean(values)) for (across, up), values in found.items()]


def _state_counts(trials: Iterable[TrialRecord]) -> list[str]:
    counted = Counter(row.state for row in trials)
    return [f"{counted[state]} {state.value}" for state in TrialState if counted[state]]


def _join_words(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
