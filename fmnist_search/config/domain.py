"""Domains: the values that a study allows for one hyperparameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.hyperparameters import Value

BOUNDARY_FRACTION = 0.05
"""A value within this fraction of a range from an end lies at that end."""

MIN_ORDERED_CHOICES = 3
"""A value of a shorter list lies at no end: of two values, each would."""


@dataclass(frozen=True)
class Fixed:
    """One value, the same in every trial."""

    value: Value

    def __str__(self) -> str:
        return format_value(self.value)

    def contains(self, value: Value) -> bool:
        """Return whether the domain has this value."""
        return value == self.value

    def to_toml_value(self) -> Any:
        """Return the domain as it is written in a study file."""
        return self.value


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join(map(format_value, self.values))

    def contains(self, value: Value) -> bool:
        """Return whether the domain has this value."""
        return value in self.values

    def to_toml_value(self) -> Any:
        """Return the domain as it is written in a study file."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    They are uniform, or uniform in their logarithm with `log`; with `step`, they are `low` plus multiples of it.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        how = ", log" if self.log else f", step {self.step}" if self.step else ""
        return f"{self.low} to {self.high}{how}"

    def contains(self, value: Value) -> bool:
        """Return whether the domain has this value."""
        if isinstance(value, str) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-8

    def relative_position(self, value: float) -> float:
        """Return where a value lies: 0 at `low`, 1 at `high`; minus infinity for a value without a logarithm."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -math.inf

    def is_widened_by(self, other: Domain) -> bool:
        """Return whether another domain contains this range and samples it alike.

        This is the only change of a domain that Optuna accepts in a study that exists.
        """
        return (
            isinstance(other, Range)
            and (other.log, other.step) == (self.log, self.step)
            and other.low <= self.low
            and self.high <= other.high
            and other.contains(self.low)
        )

    def to_toml_value(self) -> Any:
        """Return the domain as it is written in a study file."""
        options = {"log": self.log or None, "step": self.step}
        return {"low": self.low, "high": self.high, **{k: v for k, v in options.items() if v is not None}}


Domain = Fixed | Choice | Range


def bounds(domain: Domain) -> tuple[Value, ...]:
    """Return the values of a fixed domain or a choice, or the first and the last value of a range."""
    match domain:
        case Fixed(value):
            return (value,)
        case Choice(values):
            return values
    return (domain.low, domain.high)


def domain_values(domain: Domain) -> tuple[Value, ...] | None:
    """Return all values of a domain, or None if it is infinite."""
    match domain:
        case Fixed(value):
            return (value,)
        case Choice(choices):
            return choices
        case Range(low, high, _, step) if isinstance(low, int) and isinstance(high, int):
            return tuple(range(low, high + 1, int(step or 1)))
        case Range(low, high, _, step) if step:
            # A last step that misses `high` only by rounding is `high` itself.
            return tuple(min(low + step * n, high) for n in range(math.floor((high - low) / step + 1e-8) + 1))
    return None


def value_count(domain: Domain) -> int | None:
    """Return the number of values of a domain, or None if it is infinite."""
    match domain:
        case Range(low, high, _, step) if isinstance(low, int) and isinstance(high, int):
            return len(range(low, high + 1, int(step or 1)))
    values = domain_values(domain)
    return None if values is None else len(values)


def is_ordered(domain: Domain) -> bool:
    """Return whether the values of a domain are numbers."""
    return isinstance(domain, Range) or (
        isinstance(domain, Choice) and not any(isinstance(value, str | bool) for value in domain.values)
    )


class Boundary(Enum):
    """An end of a domain."""

    LOWER = "lower"
    UPPER = "upper"


def boundary_of(domain: Domain, value: Value) -> Boundary | None:
    """Return the end of a domain at which a value lies or beyond which it is; None if it lies at no end."""
    if isinstance(value, str | bool):
        return None
    match domain:
        case Range():
            position = domain.relative_position(value)
            lower, upper = position <= BOUNDARY_FRACTION, position >= 1 - BOUNDARY_FRACTION
        case Choice(choices) if len(choices) >= MIN_ORDERED_CHOICES:
            numbers = [choice for choice in choices if isinstance(choice, int | float)]
            lower, upper = value <= min(numbers), value >= max(numbers)
        case _:
            return None
    return Boundary.LOWER if lower else Boundary.UPPER if upper else None
