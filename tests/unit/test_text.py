"""Tests of `fmnist_search.text`."""

from __future__ import annotations

import os
import time

import pytest

from fmnist_search.errors import UserError
from fmnist_search.text import (
    escape_markdown,
    first_line,
    markdown_table,
    printable,
    redact,
    redacted_command,
    without_credentials,
)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("(see postgresql://me:secret@host/db)", "(see postgresql://me:***@host/db)"),
        ("postgresql://me:se:cr/et?#@host/db is down", "postgresql://me:***@host/db is down"),
        ("postgresql://me:sec@ret@host/db", "postgresql://me:***@host/db"),
        ("mysql://me:secret@one/db and mysql://me:secret@two/db", "mysql://me:***@one/db and mysql://me:***@two/db"),
        ("postgresql:///db?host=h&user=me&password=secret&sslmode=require", "postgresql:///db?host=h&user=me&password=***&sslmode=require"),
        ("host=h password=secret dbname=d", "host=h password=*** dbname=d"),
        ("MLFLOW_TRACKING_TOKEN=secret fmnist-search", "MLFLOW_TRACKING_TOKEN=*** fmnist-search"),
        ("TOKEN=true-secret", "TOKEN=***"),
        ("HTTPS://secret@host/path", "HTTPS://***@host/path"),
        ("https://me:secret@host/path", "https://***@host/path"),
        ("https://secret:@host", "https://***@host"),
        ("1.https://me:secret@host", "1.https://***@host"),
    ],
)  # fmt: skip
def test_passwords_and_tokens_are_removed(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert UserError(text).lines == (expected,)
    assert str(UserError(text)) == expected
    assert first_line(ValueError(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me@host/db",
        "sqlite:////home/me@work/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1, models:/fmnist-search@champion",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        "name: 'a@b' is taken",
        "--set execution.ray.allow_no_token=true --workers 2",
    ],
)
def test_text_without_a_password_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("part", ["x", "x-", "_", "password", "token=", "x.", "9"])
def test_a_long_text_takes_no_longer_than_its_length(part: str) -> None:
    started = time.process_time()
    for text in (part * 20_000, f"{part * 20_000}://me:secret@host"):
        assert "secret" not in redact(text) + redacted_command([text])
    assert time.process_time() - started < 20  # it took a minute


def test_a_command_is_shown_without_passwords() -> None:
    command = ["fmnist-search", "search", "a b.toml", "--tracking-uri", "postgresql://me:my secret@host/db"]
    assert redacted_command(command) == "fmnist-search search 'a b.toml' --tracking-uri 'postgresql://me:***@host/db'"
    command = ["fmnist-search", "search", "--tracking-uri=https://me:secret@host"]
    assert redacted_command(command) == "fmnist-search search '--tracking-uri=https://***@host'"


def test_the_address_of_a_page_holds_no_credentials() -> None:
    assert without_credentials("https://me:secret@host:5000/a@b") == "https://host:5000/a@b"
    assert without_credentials("http://host:5000") == "http://host:5000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Does width_1 = 64 help at 1e-3?", "Does width_1 = 64 help at 1e-3?"),
        ("<b>", "&#60;b&#62;"),
        ("__init__ _a_ a_b", "&#95;&#95;init&#95;&#95; &#95;a&#95; a_b"),
        ("- 1. one\n# two", "&#45; 1. one # two"),
        ("1. one", "1&#46; one"),
        (
            ":smile: at 10:30: https://a.example WWW.a.example",
            "&#58;smile: at 10&#58;30: https&#58;//a.example WWW&#46;a.example",
        ),
        ("a\u202eb", "a&#92;u202eb"),
    ],
)
def test_escape_markdown_shows_text_as_it_is(text: str, expected: str) -> None:
    assert escape_markdown(text) == expected


@pytest.mark.parametrize("text", ["9" * 100_000, "a" * 100_000, "a-" * 50_000, "token" * 20_000])
def test_redacting_a_long_text_takes_no_time(text: str) -> None:
    started = time.process_time()
    assert redact(text) == text
    assert time.process_time() - started < 10
