"""Tests of `recipe.formatting`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.recipe.formatting import format_value_short


@given(st.floats(-1e300, 1e300) | st.integers() | st.booleans())
def test_a_short_text_parses_to_nearly_the_same_value(value: float | bool) -> None:
    text = format_value_short(value)
    if isinstance(value, bool):
        assert text in ("true", "false")
    elif isinstance(value, int):
        assert int(text) == value
    else:
        assert len(text) <= 11
        assert float(text) == pytest.approx(value, rel=1e-3)
