"""Hyperparameters as axes of charts: positions from 0 to 1, ticks and their labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmnist_search.config.conditional_space import FAMILY_NAME, conditional_hyperparameters
from fmnist_search.config.domain import Choice, Domain, Range, bounds
from fmnist_search.config.space import Space
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value_short, short_names
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import is_active
from fmnist_search.results.study import TrialRecord

MAX_TICKS, MAX_TICKS_SMALL = 7, 4
GOLDEN_RATIO_CONJUGATE = 0.618034
"""The fractional parts of its multiples spread evenly over the unit interval, for any number of them."""


@dataclass(frozen=True)
class Axis:
    """A hyperparameter that a study searches, as an axis from 0 to 1.

    `values` are by trial number, without the trials that have no such hyperparameter. The values of a `Choice` are
    spread evenly over the axis; a `Range` goes from its low to its high end, on a log scale if it is sampled on one.
    """

    name: str
    label: str
    values: Mapping[int, Value]
    domain: Range | Choice

    @property
    def is_ordered(self) -> bool:
        """Whether positions between two values have a meaning: true for a range and for a choice of numbers."""
        return isinstance(self.domain, Range) or all(map(_is_number, self.domain.values))

    def position(self, trial: TrialRecord, jitter: float = 0.0) -> float | None:
        """Return the position of a trial, from 0 to 1; None if it has no such hyperparameter.

        `jitter` spreads the trials of one category over that share of the category's width. The offset depends on the
        number of the trial only, so a plot is reproducible.
        """
        value = self.values.get(trial.number)
        if value is None:
            return None
        if not isinstance(self.domain, Choice):
            return self._position(value)
        offset = (trial.number * GOLDEN_RATIO_CONJUGATE % 1 - 0.5) * jitter
        return self._position(value) + offset / len(self.domain.values)

    def format_value(self, trial: TrialRecord) -> str:
        """Return a trial's value as short text; "-" if it has no such hyperparameter."""
        value = self.values.get(trial.number)
        return "-" if value is None else format_value_short(value)

    def ticks(self, max_ticks: int = MAX_TICKS) -> list[tuple[float, str]]:
        """Return positions and labels of at most `max_ticks` ticks, in ascending order."""
        domain = self.domain
        if isinstance(domain, Choice):
            shown: Sequence[Value] = _every_nth(domain.values, max_ticks)
        else:
            make_ticks = _log_ticks if domain.log else _even_ticks
            shown = make_ticks(domain.low, domain.high, max_ticks)
        return [(self._position(value), format_value_short(value)) for value in shown]

    def _position(self, value: Value) -> float:
        if isinstance(self.domain, Choice):
            return self.domain.values.index(value) / max(len(self.domain.values) - 1, 1)
        return self.domain.relative_position(float(value))


def build_axes(space: Space, trials: Sequence[TrialRecord]) -> list[Axis]:
    """Return an axis for each hyperparameter with more than one value, named as importances name it.

    If a study searches several families, each family has its own axes: `cnn.depth` and `mlp.depth` are two. A trial
    with a value outside the space extends the axis.
    """
    has_families = len(space.families) > 1
    flats = {trial.number: trial.recipe.to_flat_dict() for trial in trials}
    axes: list[Axis] = []
    if has_families:
        axes.append(
            _build_axis(FAMILY_NAME, Choice(space.families), {n: flat[FAMILY_NAME] for n, flat in flats.items()})
        )
    for family in space.families:
        for variable in conditional_hyperparameters(space, family):
            own = has_families and variable.name.startswith("model.")
            name = f"{family}.{variable.name.removeprefix('model.')}" if own else variable.name
            if any(axis.name == name for axis in axes):
                continue
            values = {
                number: flat[variable.name]
                for number, flat in flats.items()
                if (not own or flat[FAMILY_NAME] == family) and _has_value(flat, variable.name)
            }
            axes.append(_build_axis(name, variable.domain, values))
    varying = [axis for axis in axes if isinstance(axis.domain, Range) or len(axis.domain.values) > 1]
    labels = short_names([axis.name for axis in varying])
    return [dataclasses.replace(axis, label=label) for axis, label in zip(varying, labels, strict=True)]


def _has_value(flat: Mapping[str, Value], name: str) -> bool:
    return name in flat and is_active(name, FAMILIES[str(flat[FAMILY_NAME])], flat)


def _build_axis(name: str, domain: Domain, values: Mapping[int, Value]) -> Axis:
    if isinstance(domain, Range):
        lower_limit = 0.0 if domain.log else -math.inf  # 0 has no position on a log axis
        numbers = {n: value for n, value in values.items() if _is_number(value) and float(value) > lower_limit}
        low, high = (end(domain.low, domain.high, *map(_as_number, numbers.values())) for end in (min, max))
        return Axis(name, name, numbers, Range(low, high, domain.log))
    categories = list(dict.fromkeys((*bounds(domain), *values.values())))
    if all(map(_is_number, categories)):
        categories.sort(key=_as_number)
    return Axis(name, name, values, Choice(tuple(categories)))


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_number(value: Value) -> float:
    assert not isinstance(value, str)
    return value


def _every_nth(values: Sequence[Value], max_ticks: int) -> list[Value]:
    return list(values[:: math.ceil(len(values) / max_ticks)])


def _log_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """Return 1, 2 and 5 times each power of ten, or fewer if those are too many; both ends if there are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [decade for decade in decades if low <= 10.0**decade <= high]
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 2 <= len(ticks) <= max_ticks:
            return ticks
    return (
        [10.0**decade for decade in powers[:: math.ceil(len(powers) / max_ticks)]] if len(powers) > 1 else [low, high]
    )


def _even_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten; integers if both ends are integers."""
    rough = (high - low) / (max_ticks - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
    if isinstance(low, int) and isinstance(high, int):
        step = max(int(step), 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]
