"""Progress of studies and trainings: lines without a terminal, a live display with one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fmnist_search.cli.progress import StudyProgressDisplay, TrainingProgressDisplay
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.results.study import RunningTrial
from fmnist_search.results.training import EpochReport, TrialState
from fmnist_search.training.loop import Progress
from tests.support.records import make_record
from tests.support.studies import make_study

CaptureOutput = pytest.CaptureFixture[str]


def make_report(epoch: int, accuracy: float | None) -> EpochReport:
    return EpochReport(epoch, 0.5, 0.8, None if accuracy is None else 0.6, accuracy, 0.1, 1.25)


def test_without_a_terminal_each_trial_is_one_line(capsys: CaptureOutput) -> None:
    with StudyProgressDisplay(make_study()) as display:
        display.on_study_start([], 0.0)
        for number, value in enumerate([0.5, 0.912, 0.7]):
            display.on_training_start(f"{number:03d} cnn 32-64", Recipe())
            display.on_epoch_end(f"{number:03d} cnn 32-64", make_report(1, value))
            display.on_trial_end(make_record(number, value=value))
    written = capsys.readouterr()
    assert written.out == ""
    assert "\x1b" not in written.err
    assert [" ".join(line.split()) for line in written.err.splitlines()] == [
        "000 completed 50.00% cnn 32-64 2.5 s 1 of 20 trials, best 50.00%",
        "001 completed 91.20% cnn 32-64 2.5 s 2 of 20 trials, best 91.20%",
        "002 completed 70.00% cnn 32-64 2.5 s 3 of 20 trials, best 91.20%",
    ]


def test_the_lines_of_trials_are_aligned(capsys: CaptureOutput) -> None:
    display = StudyProgressDisplay(make_study())
    for number, state in enumerate(TrialState):
        display.on_trial_end(make_record(number, state, None if state is TrialState.FAILED else 0.5))
    lines = capsys.readouterr().err.splitlines()
    assert len({line.index("cnn 32-64") for line in lines}) == 1


def test_the_line_of_a_failed_trial_contains_the_reason(capsys: CaptureOutput) -> None:
    reason = "out of memory: tried to allocate [2 GiB] of [bold]VRAM[/bold]; " + "a long story " * 20
    StudyProgressDisplay(make_study()).on_trial_end(make_record(3, TrialState.FAILED, None, reason=reason))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("003 failed ")
    assert line.endswith(f"({reason})")
    assert "1 failed" in line


def test_the_counts_are_those_of_the_budget(capsys: CaptureOutput) -> None:
    display = StudyProgressDisplay(make_study())
    display.on_study_start(
        [
            make_record(0, value=0.8),
            make_record(1, TrialState.PRUNED, 0.95),
            make_record(2, TrialState.PRUNED, 0.95, duplicate_of=1),
            make_record(3, TrialState.INTERRUPTED, 0.99),
            make_record(4, TrialState.FAILED, None),
            make_record(5, value=0.8, duplicate_of=0),
        ],
        12.5,
    )
    display.on_trial_end(make_record(7, TrialState.PAUSED, 0.99))  # a paused trial counts, and has no line of its own
    display.on_trial_end(make_record(6, value=0.7))
    assert capsys.readouterr().err.rstrip().endswith("5 of 20 trials, best 80.00%, 1 pruned, 1 paused, 1 failed")


def test_a_budget_of_minutes_has_no_total(capsys: CaptureOutput) -> None:
    StudyProgressDisplay(make_study(budget={"minutes": 3})).on_trial_end(make_record(0))
    assert "1 trials, best 90.00%" in capsys.readouterr().err


def test_messages_are_printed_without_markup_or_wrapping(capsys: CaptureOutput) -> None:
    StudyProgressDisplay(make_study()).on_message("confirming [red] and [1, 2] :smile: " + "x" * 200)
    assert capsys.readouterr().err == "confirming [red] and [1, 2] :smile: " + "x" * 200 + "\n"


@pytest.fixture
def terminal() -> Console:
    """Return the console of a terminal that records what it shows; a display renders once more when it is closed."""
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def shown_on(terminal: Console) -> str:
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


@pytest.mark.parametrize("budget", [{"trials": 20}, {"minutes": 3}, {"trials": 20, "minutes": 3}])
def test_the_live_display_shows_the_running_trial(budget: dict[str, int], terminal: Console) -> None:
    with StudyProgressDisplay(make_study(budget=budget), terminal) as display:
        display.on_study_start([make_record(0)], 2.5)
        display.on_trial_end(make_record(1, value=0.95))
        display.on_training_start("002 cnn 32-64", Recipe())
        for epoch, value in enumerate([0.5, 0.8, 0.875], 1):
            display.on_epoch_end("002 cnn 32-64", make_report(epoch, value))
    shown = shown_on(terminal)
    assert "001 completed" in shown
    assert ("small: 2 of 20 trials, best 95.00%; " if "trials" in budget else "small: 2 trials, best 95.00%; ") in shown
    assert "002 cnn 32-64  ▁▇█  87.50% after epoch 3" in shown
    assert "trials a minute, about " in shown


def test_the_live_display_starts_before_the_first_epoch(terminal: Console) -> None:
    with StudyProgressDisplay(make_study(), terminal) as display:
        display.on_study_start([], 0.0)
        display.on_training_start("000 cnn 32-64", Recipe())
    assert "small: 0 of 20 trials, best -; " in shown_on(terminal)
    assert "000 cnn 32-64    first epoch" in shown_on(terminal)


def test_the_live_display_of_another_process_shows_its_running_trials(terminal: Console) -> None:
    with StudyProgressDisplay(make_study(), terminal) as display:
        display.on_study_start([make_record(0, value=0.8)], 2.5)
        display.show_running([RunningTrial(1, Recipe(), (0.5, 0.75)), RunningTrial(2, Recipe(), ())])
    shown = shown_on(terminal)
    assert "small: 1 of 20 trials, best 80.00%; " in shown
    assert f"001 {Recipe().label}  ▁█  75.00% after epoch 2" in shown
    assert f"002 {Recipe().label}    first epoch" in shown


def test_a_training_prints_a_line_for_each_epoch(capsys: CaptureOutput) -> None:
    display = TrainingProgressDisplay()
    display.on_training_start("train cnn 32-64", Recipe())
    display.on_epoch_end("train cnn 32-64", make_report(1, 0.75))
    display.on_epoch_end("train cnn 32-64", make_report(2, None))
    assert capsys.readouterr().err.splitlines() == [
        "train cnn 32-64",
        "  epoch 1: loss 0.5000, accuracy 80.00%, validation loss 0.6000, accuracy 75.00%, 1.2 s",
        "  epoch 2: loss 0.5000, accuracy 80.00%, 1.2 s",
    ]


def test_a_terminal_shows_a_bar_during_an_epoch(terminal: Console) -> None:
    assert TrainingProgressDisplay().progress_callback is None, "without a terminal the progress is not computed"
    display = TrainingProgressDisplay(terminal)
    display.on_training_start("train lenet", Recipe())
    assert display.progress_callback
    display.progress_callback(Progress(epoch=1, fraction=0.5, loss=0.4321, accuracy=0.875))
    display.on_epoch_end("train lenet", EpochReport(1, 0.4, 0.88, 0.3, 0.9, 0.001, 2.0))
    display.on_training_end("train lenet")
    shown = shown_on(terminal)
    assert "epoch 1 of 9: loss 0.4321, accuracy 87.50%" in shown
    assert "50%" in shown
    assert "validation loss 0.3000, accuracy 90.00%" in shown
