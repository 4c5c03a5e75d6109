"""Domains: their values, and the boundaries at which a value lies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.config.domain import (
    BOUNDARY_FRACTION,
    Boundary,
    Choice,
    Domain,
    Fixed,
    Range,
    boundary_of,
    domain_values,
    value_count,
)
from fmnist_search.config.space import parse_space
from fmnist_search.recipe.hyperparameters import Value
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.search.suggest import grid_points


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (Fixed(3), (3,)),
        (Fixed("sgd"), ("sgd",)),
        (Choice((64, 16, 32)), (64, 16, 32)),
        (Choice((True, False)), (True, False)),
        (Range(1, 4), (1, 2, 3, 4)),
        (Range(16, 64, step=16), (16, 32, 48, 64)),
        (Range(1, 6, step=2), (1, 3, 5)),
        (Range(1, 8, log=True), (1, 2, 3, 4, 5, 6, 7, 8)),
        (Range(0.0, 0.5, step=0.25), (0.0, 0.25, 0.5)),
        (Range(0.0, 0.6, step=0.25), (0.0, 0.25, 0.5)),
        (Range(0.0, 0.5), None),
        (Range(1e-3, 1e-1, log=True), None),
    ],
    ids=str,
)
def test_finite_domain_has_a_list_of_values(domain: Domain, expected: tuple[Value, ...] | None) -> None:
    assert domain_values(domain) == expected
    assert value_count(domain) == (None if expected is None else len(expected))


def test_step_that_misses_the_end_by_rounding_is_the_last_value() -> None:
    # 0.1 * 3 is a little more than 0.3, and (0.3 - 0) / 0.1 a little less than 3.
    assert domain_values(Range(0.0, 0.3, step=0.1)) == pytest.approx((0.0, 0.1, 0.2, 0.3))
    assert value_count(Range(0.0, 0.3, step=0.1)) == 4


def test_integers_stay_integers_and_floats_stay_floats() -> None:
    assert [type(value) for value in domain_values(Range(1, 3)) or ()] == [int] * 3
    assert [type(value) for value in domain_values(Range(0.0, 1.0, step=1.0)) or ()] == [float] * 2


def test_long_range_is_counted_without_a_list() -> None:
    assert value_count(Range(1, 10**15)) == 10**15
    assert value_count(Range(0, 10**15, step=2)) == 10**15 // 2 + 1


@st.composite
def stepped_ranges(draw: st.DrawFn) -> Range:
    """Return ranges of decimal numbers as people write them."""
    digits = draw(st.integers(0, 4))
    low, steps, step = draw(st.tuples(st.integers(0, 1000), st.integers(1, 50), st.integers(1, 100)))
    low_text, high_text, step_text = (f"{n}e-{digits}" for n in (low, low + steps * step, step))
    return Range(float(low_text), float(high_text), step=float(step_text))


@given(stepped_ranges())
def test_listed_values_of_a_stepped_range_lie_in_it(domain: Range) -> None:
    listed = domain_values(domain)
    assert listed
    assert all(domain.contains(value) for value in listed)
    assert listed[-1] == pytest.approx(domain.high)
    assert len(set(listed)) == len(listed) == value_count(domain)


def test_last_step_is_not_larger_than_the_hyperparameter_allows() -> None:
    # 0.3 + 6 * 0.1 is 0.9000000000000001, and label smoothing ends at 0.9.
    space = parse_space({"common": {"label_smoothing": {"low": 0.3, "high": 0.9, "step": 0.1}}})
    recipes = [Recipe().replace(point) for point in grid_points(space)]
    assert [recipe.label_smoothing for recipe in recipes] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


# ------------------------------------------------------------------------------------- boundaries

RATE = Range(1e-3, 1e-1, log=True)


@pytest.mark.parametrize(
    ("domain", "value", "expected"),
    [
        (Range(0.1, 0.5), 0.1, Boundary.LOWER),
        (Range(0.1, 0.5), 0.1 + 0.39 * BOUNDARY_FRACTION, Boundary.LOWER),
        (Range(0.1, 0.5), 0.1 + 0.41 * BOUNDARY_FRACTION, None),
        (Range(0.1, 0.5), 0.49, Boundary.UPPER),
        (Range(0.1, 0.5), 0.7, Boundary.UPPER),
        # Near the lower end, but a quarter of the range away from it in the logarithm.
        (RATE, 0.00317, None),
        (RATE, 0.095, Boundary.UPPER),
        (RATE, 0.0, Boundary.LOWER),
        (Choice((128, 256, 64)), 64, Boundary.LOWER),
        (Choice((128, 256, 64)), 128, None),
        (Choice((128, 256, 64)), 256, Boundary.UPPER),
        (Choice((64, 128)), 64, None),
        (Choice(("sgd", "adam", "adamw")), "sgd", None),
        (Choice((True, False)), True, None),
        (Fixed(3), 3, None),
    ],
    ids=str,
)
def test_value_lies_at_a_boundary(domain: Domain, value: Value, expected: Boundary | None) -> None:
    assert boundary_of(domain, value) is expected
