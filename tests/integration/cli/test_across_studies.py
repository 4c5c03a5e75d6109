"""Commands about several stored studies: `status --all`, `leaderboard --all` and `compare STUDY STUDY`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.project import unpack
from tests.integration.conftest import CommandResult, FinishedStudy, RunCommand


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """Return a folder with the studies `rates` and `golden`, which have different images."""
    return FinishedStudy(unpack(tmp_path_factory.mktemp("across")) / "project", CommandResult(0, "", ""))


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines() if line.strip()]


# ------------------------------------------------------------------------------------ status --all


def test_status_of_all_studies_has_a_row_for_each(stored: FinishedStudy) -> None:
    single = {name: stored.run("status", name, "--json").json for name in ("rates", "golden")}
    assert stored.run("status", "--all", "--json").json == list(single.values())
    head, *rows = cells(stored.run("status", "--all").stdout)
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(by_name) == ["rates", "golden"]
    golden = by_name["golden"]
    assert [golden[state] for state in ("completed", "pruned", "failed")] == ["3", "4", "1"]
    assert (golden["best"], golden["trial"]) == (f"{single['golden']['best']['value']:.2%}", "3")
    assert (golden["champion"], by_name["rates"]["champion"]) == ("mlp 16", "-")
    assert (golden["dataset"], golden["training"], golden["validation"]) == ("fashion-mnist", "1,000", "1,000")


# ------------------------------------------------------------------------------- leaderboard --all


def test_leaderboard_of_all_studies_ranks_trials_of_the_same_images(stored: FinishedStudy) -> None:
    rows = stored.run("leaderboard", "--all", "--top", "3", "--json").json
    assert [row["study"] for row in rows] == ["rates"] * 3 + ["golden"] * 3
    expected = [
        {"study": name, **trial}
        for name in ("rates", "golden")
        for trial in stored.run("leaderboard", name, "--top", "3", "--json").json
    ]
    assert [{key: value for key, value in row.items() if key != "data"} for row in rows] == expected
    assert rows[0]["data"] == {"dataset": "fashion-mnist", "train_images": 500, "validation": 500, "seed": 0}

    first, second = stored.run("leaderboard", "--all", "--top", "3").stdout.split("\n\n")
    assert first.splitlines()[0] == "fashion-mnist, 500 training and 500 validation images, split seed 0"
    assert [row[0] for row in cells(first)[2:]] == ["rates"] * 3
    assert [row[0] for row in cells(second)[2:]] == ["golden"] * 3


@pytest.mark.parametrize("command", ["status", "leaderboard"])
def test_all_studies_and_one_study_are_a_contradiction(stored: FinishedStudy, command: str) -> None:
    outcome = stored.run(command, "golden", "--all")
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.errors == ["error: --all: shows all studies, and 'golden' names one; give one of the two"]


@pytest.mark.parametrize("arguments", [["status"], ["leaderboard"]])
def test_all_studies_of_an_empty_folder_say_how_to_start(
    command: RunCommand, tmp_path: Path, arguments: list[str]
) -> None:
    outcome = command(*arguments, "--all")
    assert outcome.exit_code == 2
    (line,) = outcome.errors
    assert "no study yet" in line
    assert list(tmp_path.iterdir()) == []
