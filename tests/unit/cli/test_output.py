"""What a person and a script see: one line a trial, tables that lose nothing, JSON that parses, stable exit codes."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fmnist_search.cli import output
from fmnist_search.cli.output import (
    SPARKLINE_BLOCKS,
    ExitCode,
    StudyProgressDisplay,
    TrainingProgressDisplay,
    format_duration,
    format_percent,
    show_json,
    sparkline,
)
from fmnist_search.cli.serialization import search_to_dict, status_to_dict, trial_to_dict
from fmnist_search.errors import UserError
from fmnist_search.recipe.formatting import format_value_short
from fmnist_search.recipe.recipe import Recipe, recipe_hyperparameters
from fmnist_search.results.champion import Champion, ConfirmedScore
from fmnist_search.results.statistics import wilson
from fmnist_search.results.study import StopReason, StudySummary, TrialRecord
from fmnist_search.results.training import EpochReport, TrialState
from tests.support.studies import make_study

CaptureOutput = pytest.CaptureFixture[str]


def make_trial(
    number: int, state: TrialState = TrialState.COMPLETED, value: float | None = 0.9, **changes: Any
) -> TrialRecord:
    recipe = Recipe().replace({"seed": number, "model.depth": 2})
    return dataclasses.replace(TrialRecord(number, state, value, 3, recipe, seconds=2.5), **changes)


def make_report(epoch: int, accuracy: float | None) -> EpochReport:
    return EpochReport(epoch, 0.5, 0.8, None if accuracy is None else 0.6, accuracy, 0.1, 1.25)


def reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


# ------------------------------------------------------------------------------ a study as it runs


def test_without_a_terminal_every_trial_is_one_plain_line(capsys: CaptureOutput) -> None:
    with StudyProgressDisplay(make_study()) as display:
        display.on_study_start([], 0.0)
        for number, value in enumerate([0.5, 0.912, 0.7]):
            display.on_training_start(f"{number:03d} cnn 32-64", Recipe())
            display.on_epoch_end(f"{number:03d} cnn 32-64", make_report(1, value))
            display.on_trial_end(make_trial(number, value=value))
    written = capsys.readouterr()
    assert written.out == ""
    assert "\x1b" not in written.err
    assert [" ".join(line.split()) for line in written.err.splitlines()] == [
        "000 completed 50.00% cnn 32-64 2.5 s 1 of 20 trials, best 50.00%",
        "001 completed 91.20% cnn 32-64 2.5 s 2 of 20 trials, best 91.20%",
        "002 completed 70.00% cnn 32-64 2.5 s 3 of 20 trials, best 91.20%",
    ]


def test_the_columns_of_the_lines_stand_below_each_other(capsys: CaptureOutput) -> None:
    display = StudyProgressDisplay(make_study())
    for number, state in enumerate(TrialState):
        display.on_trial_end(make_trial(number, state, None if state is TrialState.FAILED else 0.5))
    lines = capsys.readouterr().err.splitlines()
    assert len({line.index("cnn 32-64") for line in lines}) == 1


def test_a_line_says_why_a_trial_failed_and_stays_one_line(capsys: CaptureOutput) -> None:
    reason = "out of memory: tried to allocate [2 GiB] of [bold]VRAM[/bold]; " + "a long story " * 20
    StudyProgressDisplay(make_study()).on_trial_end(make_trial(3, TrialState.FAILED, None, reason=reason))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("003 failed ")
    assert line.endswith(f"({reason})")
    assert "1 failed" in line


def test_the_tally_counts_what_the_budget_counts(capsys: CaptureOutput) -> None:
    display = StudyProgressDisplay(make_study())
    display.on_study_start(
        [
            make_trial(0, value=0.8),
            make_trial(1, TrialState.PRUNED, 0.95),
            make_trial(2, TrialState.PRUNED, 0.95, duplicate_of=1),
            make_trial(3, TrialState.INTERRUPTED, 0.99),
            make_trial(4, TrialState.FAILED, None),
            make_trial(5, value=0.8, duplicate_of=0),
        ],
        12.5,
    )
    display.on_trial_end(make_trial(6, value=0.7))
    assert capsys.readouterr().err.rstrip().endswith("4 of 20 trials, best 80.00%, 1 pruned, 1 failed")


def test_a_budget_of_minutes_has_no_total(capsys: CaptureOutput) -> None:
    StudyProgressDisplay(make_study(budget={"minutes": 3})).on_trial_end(make_trial(0))
    assert "1 trials, best 90.00%" in capsys.readouterr().err


def test_what_is_said_is_said_to_the_letter(capsys: CaptureOutput) -> None:
    StudyProgressDisplay(make_study()).on_message("confirming [red] and [1, 2] :smile: " + "x" * 200)
    assert capsys.readouterr().err == "confirming [red] and [1, 2] :smile: " + "x" * 200 + "\n"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal gets to see. The display is drawn a last time, and erased, when it is left."""
    screen = io.StringIO()
    monkeypatch.setattr(output, "stderr", Console(file=screen, force_terminal=True, width=120, color_system=None))
    return screen


@pytest.mark.parametrize("budget", [{"trials": 20}, {"minutes": 3}, {"trials": 20, "minutes": 3}])
def test_on_a_terminal_a_display_follows_the_running_trial(budget: dict[str, int], screen: io.StringIO) -> None:
    with StudyProgressDisplay(make_study(budget=budget)) as display:
        display.on_study_start([make_trial(0)], 2.5)
        display.on_trial_end(make_trial(1, value=0.95))
        display.on_training_start("002 cnn 32-64", Recipe())
        for epoch, value in enumerate([0.5, 0.8, 0.875], 1):
            display.on_epoch_end("002 cnn 32-64", make_report(epoch, value))
    shown = screen.getvalue()
    assert "001 completed" in shown
    assert ("small: 2 of 20 trials, best 95.00%; " if "trials" in budget else "small: 2 trials, best 95.00%; ") in shown
    assert "002 cnn 32-64  ▁▇█  87.50% after epoch 3" in shown
    assert "trials a minute, about " in shown


def test_on_a_terminal_there_is_a_display_before_the_first_epoch(screen: io.StringIO) -> None:
    with StudyProgressDisplay(make_study()) as display:
        display.on_study_start([], 0.0)
        display.on_training_start("000 cnn 32-64", Recipe())
    assert "small: 0 of 20 trials, best -; " in screen.getvalue()
    assert "000 cnn 32-64    first epoch" in screen.getvalue()


def test_a_training_is_a_line_for_each_epoch(capsys: CaptureOutput) -> None:
    display = TrainingProgressDisplay()
    display.on_training_start("train cnn 32-64", Recipe())
    display.on_epoch_end("train cnn 32-64", make_report(1, 0.75))
    display.on_epoch_end("train cnn 32-64", make_report(2, None))
    assert capsys.readouterr().err.splitlines() == [
        "train cnn 32-64",
        "  epoch 1: loss 0.5000, accuracy 80.00%, validation 75.00%, 1.2 s",
        "  epoch 2: loss 0.5000, accuracy 80.00%, validation -, 1.2 s",
    ]


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


def test_a_sparkline_of_nothing_is_nothing() -> None:
    assert sparkline([]) == ""


def test_spans_and_shares_are_for_people() -> None:
    assert [format_duration(seconds) for seconds in (0.2, 89, 90, 3_600)] == ["0 s", "89 s", "2 min", "60 min"]
    assert [format_percent(value) for value in (None, 0.0, 0.91234, 1.0)] == ["-", "0.00%", "91.23%", "100.00%"]


def test_an_error_is_its_lines_on_stderr(capsys: CaptureOutput) -> None:
    output.print_error(UserError("a.toml: [space.cnn] is wrong", "b" * 300))
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == ["error: a.toml: [space.cnn] is wrong", "error: " + "b" * 300]


def test_the_exit_codes_are_those_that_scripts_rely_on() -> None:
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


def test_a_leaderboard_is_a_row_for_each_trial(capsys: CaptureOutput) -> None:
    head, *body = leaderboard_cells(
        [make_trial(7), make_trial(11, value=0.8)], ["model.depth", "model.width_1", "batch_size"], capsys
    )
    # The network's name says its widths.
    assert head == ["trial", "val_accuracy", "network", "seconds", "depth", "batch_size"]
    assert body == [
        ["7", "90.00%", "cnn", "32-64", "2.5", "2", "128"],
        ["11", "80.00%", "cnn", "32-64", "2.5", "2", "128"],
    ]


def test_a_leaderboard_of_everything_loses_nothing(capsys: CaptureOutput) -> None:
    recipe = Recipe().replace({"model.depth": 5, "optimizer.learning_rate": 0.012345678})
    names = list(recipe_hyperparameters(type(recipe.model)))
    head, *body = leaderboard_cells([make_trial(0, recipe=recipe)], names, capsys)
    assert len(body) == 1
    flat = recipe.to_flat_dict()
    expected = [format_value_short(flat[name]) for name in names if not name.startswith("model.width_")]
    assert body[0] == ["0", "90.00%", "cnn", "32-64-128-128-128", "2.5", *expected]
    assert "…" not in "".join(head)


def test_columns_are_told_apart(capsys: CaptureOutput) -> None:
    head, _ = leaderboard_cells([make_trial(0)], ["model.activation", "optimizer.name", "schedule.name"], capsys)
    assert len(set(head)) == len(head)


# ---------------------------------------------------------------------------------------------- JSON


def test_a_summary_is_json_that_says_everything(capsys: CaptureOutput) -> None:
    recipe = make_trial(1).recipe
    champion = Champion(
        ConfirmedScore(1, recipe, (0.9, 0.91)), recipe, wilson(9_000, 10_000), "fmnist-search", "3", "champion"
    )
    rows = (
        make_trial(0, TrialState.FAILED, None, reason="Größe"),
        make_trial(1, run_id="abc"),
        make_trial(2, duplicate_of=1),
    )
    show_json(
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
    show_json([trial_to_dict(make_trial(0, recipe=recipe))])
    (trial,) = json.loads(capsys.readouterr().out, parse_constant=reject_constant)
    parsed = trial["recipe"]
    assert Recipe().replace(parsed) == recipe
    assert parsed["optimizer.nesterov"] is False


def test_json_refuses_values_without_keys_of_their_own() -> None:
    for value in (make_trial(0), TrialState.PRUNED, Recipe()):
        with pytest.raises(TypeError):
            show_json([value])


@pytest.mark.parametrize("reason", StopReason)
def test_every_stop_reason_has_a_name_and_a_sentence_in_json(reason: StopReason) -> None:
    summary = StudySummary("small", "Why?", (), reason, 0, 0.0)
    assert status_to_dict(summary)["ended_by"].isidentifier()
    assert search_to_dict(summary)["ended_by"].count(" ") >= 2


def test_nothing_is_written_to_stdout_but_what_was_asked_for() -> None:
    assert output.stderr.stderr
    assert not output.stdout.stderr
    assert output.stdout.file is sys.stdout
