"""Hyperparameters as axes of charts: positions from 0 to 1, ticks and their labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmnist_search.config.conditional_space import conditional_hyperparameters
from fmnist_search.config.domain import Choice, Domain, Range, bounds
from fmnist_search.config.space import Space
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value_short, short_names
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import is_active
from fmnist_search.results.study import TrialRecord

FAMILY_NAME = "model.family"

MAX_TICKS, MAX_TICKS_SMALL = 7, 4
GOLDEN_RATIO_CONJUGATE = 0.618034
"""Its multiples fall evenly into the unit interval, however many there are."""


@dataclass(frozen=True)
class Axis:
    """A hyperparameter that a study searches, as an axis from 0 to 1.

    `domain_values` are by trial number; a trial that has no such hyperparameter is not among them. What is chosen from
    a list has its categories, evenly apart; what lies in a range goes from its low to its high, as the range is drawn
    from.
    """

    name: str
    label: str
    values: Mapping[int, Value]
    domain: Range | Choice

    @property
    def is_ordered(self) -> bool:
        """Whether what lies between two of its places means something."""
        return isinstance(self.domain, Range) or all(map(_is_number, self.domain.values))

    def position(self, trial: TrialRecord, jitter: float = 0.0) -> float | None:
        """Where a trial stands, from 0 to 1; None where it has no such hyperparameter.

        Trials of one category stand side by side within `jitter` of the width of a category, always the same way.
        """
        value = self.values.get(trial.number)
        if value is None:
            return None
        aside = (trial.number * GOLDEN_RATIO_CONJUGATE % 1 - 0.5) * jitter
        return self._position(value) + (aside / len(self.domain.values) if isinstance(self.domain, Choice) else 0.0)

    def format_value(self, trial: TrialRecord) -> str:
        """A trial's value for people."""
        value = self.values.get(trial.number)
        return "-" if value is None else format_value_short(value)

    def ticks(self, max_ticks: int = MAX_TICKS) -> list[tuple[float, str]]:
        """Places and texts of a few values to read it by."""
        match self.domain:
            case Choice(values):
                shown: Sequence[Value] = _every_nth(values, max_ticks)
            case Range(low, high, log):
                shown = _log_ticks(low, high, max_ticks) if log else _even_ticks(low, high, max_ticks)
        return [(self._position(value), format_value_short(value)) for value in shown]

    def _position(self, value: Value) -> float:
        if isinstance(self.domain, Choice):
            return self.domain.values.index(value) / max(len(self.domain.values) - 1, 1)
        return self.domain.relative_position(float(value))


# -------------------------------------------------------------------------------------------- axes


def build_axes(space: Space, trials: Sequence[TrialRecord]) -> list[Axis]:
    """An axis for each hyperparameter that trials differ in, named as importances name it.

    Where several families are searched, each has its own: `cnn.depth` and `mlp.depth` are two. Trials that were tried
    from outside the space stretch an axis.
    """
    several = len(space.families) > 1
    flats = {row.number: row.recipe.to_flat_dict() for row in trials}
    found: list[Axis] = []
    if several:
        found.append(
            _build_axis(FAMILY_NAME, Choice(space.families), {n: flat[FAMILY_NAME] for n, flat in flats.items()})
        )
    for family in space.families:
        for variable in conditional_hyperparameters(space, family):
            own = several and variable.name.startswith("model.")
            name = f"{family}.{variable.name.removeprefix('model.')}" if own else variable.name
            if any(axis.name == name for axis in found):
                continue
            values = {
                number: flat[variable.name]
                for number, flat in flats.items()
                if (not own or flat[FAMILY_NAME] == family) and _has_value(flat, variable.name)
            }
            found.append(_build_axis(name, variable.domain, values))
    varying = [axis for axis in found if isinstance(axis.domain, Range) or len(axis.domain.values) > 1]
    labels = short_names([axis.name for axis in varying])
    return [dataclasses.replace(axis, label=label) for axis, label in zip(varying, labels, strict=True)]


def _has_value(flat: Mapping[str, Value], name: str) -> bool:
    return name in flat and is_active(name, FAMILIES[str(flat[FAMILY_NAME])], flat)


def _build_axis(name: str, domain: Domain, values: Mapping[int, Value]) -> Axis:
    if isinstance(domain, Range):
        above = 0.0 if domain.log else -math.inf
        numbers = {n: value for n, value in values.items() if _is_number(value) and float(value) > above}
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
    """Ones, twos and fives of each decade, or fewer where those are too many; the ends where they are too few."""
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
    """Multiples of one, two or five times a power of ten; whole ones where the ends are."""
    rough = (high - low) / (max_ticks - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
    if isinstance(low, int) and isinstance(high, int):
        step = max(int(step), 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]
