"""Tests of `reporting.study_note`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fmnist_search.config.conditional_space import varying_names
from fmnist_search.config.domain import Choice, Domain, Fixed, Range
from fmnist_search.config.sections import Budget
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.recipe import Recipe
from fmnist_search.reporting.study_note import (
    MAX_FRONT,
    MAX_LEADERS,
    study_note,
)
from fmnist_search.results.champion import Champion, ConfirmedScore
from fmnist_search.results.objectives import TrialCost
from fmnist_search.results.statistics import wilson
from fmnist_search.results.study import Importances, StopReason, StudySummary, TrialRecord
from fmnist_search.results.training import TrialState
from tests.support.trials import make_importances, make_trials

STUDIES_FOLDER = Path(__file__).parents[3] / "studies"

SEARCHED_NAMES = ["model.depth", "optimizer.learning_rate", "batch_size"]
SPACE = {"space.cnn.depth": "1, 2", "space.common.optimizer.learning_rate": "0.001 to 0.1, log"}


def make_trial(
    number: int, state: TrialState = TrialState.COMPLETED, value: float | None = 0.9, **changes: Any
) -> TrialRecord:
    recipe = Recipe().replace({"seed": number, "optimizer.learning_rate": 0.123456789})
    return dataclasses.replace(TrialRecord(number, state, value, 3, recipe, seconds=30.0), **changes)


def make_summary(*trials: TrialRecord, champion: Champion | None = None) -> StudySummary:
    return StudySummary("small", "Does it work?", trials, StopReason.TRIALS, len(trials), 60.0, champion=champion)


def parse_tables(markdown: str) -> list[list[list[str]]]:
    """Return the tables of a text as rows of cells, without the line below the head."""
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


def test_a_note_has_question_best_trial_leaderboard_space_and_next_commands() -> None:
    note = study_note(make_summary(make_trial(0, value=0.8), make_trial(1, value=0.91234)), SEARCHED_NAMES, SPACE)
    assert note.startswith("# small\n\nDoes it work?\n\n")
    assert "**Best trial**: 1 (cnn 32-64-128), validation accuracy 91.23%." in note
    assert "Trials: 2 completed, in 1.0 minutes of training." in note
    leaders, space = parse_tables(note)
    assert leaders == [
        ["trial", "network", "validation accuracy", "depth", "learning_rate", "batch_size"],
        ["1", "cnn 32-64-128", "91.23%", "3", "0.1235", "128"],
        ["0", "cnn 32-64-128", "80.00%", "3", "0.1235", "128"],
    ]
    assert space == [
        ["hyperparameter", "domain", "trial 1, best"],
        ["`space.cnn.depth`", "1, 2", "3"],
        ["`space.common.optimizer.learning_rate`", "0.001 to 0.1, log", "0.1235"],
    ]
    commands = ["    fmnist-search leaderboard small", "    fmnist-search promote small", "    fmnist-search ui"]
    assert note.endswith("\n".join(commands) + "\n")


def test_a_note_of_a_study_that_minimizes_a_cost_has_its_pareto_front() -> None:
    costs = [(0.8, 10_000), (0.7, 20_000), (0.9, 30_000)]
    trials = [make_trial(n, value=value, cost=TrialCost("mult_adds", cost)) for n, (value, cost) in enumerate(costs)]
    note = study_note(make_summary(*trials), [], SPACE)
    front, leaders, _ = parse_tables(note)
    assert note.index("## Pareto front") < note.index("## Leaderboard")
    assert front[0] == leaders[0] == ["trial", "network", "validation accuracy", "multiply-adds"]
    assert [(row[0], row[2], row[3]) for row in front[1:]] == [("0", "80.00%", "10,000"), ("2", "90.00%", "30,000")]
    assert [row[0] for row in leaders[1:]] == ["2", "0", "1"]


def test_a_note_has_the_front_of_accuracy_and_seconds_per_epoch_unless_one_trial_is_best_in_both() -> None:
    pairs = [(0.8, 1.5), (0.7, 2.0), (0.9, 4.25), (0.95, 0.0)]  # the last was recorded without seconds
    trials = [make_trial(n, value=value, seconds_per_epoch=seconds) for n, (value, seconds) in enumerate(pairs)]
    note = study_note(make_summary(*trials), [], SPACE)
    leaders, front, _ = parse_tables(note)
    assert note.index("## Leaderboard") < note.index("## Pareto front of accuracy and seconds per epoch")
    assert leaders[0] == ["trial", "network", "validation accuracy"]
    assert [(row[0], row[2], row[3]) for row in front[1:]] == [("0", "80.00%", "1.50"), ("2", "90.00%", "4.25")]
    assert "Pareto front" not in study_note(make_summary(*trials[:2]), [], SPACE)


def test_a_long_pareto_front_is_cut_at_its_cheap_end() -> None:
    count = MAX_FRONT + 3
    trials = [make_trial(n, value=n / 100, cost=TrialCost("parameters", 1_000 * n)) for n in range(1, count + 1)]
    note = study_note(make_summary(*trials), [], SPACE)
    assert [row[0] for row in parse_tables(note)[0][1:]] == [str(n) for n in range(4, count + 1)]
    assert "3 trials with a lower accuracy and a lower cost are left out." in note


def test_a_note_shows_how_much_of_the_budget_was_used() -> None:
    trials = (
        make_trial(0),
        make_trial(1, TrialState.FAILED, None, epochs=0),
        make_trial(2, duplicate_of=0),
        make_trial(3, TrialState.PRUNED, 0.1, epochs=1),
    )
    found = dataclasses.replace(make_summary(*trials), searched_seconds=90.0)
    used = parse_tables(study_note(found, SEARCHED_NAMES, SPACE, budget=Budget(trials=10, minutes=3)))[0]
    assert used == [
        ["budget", "used", "limit"],
        ["trials", "3", "10"],
        ["epochs of all trials", "4", "no limit"],
        ["minutes of search", "1.5", "3"],
        ["failed trials", "1", "10"],
    ]


def test_a_note_shows_findings_and_the_number_of_trials_behind_them() -> None:
    found = dataclasses.replace(
        make_summary(make_trial(0)), boundary_warnings=("model.depth: the best 5 all take its largest value, 5",)
    )
    shares = {"optimizer.learning_rate": 0.6, "model.depth": 0.3, "batch_size": 0.1}
    note = study_note(found, SEARCHED_NAMES, SPACE, importances=Importances(shares, 12))
    assert (
        "## Findings\n\n- most important, by PED-ANOVA over 12 completed trials: optimizer.learning_rate 60%, "
        "model.depth 30%, batch_size 10%\n- model.depth: the best 5 all take its largest value, 5\n"
    ) in note
    assert "## Findings" not in study_note(make_summary(make_trial(0)), SEARCHED_NAMES, SPACE)


@pytest.mark.parametrize(
    ("domain", "value", "shown"),
    [
        (Range(1e-3, 1e-1, log=True), 1.1e-3, "0.0011 (lower end)"),
        (Range(1e-3, 1e-1, log=True), 1e-2, "0.01"),
        (Range(1e-3, 1e-1, log=True), 0.5, "0.5 (upper end)"),
        (Choice((0.001, 0.01, 0.1)), 0.1, "0.1 (largest)"),
        (Choice((0.001, 0.01, 0.1)), 0.001, "0.001 (smallest)"),
        (Choice((0.001, 0.1)), 0.1, "0.1"),
        (Fixed(0.1), 0.1, "0.1"),
        ("0.001 to 0.1", 0.1, "0.1"),
    ],
)
def test_a_note_marks_values_at_an_end_of_their_domain(domain: Domain | str, value: float, shown: str) -> None:
    best = make_trial(0, recipe=Recipe().replace({"optimizer.learning_rate": value}))
    note = study_note(make_summary(best), SEARCHED_NAMES, {"space.common.optimizer.learning_rate": domain})
    assert parse_tables(note)[-1][1] == ["`space.common.optimizer.learning_rate`", str(domain), shown]


def test_the_space_shows_best_and_selected_trial_and_a_dash_for_values_they_do_not_have() -> None:
    best = make_trial(0, recipe=Recipe().replace({"model.depth": 2}))
    chosen = Recipe().replace({"model.family": "mlp", "model.depth": 3})
    champion = Champion(ConfirmedScore(7, chosen, (0.9,)), chosen, wilson(9, 10), "m", "1", "champion")
    space = {"space.common.family": "cnn, mlp", "space.cnn.width_3": "8, 16", "space.mlp.depth": "1 to 4"}
    assert parse_tables(study_note(make_summary(best, champion=champion), [], space))[-1] == [
        ["hyperparameter", "domain", "trial 0, best", "trial 7, confirmed"],
        ["`space.common.family`", "cnn, mlp", "cnn", "mlp"],
        ["`space.cnn.width_3`", "8, 16", "-", "-"],
        ["`space.mlp.depth`", "1 to 4", "-", "3"],
    ]


markdown_texts = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cf", "Zl", "Zp")) | st.just("\n")
)


@given(markdown_texts | st.from_regex(r"[-#*+>|`_~0-9.)\[\]<>&\\ \na]{1,20}", fullmatch=True))
def test_any_question_is_rendered_as_one_line_of_plain_text(question: str) -> None:
    asked = dataclasses.replace(make_summary(make_trial(0)), question=question)
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(study_note(asked, SEARCHED_NAMES, SPACE))
    inline = [block for block in blocks if block.type == "inline"]
    expected = " ".join(question.split())
    if expected:
        assert (blocks[3].type, inline[1].content != "") == ("paragraph_open", True)
        assert "".join(child.content for child in inline[1].children or []) == expected
        assert {child.type for child in inline[1].children or []} == {"text"}
    assert [block.tag for block in blocks if block.type == "heading_open"] == ["h1", "h2", "h2", "h2"]
    assert sum(block.type == "table_open" for block in blocks) == 2


@pytest.mark.parametrize("file", sorted(STUDIES_FOLDER.glob("*.toml")), ids=lambda file: file.stem)
def test_the_note_of_every_bundled_study_fits_into_mlflow(file: Path) -> None:
    config = StudyConfig.load(file)
    trials = make_trials(config, 120)
    names = varying_names(config.space)
    champion = Champion(
        ConfirmedScore(2, trials[2].recipe, (0.9,) * 5), trials[0].recipe, wilson(9, 10), "m", "1", "champion"
    )
    found = dataclasses.replace(
        make_summary(*trials, champion=champion),
        boundary_warnings=("a finding of more than a hundred letters " * 3,) * 4,
    )
    note = study_note(
        found, names, dict(config.domains()), budget=config.budget, importances=make_importances(names, 60)
    )
    assert len(note) <= 7_500
    parse_tables(note)


def test_the_note_of_a_study_without_completed_trials_says_so() -> None:
    for trials in (
        (),
        (
            make_trial(0, TrialState.FAILED, None),
            make_trial(1, TrialState.PRUNED, 0.5),
            make_trial(2, TrialState.PRUNED, 0.6),
        ),
    ):
        note = study_note(make_summary(*trials), SEARCHED_NAMES, SPACE)
        assert "No trial has completed yet." in note
        assert len(parse_tables(note)) == 1
    assert "Trials: 2 pruned, 1 failed, in " in note
    assert "Trials: none, in " in study_note(make_summary(), SEARCHED_NAMES, SPACE)


@pytest.mark.parametrize("ending", StopReason)
def test_a_note_shows_why_a_study_ended(ending: StopReason) -> None:
    ended = dataclasses.replace(make_summary(make_trial(0)), stop_reason=ending)
    assert ending.value in study_note(ended, SEARCHED_NAMES, SPACE).lower()


def test_a_note_shows_the_ten_best_trials() -> None:
    note = study_note(
        make_summary(*(make_trial(number, value=number / 100) for number in range(30))), SEARCHED_NAMES, SPACE
    )
    leaders = parse_tables(note)[0][1:]
    assert [cells[0] for cells in leaders] == [str(number) for number in range(29, 29 - MAX_LEADERS, -1)]


def test_a_note_describes_the_selected_model_and_its_test_accuracy() -> None:
    chosen = make_trial(4).recipe
    champion = Champion(ConfirmedScore(4, chosen, (0.9, 0.92)), chosen, wilson(9_000, 10_000), "m", "7", "challenger")
    note = study_note(make_summary(make_trial(4), champion=champion), SEARCHED_NAMES, SPACE)
    assert (
        "**Confirmed**: trial 4 (cnn 32-64-128), validation accuracy 91.00% ± 1.41% (n = 2) on fresh seeds; "
        "test accuracy 90.00% (95 % interval 89.40% to 90.57%), measured once. Its model was trained for 9 epochs on "
        "49,152 images of Fashion-MNIST, schedule constant.\n\n"
        "**Registered**: `models:/m/7`, challenger when it was compared."
    ) in note


def test_a_hyperparameter_that_a_network_does_not_have_is_a_dash() -> None:
    mlp = make_trial(0, recipe=Recipe().replace({"model.family": "mlp"}))
    note = study_note(make_summary(mlp), ["model.width", "model.kernel_1"], SPACE)
    assert parse_tables(note)[0][1] == ["0", "mlp 256-256", "90.00%", "256", "-"]
