"""Reports say what a study found, in Markdown that renders and pictures that can be read."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fmnist_search.evaluate import wilson
from fmnist_search.recipe import Recipe
from fmnist_search.report import LEADERS_SHOWN, confusion_figure, short_text, study_note
from fmnist_search.results import Champion, Confirmed, Ending, State, StudySummary, TrialRow

SEARCHED = ["model.depth", "optimizer.learning_rate", "batch_size"]
SPACE = {"space.cnn.depth": "1, 2", "space.common.optimizer.learning_rate": "0.001 to 0.1, log"}


def row(number: int, state: State = State.COMPLETED, value: float | None = 0.9, **changes: Any) -> TrialRow:
    recipe = Recipe().replace({"seed": number, "optimizer.learning_rate": 0.123456789})
    return dataclasses.replace(TrialRow(number, state, value, 3, recipe, seconds=30.0), **changes)


def summary(*rows: TrialRow, champion: Champion | None = None) -> StudySummary:
    return StudySummary("small", "Does it work?", rows, Ending.TRIALS, len(rows), 60.0, champion=champion)


def tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a text, by rows and cells, without the line below the head."""
    found: list[list[list[str]]] = []
    before = ""
    for line in markdown.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    for table in found:
        assert set(table.pop(1)) == {"---"}
        assert len({len(cells) for cells in table}) == 1
    return found


# -------------------------------------------------------------------------------------- the note


def test_a_note_says_question_winner_leaders_space_and_next_command() -> None:
    note = study_note(summary(row(0, value=0.8), row(1, value=0.91234)), SEARCHED, SPACE)
    assert note.startswith("# small\n\nDoes it work?\n\n")
    assert "**Best trial**: 1 (cnn 32-64-128), validation accuracy 91.23%." in note
    assert "Trials: 2 completed, in 1.0 minutes of training." in note
    leaders, space = tables(note)
    assert leaders == [
        ["trial", "network", "validation accuracy", *SEARCHED],
        ["1", "cnn 32-64-128", "91.23%", "3", "0.1235", "128"],
        ["0", "cnn 32-64-128", "80.00%", "3", "0.1235", "128"],
    ]
    assert space == [
        ["hyperparameter", "domain"],
        ["`space.cnn.depth`", "1, 2"],
        ["`space.common.optimizer.learning_rate`", "0.001 to 0.1, log"],
    ]
    assert note.endswith("    fmnist-search leaderboard 'small'\n    fmnist-search ui\n")


def test_a_note_of_a_study_without_results_says_so() -> None:
    for rows in ((), (row(0, State.FAILED, None), row(1, State.PRUNED, 0.5), row(2, State.PRUNED, 0.6))):
        note = study_note(summary(*rows), SEARCHED, SPACE)
        assert "No trial has completed yet." in note
        assert len(tables(note)) == 1
    assert "Trials: 2 pruned, 1 failed, in " in note
    assert "Trials: none, in " in study_note(summary(), SEARCHED, SPACE)


@pytest.mark.parametrize("ending", Ending)
def test_a_note_says_why_a_study_ended(ending: Ending) -> None:
    ended = dataclasses.replace(summary(row(0)), ended_by=ending)
    assert ending.value in study_note(ended, SEARCHED, SPACE).lower()


def test_a_note_shows_the_best_ten() -> None:
    note = study_note(summary(*(row(number, value=number / 100) for number in range(30))), SEARCHED, SPACE)
    leaders = tables(note)[0][1:]
    assert [cells[0] for cells in leaders] == [str(number) for number in range(29, 29 - LEADERS_SHOWN, -1)]


def test_a_note_tells_of_the_champion_and_its_one_look_at_the_test_images() -> None:
    chosen = row(4).recipe
    champion = Champion(Confirmed(4, chosen, (0.9, 0.92)), chosen, wilson(9_000, 10_000), "m", "7", "challenger")
    note = study_note(summary(row(4), champion=champion), SEARCHED, SPACE)
    assert (
        "**Chosen**: trial 4 (cnn 32-64-128), confirmed at 91.00% ± 1.41% (n = 2) on fresh seeds; 90.00% on the test "
        "images (95 % interval 89.40% to 90.57%), looked at once. Registered as `m` version 7, alias `challenger`."
    ) in note


def test_a_hyperparameter_that_a_network_does_not_have_is_a_dash() -> None:
    mlp = row(0, recipe=Recipe().replace({"model.family": "mlp"}))
    note = study_note(summary(mlp), ["model.width", "model.kernel_1"], SPACE)
    assert tables(note)[0][1] == ["0", "mlp 256-256", "90.00%", "256", "-"]


@given(st.floats(-1e300, 1e300) | st.integers() | st.booleans())
def test_a_short_text_reads_back_as_nearly_the_value(value: float | bool) -> None:
    text = short_text(value)
    if isinstance(value, bool):
        assert text in ("true", "false")
    elif isinstance(value, int):
        assert int(text) == value
    else:
        assert len(text) <= 11
        assert float(text) == pytest.approx(value, rel=1e-3)


# ------------------------------------------------------------------------------------ the summary


def test_leaders_are_completed_trials_from_the_best_down_and_of_equals_the_earlier() -> None:
    rows = [
        row(0, value=0.8),
        row(1, value=0.9),
        row(2, State.PRUNED, 0.99),
        row(3, value=0.9),
        row(4, State.FAILED, 0.95),
        row(5, value=0.9, duplicate_of=1),
        row(6, value=0.0),
    ]
    found = summary(*rows)
    assert [leader.number for leader in found.leaders] == [1, 3, 0, 6]
    assert found.best == rows[1]
    assert summary(rows[2]).best is None


def test_a_trial_that_was_answered_from_an_earlier_one_does_not_count() -> None:
    found = summary(
        row(0), row(1, duplicate_of=0), row(2, State.PRUNED, 0.5), row(3, State.PRUNED, 0.5, duplicate_of=2)
    )
    assert {state: found.count(state) for state in State} == {
        State.COMPLETED: 1,
        State.PRUNED: 1,
        State.FAILED: 0,
        State.INTERRUPTED: 0,
    }


def test_a_single_seed_has_no_deviation() -> None:
    assert str(Confirmed(0, Recipe(), (0.5,))) == "50.00% (n = 1)"


# ------------------------------------------------------------------------------------ the pictures


def shares(figure: Figure) -> Any:
    """What the colours show."""
    drawn = figure.axes[0].images[0].get_array()
    assert drawn is not None
    return drawn.tolist()


def test_a_confusion_matrix_shows_every_count_and_every_class() -> None:
    figure = confusion_figure([[5, 0, 1], [0, 7, 0], [2, 3, 4]], ["a", "b", "c"], "title")
    axes = figure.axes[0]
    assert axes.get_title() == "title"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    cells = {(text.get_position(), text.get_text()) for text in axes.texts}
    # Rows are the true classes: what stands at x = 2, y = 0 was of the first class and taken for the third.
    assert ((2, 0), "1") in cells
    assert ((0, 2), "2") in cells
    assert len(cells) == 6
    assert shares(figure)[0] == pytest.approx([5 / 6, 0, 1 / 6])


def test_a_class_without_images_leaves_its_row_empty() -> None:
    figure = confusion_figure([[0, 0], [1, 1]], ["a", "b"], "title")
    assert shares(figure) == [[0, 0], [0.5, 0.5]]
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
