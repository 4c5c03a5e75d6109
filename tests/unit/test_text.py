"""Tests of `fmnist_search.text`."""

from __future__ import annotations

import pytest

from fmnist_search.text import first_line, markdown_table


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("no such file\nsee above"), "no such file"), (ValueError(""), "ValueError"), (KeyError(), "KeyError")],
)
def test_first_line_is_never_empty(error: Exception, expected: str) -> None:
    assert first_line(error) == expected


def test_markdown_table_separates_head_and_body() -> None:
    assert markdown_table([["run", "accuracy"], ["a", "0.9"]]) == "| run | accuracy |\n| --- | --- |\n| a | 0.9 |"
    assert markdown_table([["run"]]) == "| run |\n| --- |"
