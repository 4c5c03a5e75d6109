"""The data of a study's charts: which trials a chart includes, and their positions.

`progress_plots` and `space_plots` draw the charts with matplotlib, `page_charts` with plotly. Imports none of these
libraries, neither MLflow nor Optuna.
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
from fmnist_search.results.objectives import COST_LABELS
from fmnist_search.results.own_costs import cost_label
from fmnist_search.results.study import Importances, TrialRecord
from fmnist_search.results.training import TrialState

MIN_SURFACE_POINTS = 8
"""Fewest distinct points for an interpolated surface."""
MIN_EDF_TRIALS = 4
"""Fewest completed trials for a distribution, as for importances."""
OUTLIER_FACTOR = 3.0
"""Values further below the lower quartile than so many interquartile ranges (Tukey, Exploratory Data Analysis, 1977)
are outside the displayed range."""
MIN_PAUSE_SECONDS, MIN_PAUSE_SHARE = 30.0, 0.1
"""A gap longer than both, in seconds and as a share of the time with running trials, is a pause of the study."""


@dataclass(frozen=True)
class Chart:
    """A chart: its title, the trials that it includes, a note that counts them, and the hyperparameters that it shows.

    `is_ranked_by_importance` says whether the axes are sorted by importance.
    """

    title: str
    trials: tuple[TrialRecord, ...]
    note: str
    axes: tuple[Axis, ...] = ()
    is_ranked_by_importance: bool = False

    def first_axes(self, count: int) -> tuple[tuple[Axis, ...], str]:
        """Return the first `count` axes, and the note, which says so if axes are left out."""
        if count >= len(self.axes):
            return self.axes, self.note
        selection = f"the {count} most important" if self.is_ranked_by_importance else f"the first {count}"
        return self.axes[:count], f"{self.note}; {selection} of {len(self.axes)} hyperparameters"


@dataclass(frozen=True)
class Cost:
    """A cost of a trial: its label, and the function that returns it, or None if it is not known."""

    label: str
    value_of: Callable[[TrialRecord], float | None]

    def values_of(self, trials: Sequence[TrialRecord]) -> list[float]:
        """Return the costs of trials that have one."""
        return [value for trial in trials if (value := self.value_of(trial)) is not None]


COSTS = {
    "accuracy_mult_adds": Cost(COST_LABELS["mult_adds"], lambda trial: trial.mult_adds or None),
    "accuracy_parameters": Cost(COST_LABELS["parameters"], lambda trial: trial.parameters or None),
    "accuracy_seconds": Cost(COST_LABELS["seconds_per_epoch"], lambda trial: trial.seconds_per_epoch or None),
}


@dataclass(frozen=True)
class TimelineBar:
    """A trial on the timeline: start and end in seconds since the start of the study, without its pauses."""

    trial: TrialRecord
    start: float
    end: float


class StudyView:
    """The trials of a study that were trained, without duplicates, and axes for its hyperparameters.

    The axes are sorted by importance if importances are given.
    """

    def __init__(self, trials: Sequence[TrialRecord], space: Space, importances: Importances | None = None):
        trained = [trial for trial in trials if trial.state is not TrialState.REFUSED]
        self.trials = tuple(trial for trial in trained if trial.duplicate_of is None)
        self.duplicates, self.refused = len(trained) - len(self.trials), len(trials) - len(trained)
        self.importances = importances
        shares = importances.by_name if importances else {}
        known = {axis.name: axis for axis in build_axes(space, self.trials)}
        self.axes = tuple(known[name] for name in {**dict.fromkeys(n for n in shares if n in known), **known})

    @cached_property
    def completed(self) -> tuple[TrialRecord, ...]:
        """Completed trials with a value."""
        return tuple(trial for trial in self.trials if trial.state is TrialState.COMPLETED and trial.value is not None)

    @cached_property
    def objective(self) -> Cost | None:
        """The cost that the study minimizes beside the accuracy; None if it has one metric."""
        metric = next((trial.cost.metric for trial in self.completed if trial.cost), None)
        return Cost(cost_label(metric), lambda trial: trial.cost.value if trial.cost else None) if metric else None

    @cached_property
    def charts(self) -> dict[str, Chart]:
        """The charts that have data, by name, in the order of the page."""
        compared = self.completed if len(self.completed) > 1 else ()
        axes = tuple(axis for axis in self.axes if any(trial.number in axis.values for trial in compared))
        charts = {
            "history": self._chart("Optimisation history", self._history_trials()),
            "pareto_front": self._cost_chart(self.objective) if self.objective else None,
            "importances": self._importance_chart(),
            "parallel_coordinates": self._chart("Parallel coordinates", compared if axes else (), axes),
            "slices": self._chart("Slices", compared if axes else (), axes),
            "contour": self._pair_chart("Accuracy", compared),
            "rank": self._pair_chart("Rank", compared),
            "edf": self._chart("Distribution of accuracies", compared if len(compared) >= MIN_EDF_TRIALS else ()),
            "learning_curves": self._chart("Learning curves", self._trials_with_curves()),
            "timeline": self._chart("Timeline", tuple(bar.trial for bar in self.timeline[0])),
            **{name: self._cost_chart(cost) for name, cost in COSTS.items() if not self._is_objective(cost)},
        }
        return {name: chart for name, chart in charts.items() if chart is not None and chart.trials}

    @cached_property
    def timeline(self) -> tuple[list[TimelineBar], list[float]]:
        """The bars of the trials, and the times of the pauses; see `timeline_bars`."""
        return timeline_bars(self.trials)

    def _chart(self, title: str, trials: Sequence[TrialRecord], axes: Sequence[Axis] = ()) -> Chart:
        return Chart(title, tuple(trials), self.note(trials), tuple(axes), self.importances is not None)

    def note(self, trials: Sequence[TrialRecord]) -> str:
        """Return how many trials are included and how many are not: "12 completed trials; not included: 5 pruned"."""
        numbers = {trial.number for trial in trials}
        others = _state_counts(trial for trial in self.trials if trial.number not in numbers)
        if self.duplicates:
            others.append(f"{self.duplicates} {'duplicate' if self.duplicates == 1 else 'duplicates'}")
        if self.refused:
            others.append(f"{self.refused} {TrialState.REFUSED.value}")
        included = f"{_join_words(_state_counts(trials)) or 'no'} {'trial' if len(trials) == 1 else 'trials'}"
        return f"{included}; not included: {_join_words(others)}" if others else included

    def _history_trials(self) -> tuple[TrialRecord, ...]:
        if all(trial.value is None for trial in self.trials):
            return ()
        return tuple(trial for trial in self.trials if trial.value is not None or trial.state is TrialState.FAILED)

    def _trials_with_curves(self) -> tuple[TrialRecord, ...]:
        trials = tuple(trial for trial in self.trials if trial.curve)
        return trials if any(len(trial.curve) > 1 for trial in trials) else ()

    def _cost_chart(self, cost: Cost) -> Chart:
        known = [trial for trial in self.completed if cost.value_of(trial) is not None]
        return self._chart(f"Accuracy against {cost.label}", known if len(known) > 1 else ())

    def _is_objective(self, cost: Cost) -> bool:
        return self.objective is not None and self.objective.label == cost.label

    def _importance_chart(self) -> Chart | None:
        if not self.importances or not self.importances.by_name:
            return None
        note = f"PED-ANOVA over {self.importances.trials} completed trials; no others are included"
        return Chart("Hyperparameter importances", self.completed, note)

    def _pair_chart(self, what: str, trials: Sequence[TrialRecord]) -> Chart | None:
        """Return a chart over the two most important hyperparameters that vary in the trials that have both."""
        if not self.importances:
            return None
        ranked = [axis for axis in self.axes if axis.name in self.importances.by_name]
        pairs = sorted(itertools.combinations(range(len(ranked)), 2), key=lambda pair: (sum(pair), pair))
        for first, second in pairs:
            x, y = ranked[first], ranked[second]
            both = [trial for trial in trials if trial.number in x.values and trial.number in y.values]
            if len({x.position(trial) for trial in both}) > 1 and len({y.position(trial) for trial in both}) > 1:
                return self._chart(f"{what} over {x.label} and {y.label}", both, (x, y))
        return None


def best_so_far(trials: Iterable[TrialRecord]) -> list[tuple[int, float]]:
    """Return the numbers of the completed trials that improved on all before, each with its value."""
    steps: list[tuple[int, float]] = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state is not TrialState.COMPLETED or trial.value is None:
            continue
        if not steps or trial.value > steps[-1][1]:
            steps.append((trial.number, trial.value))
    return steps


def ranks(trials: Sequence[TrialRecord]) -> list[float]:
    """Return the rank of each trial, 1 for the most accurate one; trials with the same value share the mean rank."""
    values = [trial.value or 0.0 for trial in trials]
    positions: dict[float, list[int]] = {}
    for position, value in enumerate(sorted(values, reverse=True), start=1):
        positions.setdefault(value, []).append(position)
    return [statistics.fmean(positions[value]) for value in values]


def distribution(trials: Sequence[TrialRecord]) -> list[tuple[float, float, int]]:
    """Return the empirical distribution: each value, the share of trials not better, and its trial's number."""
    ordered = sorted(trials, key=lambda trial: trial.value or 0.0)
    return [(trial.value or 0.0, place / len(ordered), trial.number) for place, trial in enumerate(ordered, start=1)]


def display_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value that a chart displays: all values without far outliers below."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 1.0)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    fence = lower - OUTLIER_FACTOR * (upper - lower)
    return min(value for value in values if value >= fence), max(values)


def timeline_bars(trials: Sequence[TrialRecord]) -> tuple[list[TimelineBar], list[float]]:
    """Return when trials ran, and when the study was paused, in seconds since the first trial without the pauses."""
    timed = [(t, t.started_at, t.ended_at) for t in trials if t.started_at is not None and t.ended_at is not None]
    spans = sorted((began, ended) for _, began, ended in timed)
    idle: dict[float, float] = {}
    last = spans[0][0] if spans else 0.0
    for began, ended in spans:
        if began > last:
            idle[began] = began - last
        last = max(last, ended)
    start = spans[0][0] if spans else 0.0
    busy = last - start - sum(idle.values())
    pauses = {began: gap for began, gap in idle.items() if gap > max(MIN_PAUSE_SECONDS, MIN_PAUSE_SHARE * busy)}

    def seconds_since_start(time: float) -> float:
        seconds = time - start - sum(gap for began, gap in pauses.items() if began <= time)
        return max(seconds, 0.0)  # rounding can make it negative

    bars = [
        TimelineBar(trial, seconds_since_start(began), seconds_since_start(max(began, ended)))
        for trial, began, ended in timed
    ]
    return bars, [seconds_since_start(began) for began in pauses]


def surface_points(chart: Chart) -> list[tuple[float, float, float]]:
    """Return the distinct points (x, y, mean value) of a contour; none if they do not determine a surface."""
    x_axis, y_axis = chart.axes
    values: dict[tuple[float, float], list[float]] = {}
    for trial in chart.trials:
        x, y = x_axis.position(trial), y_axis.position(trial)
        if x is not None and y is not None and trial.value is not None:
            values.setdefault((x, y), []).append(trial.value)
    is_wide = all(len({point[dimension] for point in values}) > 2 for dimension in (0, 1))
    if len(values) < MIN_SURFACE_POINTS or not (is_wide and x_axis.is_ordered and y_axis.is_ordered):
        return []
    return [(x, y, statistics.fmean(found)) for (x, y), found in values.items()]


def _state_counts(trials: Iterable[TrialRecord]) -> list[str]:
    counts = Counter(trial.state for trial in trials)
    return [f"{counts[state]} {state.value}" for state in TrialState if counts[state]]


def _join_words(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
