"""Tables, errors, JSON and exit codes of the command line."""

from __future__ import annotations

import io
import itertools
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.text import Text

from fmnist_search.cli import output
from fmnist_search.cli.output import (
    SPARKLINE_BLOCKS,
    ExitCode,
    format_bytes,
    format_duration,
    format_percent,
    print_json,
    sparkline,
)
from fmnist_search.cli.serialization import search_to_dict, status_to_dict, trial_to_dict
from fmnist_search.errors import UserError
from fmnist_search.recipe.formatting import format_value_short
from fmnist_search.recipe.recipe import Recipe, recipe_hyperparameters
from fmnist_search.results.champion import Champion, ConfirmedScore
from fmnist_search.results.statistics import wilson
from fmnist_search.results.study import StopReason, StudySummary, TrialRecord
from fmnist_search.results.training import TrialState
from tests.support.records import make_record

CaptureOutput = pytest.CaptureFixture[str]


def reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# ------------------------------------------------------------------------------- texts of users

HOSTILE = "\x1b]0;owned\x9c\x1b[2J[red]\u202e"
ESCAPED = "\\x1b]0;owned\\x9c\\x1b[2J[red]\\u202e"


def test_control_characters_and_markup_in_texts_of_users_are_shown_as_text(capsys: CaptureOutput) -> None:
    output.stdout.print(f"study {HOSTILE}")
    output.stderr.print(f"trial {HOSTILE}", Text(HOSTILE))
    output.print_error(UserError(f"{HOSTILE}\nerror: nothing"))
    output.print_message(f"one\n{HOSTILE}")
    output.print_table(output.make_table(["a", "b"], [[HOSTILE, "x\ny"]]))
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"trial {ESCAPED} {ESCAPED}",
        f"error: {ESCAPED}\\nerror: nothing",
        f"one\\n{ESCAPED}",
    ]
    first, head, row = printed.out.splitlines()
    assert (first, head.split(), row.split()) == (f"study {ESCAPED}", ["a", "b"], [ESCAPED, "x\\ny"])


def test_live_displays_have_their_own_control_sequences_only() -> None:
    stream = io.StringIO()
    console = output.TextConsole(file=stream, force_terminal=True, width=60)
    with Live(Text(HOSTILE), console=console, auto_refresh=False):
        pass
    written = stream.getvalue()
    assert ESCAPED in written
    assert "\x1b[?25l" in written  # rich hides the cursor
    assert "\x9c" not in written


# -------------------------------------------------------------------------------------- small texts


@given(st.lists(st.integers(0, 10_848), min_size=1).map(lambda hits: [n / 10_848 for n in hits]))
def test_a_sparkline_rises_and_falls_with_its_values(values: list[float]) -> None:
    line = sparkline(values)
    assert len(line) == len(values)
    heights = [SPARKLINE_BLOCKS.index(bar) for bar in line]
    for (one, low), (other, high) in itertools.pairwise(zip(values, heights, strict=True)):
        assert low <= high if one <= other else low >= high
    assert line[values.index(min(values))] == SPARKLINE_BLOCKS[0]
    if min(values) < max(values):
        assert line[values.index(max(values))] == SPARKLINE_BLOCKS[-1]


def test_the_sparkline_of_no_values_is_empty() -> None:
    assert sparkline([]) == ""


def test_durations_percentages_and_sizes() -> None:
    assert [format_duration(seconds) for seconds in (0.2, 89, 90, 3_600)] == ["0 s", "89 s", "2 min", "60 min"]
    assert [format_bytes(count) for count in (0, 99_999, 100_000)] == ["0.0 kB", "100.0 kB", "0.1 MB"]
    assert [format_percent(value) for value in (None, 0.0, 0.91234, 1.0)] == ["-", "0.00%", "91.23%", "100.00%"]


def test_an_error_is_printed_on_stderr_line_by_line(capsys: CaptureOutput) -> None:
    output.print_error(UserError("a.toml: [space.cnn] is wrong", "b" * 300))
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == ["error: a.toml: [space.cnn] is wrong", "error: " + "b" * 300]


def test_exit_codes_are_stable() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "SUCCESS": 0,
        "UNEXPECTED_ERROR": 1,
        "USAGE_ERROR": 2,
        "NOTHING_COMPLETED": 3,
        "TOO_MANY_FAILURES": 4,
        "INTERRUPTED": 130,
    }


# -------------------------------------------------------------------------------------------- tables


def leaderboard_cells(rows: list[TrialRecord], names: list[str], capsys: CaptureOutput) -> list[list[str]]:
    output.print_table(output.leaderboard_table(rows, names))
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_leaderboard_has_a_row_for_each_trial(capsys: CaptureOutput) -> None:
    head, *body = leaderboard_cells(
        [make_record(7), make_record(11, value=0.8)], ["model.depth", "model.width_1", "batch_size"], capsys
    )
    # The name of the network contains the widths.
    assert head == ["trial", "val_accuracy", "network", "seconds", "depth", "batch_size"]
    assert body == [
        ["7", "90.00%", "cnn", "32-64", "2.5", "2", "128"],
        ["11", "80.00%", "cnn", "32-64", "2.5", "2", "128"],
    ]


def test_a_wide_leaderboard_is_not_truncated(capsys: CaptureOutput) -> None:
    recipe = Recipe().replace({"model.depth": 5, "optimizer.learning_rate": 0.012345678})
    names = list(recipe_hyperparameters(type(recipe.model)))
    head, *body = leaderboard_cells([make_record(0, recipe=recipe)], names, capsys)
    assert len(body) == 1
    flat = recipe.to_flat_dict()
    expected = [format_value_short(flat[name]) for name in names if not name.startswith("model.width_")]
    assert body[0] == ["0", "90.00%", "cnn", "32-64-128-128-128", "2.5", *expected]
    assert "…" not in "".join(head)


def test_columns_have_distinct_names(capsys: CaptureOutput) -> None:
    head, _ = leaderboard_cells([make_record(0)], ["model.activation", "optimizer.name", "schedule.name"], capsys)
    assert len(set(head)) == len(head)


# ---------------------------------------------------------------------------------------------- JSON


def test_json_of_a_search_contains_trials_and_champion(capsys: CaptureOutput) -> None:
    recipe = make_record(1).recipe
    champion = Champion(
        ConfirmedScore(1, recipe, (0.9, 0.91)), recipe, wilson(9_000, 10_000), "fmnist-search", "3", "champion"
    )
    rows = (
        make_record(0, TrialState.FAILED, None, reason="Größe"),
        make_record(1, run_id="abc"),
        make_record(2, duplicate_of=1),
    )
    print_json(
        search_to_dict(StudySummary("small", "Why?", rows, StopReason.TRIALS, 3, 12.5, run_id="def", champion=champion))
    )
    written = capsys.readouterr()
    assert written.err == ""
    parsed = json.loads(written.out, parse_constant=reject_constant)
    assert (parsed["name"], parsed["run_id"], parsed["ended_by"]) == ("small", "def", StopReason.TRIALS.value)
    assert [(trial["number"], trial["state"], trial["value"]) for trial in parsed["trials"]] == [
        (0, "failed", None),
        (1, "completed", 0.9),
        (2, "completed", 0.9),
    ]
    assert parsed["trials"][0]["reason"] == "Größe"
    assert parsed["trials"][1]["recipe"] == recipe.to_flat_dict()
    assert parsed["champion"]["confirmed"]["accuracies"] == [0.9, 0.91]
    assert parsed["champion"]["test"]["hits"] == 9_000


def test_json_keeps_every_digit_of_a_recipe(capsys: CaptureOutput) -> None:
    recipe = Recipe().replace({"optimizer.learning_rate": 0.1 + 0.2, "optimizer.nesterov": False})
    print_json([trial_to_dict(make_record(0, recipe=recipe))])
    (trial,) = json.loads(capsys.readouterr().out, parse_constant=reject_constant)
    parsed = trial["recipe"]
    assert Recipe().replace(parsed) == recipe
    assert parsed["optimizer.nesterov"] is False


def test_json_refuses_values_without_keys_of_their_own() -> None:
    for value in (make_record(0), TrialState.PRUNED, Recipe()):
        with pytest.raises(TypeError):
            print_json([value])


@pytest.mark.parametrize("reason", StopReason)
def test_every_stop_reason_has_a_name_and_a_sentence_in_json(reason: StopReason) -> None:
    summary = StudySummary("small", "Why?", (), reason, 0, 0.0)
    assert status_to_dict(summary)["ended_by"].isidentifier()
    assert search_to_dict(summary)["ended_by"].count(" ") >= 2


def test_the_consoles_write_to_their_own_streams() -> None:
    assert output.stderr.stderr
    assert not output.stdout.stderr
    assert output.stdout.file is sys.stdout
