"""Tests of `fmnist_search.text`."""

from __future__ import annotations

import os

import pytest

from fmnist_search.text import first_line, markdown_table, printable


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("no such file\nsee above"), "no such file"), (ValueError(""), "ValueError"), (KeyError(), "KeyError")],
)
def test_first_line_is_never_empty(error: Exception, expected: str) -> None:
    assert first_line(error) == expected


def test_markdown_table_separates_head_and_body() -> None:
    assert markdown_table([["run", "accuracy"], ["a", "0.9"]]) == "| run | accuracy |\n| --- | --- |\n| a | 0.9 |"
    assert markdown_table([["run"]]) == "| run |\n| --- |"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Schöner Schuh 鞋 👟.png", "Schöner Schuh 鞋 👟.png"),
        ("\x1b[2J\x9b2J\x07", "\\x1b[2J\\x9b2J\\x07"),
        ("one\nerror: two\r\t", "one\\nerror: two\\r\\t"),
        ("gnp.\u202etxt\u2028", "gnp.\\u202etxt\\u2028"),
        (os.fsdecode(b"\xff.png"), "\\udcff.png"),
    ],
)
def test_printable_shows_control_characters_as_escapes(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(expected) == expected


def test_printable_keeps_what_it_is_told_to() -> None:
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"
