"""What the charts of a study show, before any library draws them: which trials enter, and where they stand.

`figures.py` draws them as pictures, `interactive.py` as a page; both say the same. Knows neither MLflow nor Optuna.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fmnist_search.config.conditional_space import variables
from fmnist_search.config.space import Choice, Domain, Range, Space, ends
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import FAMILIES, in_use, short_names, short_text
from fmnist_search.results.study import Importances, State, TrialRow

FAMILY = "model.family"

# Colours that the colour-blind tell apart: Okabe and Ito (2008).
BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#D55E00"
INK, GREY, FAINT = "#333333", "#767676", "#BBBBBB"
COLORS = {State.COMPLETED: BLUE, State.PRUNED: ORANGE, State.FAILED: RED, State.INTERRUPTED: FAINT}

MANY_TICKS, FEW_TICKS = 7, 4
GOLDEN = 0.618034
"""Its multiples fall evenly into the unit interval, however many there are."""
FEWEST_ON_A_SURFACE = 8
"""Distinct points without which a surface between them would be made up."""
FAR_OUT = 3.0
"""Quartile distances below the lower quartile (Tukey, Exploratory Data Analysis, 1977) beyond which a trial would
squeeze all others together."""
PAUSE_SECONDS, PAUSE_SHARE = 30.0, 0.1
"""A study that did nothing for so long, and for such a share of its work, was paused."""


@dataclass(frozen=True)
class Axis:
    """A hyperparameter that a study searches, as an axis from 0 to 1.

    `values` are by trial number; a trial that has no such hyperparameter is not among them. What is chosen from a list
    has its categories, evenly apart; what lies in a range goes from its low to its high, as the range is drawn from.
    """

    name: str
    label: str
    values: Mapping[int, Value]
    domain: Range | Choice

    @property
    def is_ordered(self) -> bool:
        """Whether what lies between two of its places means something."""
        return isinstance(self.domain, Range) or all(map(_is_number, self.domain.values))

    def place(self, row: TrialRow, reach: float = 0.0) -> float | None:
        """Where a trial stands, from 0 to 1; None where it has no such hyperparameter.

        Trials of one category stand side by side within `reach` of the width of a category, always the same way.
        """
        value = self.values.get(row.number)
        if value is None:
            return None
        aside = (row.number * GOLDEN % 1 - 0.5) * reach
        return self._place(value) + (aside / len(self.domain.values) if isinstance(self.domain, Choice) else 0.0)

    def text(self, row: TrialRow) -> str:
        """A trial's value for people."""
        value = self.values.get(row.number)
        return "-" if value is None else short_text(value)

    def ticks(self, most: int = MANY_TICKS) -> list[tuple[float, str]]:
        """Places and texts of a few values to read it by."""
        match self.domain:
            case Choice(values):
                shown: Sequence[Value] = _thinned(values, most)
            case Range(low, high, log):
                shown = _log_ticks(low, high, most) if log else _even_ticks(low, high, most)
        return [(self._place(value), short_text(value)) for value in shown]

    def _place(self, value: Value) -> float:
        if isinstance(self.domain, Choice):
            return self.domain.values.index(value) / max(len(self.domain.values) - 1, 1)
        return self.domain.place(float(value))


@dataclass(frozen=True)
class Chart:
    """One chart: its title, the trials that enter it, and a line that says which those are."""

    title: str
    entered: tuple[TrialRow, ...]
    note: str
    axes: tuple[Axis, ...] = ()
    are_ranked: bool = False

    def first(self, count: int) -> tuple[tuple[Axis, ...], str]:
        """So many of the axes, the most important where that is known, and the note that says so."""
        if count >= len(self.axes):
            return self.axes, self.note
        which = f"the {count} most important" if self.are_ranked else f"the first {count}"
        return self.axes[:count], f"{self.note}; {which} of {len(self.axes)} hyperparameters"


@dataclass(frozen=True)
class Cost:
    """What accuracy is bought with, and how a trial's share of it is read; 0 where it is not known."""

    label: str
    of: Callable[[TrialRow], float]


COSTS = {
    "accuracy_parameters": Cost("parameters", lambda row: float(row.parameters)),
    "accuracy_seconds": Cost("seconds of training", lambda row: row.seconds),
}


@dataclass(frozen=True)
class Bar:
    """A trial on the timeline, in seconds since the study began, its pauses left out."""

    row: TrialRow
    began: float
    ended: float


class StudyView:
    """The trials of a study and the hyperparameters it searches, the most important first where that is known."""

    def __init__(self, rows: Sequence[TrialRow], space: Space, importances: Importances | None = None):
        self.rows = tuple(row for row in rows if row.duplicate_of is None)
        self.duplicates = len(rows) - len(self.rows)
        self.importances = importances
        shares = importances.shares if importances else {}
        known = {axis.name: axis for axis in axes_of(space, self.rows)}
        self.axes = tuple(known[name] for name in {**dict.fromkeys(n for n in shares if n in known), **known})

    @cached_property
    def completed(self) -> tuple[TrialRow, ...]:
        """The trials whose values can be compared."""
        return tuple(row for row in self.rows if row.state is State.COMPLETED and row.value is not None)

    @cached_property
    def charts(self) -> dict[str, Chart]:
        """The charts for which there is something to show, by name, in the order in which one looks at them."""
        compared = self.completed if len(self.completed) > 1 else ()
        there = tuple(axis for axis in self.axes if any(row.number in axis.values for row in compared))
        found = {
            "history": self._chart("Optimisation history", self._shown_in_history()),
            "importances": self._importances(),
            "parallel_coordinates": self._chart("Parallel coordinates", compared if there else (), there),
            "slices": self._chart("Slices", compared if there else (), there),
            "contour": self._contour(compared),
            "learning_curves": self._chart("Learning curves", self._with_curves()),
            "timeline": self._chart("Timeline", tuple(bar.row for bar in self.timeline[0])),
            **{name: self._against(cost) for name, cost in COSTS.items()},
        }
        return {name: chart for name, chart in found.items() if chart is not None and chart.entered}

    @cached_property
    def timeline(self) -> tuple[list[Bar], list[float]]:
        """When trials ran, and where the study was paused."""
        return without_pauses(self.rows)

    def _chart(self, title: str, entered: Sequence[TrialRow], axes: Sequence[Axis] = ()) -> Chart:
        return Chart(title, tuple(entered), self.note(entered), tuple(axes), self.importances is not None)

    def note(self, entered: Sequence[TrialRow]) -> str:
        """Which trials enter, and which do not: "12 completed trials; 5 pruned do not enter"."""
        numbers = {row.number for row in entered}
        others = [row for row in self.rows if row.number not in numbers]
        left = _counts(others)
        if self.duplicates:
            left.append(f"{self.duplicates} answered from equal ones")
        inside = f"{_listed(_counts(entered)) or 'no'} {'trial' if len(entered) == 1 else 'trials'}"
        verb = "does" if len(others) + self.duplicates == 1 else "do"
        return f"{inside}; {_listed(left)} {verb} not enter" if left else inside

    def _shown_in_history(self) -> tuple[TrialRow, ...]:
        valued = any(row.value is not None for row in self.rows)
        return tuple(r for r in self.rows if r.value is not None or r.state is State.FAILED) if valued else ()

    def _with_curves(self) -> tuple[TrialRow, ...]:
        curved = tuple(row for row in self.rows if row.curve)
        return curved if any(len(row.curve) > 1 for row in curved) else ()

    def _against(self, cost: Cost) -> Chart:
        known = [row for row in self.completed if cost.of(row) > 0]
        return self._chart(f"Accuracy against {cost.label}", known if len(known) > 1 else ())

    def _importances(self) -> Chart | None:
        if not self.importances or not self.importances.shares:
            return None
        note = f"PED-ANOVA over {self.importances.trials} completed trials; no others enter"
        return Chart("Importance of the hyperparameters", self.completed, note)

    def _contour(self, compared: Sequence[TrialRow]) -> Chart | None:
        """The first two of the most important hyperparameters that some trials have both of."""
        if not self.importances:
            return None
        ranked = [axis for axis in self.axes if axis.name in self.importances.shares]
        pairs = sorted(itertools.combinations(range(len(ranked)), 2), key=lambda pair: (sum(pair), pair))
        for first, second in pairs:
            x, y = ranked[first], ranked[second]
            both = [row for row in compared if row.number in x.values and row.number in y.values]
            if len({x.place(row) for row in both}) > 1 and len({y.place(row) for row in both}) > 1:
                return self._chart(f"Accuracy over {x.label} and {y.label}", both, (x, y))
        return None


# -------------------------------------------------------------------------------------------- axes


def axes_of(space: Space, rows: Sequence[TrialRow]) -> list[Axis]:
    """An axis for each hyperparameter that trials differ in, named as importances name it.

    Where several families are searched, each has its own: `cnn.depth` and `mlp.depth` are two. Trials that were tried
    from outside the space stretch an axis.
    """
    several = len(space.families) > 1
    flats = {row.number: row.recipe.flat() for row in rows}
    found: list[Axis] = []
    if several:
        found.append(_axis(FAMILY, Choice(space.families), {n: flat[FAMILY] for n, flat in flats.items()}))
    for family in space.families:
        for variable in variables(space, family):
            own = several and variable.name.startswith("model.")
            name = f"{family}.{variable.name.removeprefix('model.')}" if own else variable.name
            if any(axis.name == name for axis in found):
                continue
            values = {
                number: flat[variable.name]
                for number, flat in flats.items()
                if (not own or flat[FAMILY] == family) and _has(flat, variable.name)
            }
            found.append(_axis(name, variable.domain, values))
    varying = [axis for axis in found if isinstance(axis.domain, Range) or len(axis.domain.values) > 1]
    labels = short_names([axis.name for axis in varying])
    return [dataclasses.replace(axis, label=label) for axis, label in zip(varying, labels, strict=True)]


def _has(flat: Mapping[str, Value], name: str) -> bool:
    return name in flat and in_use(name, FAMILIES[str(flat[FAMILY])], flat)


def _axis(name: str, domain: Domain, values: Mapping[int, Value]) -> Axis:
    if isinstance(domain, Range):
        above = 0.0 if domain.log else -math.inf
        numbers = {n: value for n, value in values.items() if _is_number(value) and float(value) > above}
        low, high = (end(domain.low, domain.high, *map(_number, numbers.values())) for end in (min, max))
        return Axis(name, name, numbers, Range(low, high, domain.log))
    categories = list(dict.fromkeys((*ends(domain), *values.values())))
    if all(map(_is_number, categories)):
        categories.sort(key=_number)
    return Axis(name, name, values, Choice(tuple(categories)))


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Value) -> float:
    assert not isinstance(value, str)
    return value


def _thinned(values: Sequence[Value], most: int) -> list[Value]:
    return list(values[:: math.ceil(len(values) / most)])


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Ones, twos and fives of each decade, or fewer where those are too many; the ends where they are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [decade for decade in decades if low <= 10.0**decade <= high]
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 2 <= len(ticks) <= most:
            return ticks
    return [10.0**decade for decade in powers[:: math.ceil(len(powers) / most)]] if len(powers) > 1 else [low, high]


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of one, two or five times a power of ten; whole ones where the ends are."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
    if isinstance(low, int) and isinstance(high, int):
        step = max(int(step), 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


# ------------------------------------------------------------------------------------------ figures


def best_so_far(rows: Iterable[TrialRow]) -> list[tuple[int, float]]:
    """Trial numbers at which the best value of a completed trial rose, each with that value."""
    steps: list[tuple[int, float]] = []
    for row in sorted(rows, key=lambda row: row.number):
        if row.state is State.COMPLETED and row.value is not None and (not steps or row.value > steps[-1][1]):
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


def window(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value worth the space of a chart: far outliers below lie outside."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (0.0, 1.0)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    fence = lower - FAR_OUT * (upper - lower)
    return min(value for value in values if value >= fence), max(values)


def without_pauses(rows: Sequence[TrialRow]) -> tuple[list[Bar], list[float]]:
    """When trials ran, in seconds since the first began, and at which of these seconds pauses are left out."""
    timed = [(r, r.began_at, r.ended_at) for r in rows if r.began_at is not None and r.ended_at is not None]
    spans = sorted((began, ended, row.number) for row, began, ended in timed)
    idle: dict[float, float] = {}
    last = spans[0][0] if spans else 0.0
    for began, ended, _ in spans:
        if began > last:
            idle[began] = began - last
        last = max(last, ended)
    start = spans[0][0] if spans else 0.0
    work = last - start - sum(idle.values())
    pauses = {began: gap for began, gap in idle.items() if gap > max(PAUSE_SECONDS, PAUSE_SHARE * work)}

    def since(moment: float) -> float:
        return moment - start - sum(gap for began, gap in pauses.items() if began <= moment)

    bars = [Bar(row, since(began), since(max(began, ended))) for row, began, ended in timed]
    return bars, [since(began) for began in pauses]


def surface_points(chart: Chart) -> list[tuple[float, float, float]]:
    """The distinct places (x, y) of a contour with the mean value there; none where they are too few for a surface."""
    x, y = chart.axes
    found: dict[tuple[float, float], list[float]] = {}
    for row in chart.entered:
        across, up = x.place(row), y.place(row)
        if across is not None and up is not None and row.value is not None:
            found.setdefault((across, up), []).append(row.value)
    wide = all(len({place[side] for place in found}) > 2 for side in (0, 1))
    if len(found) < FEWEST_ON_A_SURFACE or not (wide and x.is_ordered and y.is_ordered):
        return []
    return [(across, up, statistics.fmean(values)) for (across, up), values in found.items()]


def _counts(rows: Iterable[TrialRow]) -> list[str]:
    counted = Counter(row.state for row in rows)
    return [f"{counted[state]} {state.value}" for state in State if counted[state]]


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
