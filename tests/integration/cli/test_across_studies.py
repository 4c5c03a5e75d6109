"""Commands about several stored studies: `status --all`, `leaderboard --all` and `compare STUDY STUDY`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.golden.project import unpack
from tests.integration.conftest import CommandResult, FinishedStudy, RunCommand, run_command
from tests.support.stored_studies import store_trials
from tests.support.studies import SMALL_SPACE, make_study


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """Return a folder with the studies `rates` and `golden`, which have different images."""
    return FinishedStudy(unpack(tmp_path_factory.mktemp("across")) / "project", CommandResult(0, "", ""))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with studies of the same images, whose trials were not trained: each value is given."""
    folder = tmp_path_factory.mktemp("searched")
    wider = {**SMALL_SPACE, "common": {**SMALL_SPACE["common"], "batch_size": [64, 256]}}
    cheap = make_study(name="cheap", data=DATA, sampler="random", budget={"trials": 3, "epochs": 2})
    long = make_study(wider, name="long", data=DATA, sampler="random", budget={"trials": 4, "epochs": 4})
    store_trials(folder, cheap, {(0.6, 0.7): 1.0, (0.2,): 1.0, (0.7, 0.8): 1.0})
    store_trials(folder, long, {(0.1, 0.2, 0.3, 0.5): 2.0, (0.6, 0.7, 0.8, 0.9): 2.0, (0.3,): 0.5}, threads=2)
    twin = make_study(name="twin", data=DATA, sampler="random", budget={"trials": 3, "epochs": 2})
    store_trials(folder, twin, {(0.6, 0.8): 1.0, (0.2,): 1.0, (0.7, 0.81): 2.0})
    store_trials(folder, make_study(name="hopeless", data=DATA), {(0.1, 0.2): 1.0, (0.2, 0.3): 2.0, (0.1, 0.1): 1.0})
    store_trials(folder, make_study(name="2026", data=DATA), {})
    return folder


DATA = {"train_images": 1000, "validation": 500}


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
    assert (golden["confirmed"], golden["alias"], by_name["rates"]["confirmed"]) == ("mlp 16", "champion", "-")
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


def test_leaderboard_of_all_studies_has_one_table_for_equal_images(searched: Path) -> None:
    found = run_command(searched, "leaderboard", "--all", "--json").json
    assert [(row["study"], row["value"]) for row in found] == [
        ("long", 0.9),
        ("twin", 0.81),
        ("cheap", 0.8),
        ("twin", 0.8),
        ("cheap", 0.7),
        ("long", 0.5),
    ]


# ---------------------------------------------------------------------------------- compare STUDY...


def compare(folder: Path, *arguments: object) -> Any:
    return run_command(folder, "compare", *arguments, "--json").json


def test_studies_are_compared_after_equal_compute(searched: Path) -> None:
    # After 5 epochs, all that `cheap` has, only the first trial of `long` has ended; after 3 seconds as well.
    found = compare(searched, "cheap", "long")
    assert found["comparable"] is True
    assert found["same_epochs"] == {"amount": 5, "values": [0.8, 0.5], "better": "cheap", "lead": pytest.approx(0.3)}
    assert found["same_seconds"]["amount"] == 3.0
    assert found["same_seconds"]["values"] == [0.8, 0.5]
    cheap, long = found["studies"]
    assert (cheap["epochs"], cheap["seconds"], cheap["completed"], cheap["pruned"]) == (5, 3.0, 2, 1)
    assert (long["epochs"], long["seconds"], long["best"]["value"]) == (9, 4.5, 0.9)
    assert cheap["progress"] == [
        {"epochs": 2, "seconds": 1.0, "best": 0.7},
        {"epochs": 5, "seconds": 3.0, "best": 0.8},
    ]


def test_settings_in_which_studies_differ_are_named(searched: Path) -> None:
    found = compare(searched, "cheap", "long")
    names = ["budget.epochs", "budget.trials", "space.common.batch_size", "execution.threads"]
    assert found["differing"] == names
    assert [[study["settings"][name] for name in names] for study in found["studies"]] == [
        ["2", "3", "64, 128", "1"],
        ["4", "4", "64, 256", "2"],
    ]


def test_the_text_has_a_column_for_each_study_and_says_which_is_ahead(searched: Path) -> None:
    results, settings, conclusions = run_command(searched, "compare", "cheap", "long").stdout.split("\n\n")
    rows = {row[0]: row[1:] for row in cells(results)[1:]}
    assert rows["trials"] == ["2 completed, 1 pruned", "2 completed, 1 pruned"]
    assert rows["trained epochs"] == ["5", "9"]
    assert rows["best after 5 trained epochs"] == ["80.00%", "50.00%"]
    assert [row[0] for row in cells(settings)[1:]] == compare(searched, "cheap", "long")["differing"]
    assert conclusions.splitlines() == [
        "equal: data, sampler, pruner, seed, start; different: budget, space, execution",
        "after 5 trained epochs, cheap is ahead by 30.00 points",
        "after 3.0 s of training, cheap is ahead by 30.00 points",
        "the seconds depend on the execution as well, in which they differ",
    ]
    everything = run_command(searched, "compare", "cheap", "long", "--all").stdout.split("\n\n")[1]
    assert {"data.validation", "sampler.name", "seed"} <= {row[0] for row in cells(everything)[1:]}


def test_a_lead_that_may_be_chance_and_equal_values_are_called_so(searched: Path) -> None:
    _, conclusions = run_command(searched, "compare", "cheap", "twin").stdout.split("\n\n")
    equal_settings, after_epochs, after_seconds = conclusions.splitlines()
    assert equal_settings == "their settings are equal"
    ahead, _, limit = after_epochs.partition(" (up to ")
    assert ahead == "after 5 trained epochs, twin is ahead by 1.00 points, which may be chance"
    assert 1 < float(limit.removesuffix(" points)")) < 10  # two standard errors of a value from 500 images
    assert after_seconds == "after 3.0 s of training, the best values are equal"


def test_a_study_is_not_ahead_of_one_whose_trials_were_all_pruned(searched: Path) -> None:
    lines = run_command(searched, "compare", "cheap", "hopeless").stdout.splitlines()
    assert "after 5 trained epochs, only cheap had completed a trial" in lines


def test_values_from_other_images_are_not_compared(stored: FinishedStudy) -> None:
    found = compare(stored.folder, "rates", "golden")
    assert found["comparable"] is False
    assert found["incomparable_because"] == ["data.train_images", "data.validation"]
    assert (found["same_epochs"]["better"], found["same_seconds"]["better"]) == (None, None)
    last = stored.run("compare", "rates", "golden").stdout.splitlines()[-1]
    reason = "because they come from other images or splits: data.train_images, data.validation"
    assert last == f"their values cannot be compared, {reason}"


def test_a_study_without_trials_is_compared(searched: Path) -> None:
    found = compare(searched, "cheap", "2026")
    assert (found["same_epochs"]["amount"], found["same_epochs"]["values"]) == (0, [None, None])
    text = run_command(searched, "compare", "cheap", "2026").stdout
    assert "after 0 trained epochs, no trial had completed" in text.splitlines()


@pytest.mark.filterwarnings("error")
def test_the_best_values_are_drawn(searched: Path) -> None:
    outcome = run_command(searched, "compare", "cheap", "long", "2026", "--output", "both.png")
    assert (outcome.exit_code, outcome.stderr) == (0, "both.png: written\n")
    assert (searched / "both.png").read_bytes().startswith(b"\x89PNG")
    again = run_command(searched, "compare", "cheap", "long", "--output", "both.png")
    assert again.errors == ["error: both.png: exists already; give another name, or replace it with --force"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cheap"], ["'cheap'", "two or more"]),
        (["cheap", "lnog"], ["'lnog'", "did you mean 'long'"]),
        (["cheap", "3"], ["'3'", "is a run or a trial", "'cheap' is a study"]),
        (["cheap", "long", "--study", "long"], ["--study long", "leave it out"]),
        (["0", "1", "--output", "x.png"], ["--output x.png", "studies"]),
        (["cheap", "long", "--output", "x.jpg"], ["x.jpg", ".png"]),
    ],
)
def test_words_that_cannot_be_compared_are_one_error_line(
    searched: Path, arguments: list[str], expected: list[str]
) -> None:
    outcome = run_command(searched, "compare", *arguments)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    (line,) = outcome.errors
    for text in expected:
        assert text in line
