"""Commands that show studies and study files, as text and as JSON."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fmnist_search.config.toml_files import recipe_from_toml
from fmnist_search.recipe.recipe import Recipe
from tests.integration.conftest import CommandResult, FinishedStudy, RunCommand, run_command, start_python

# A grid: each learning rate has five trials, and those of the largest rate are the best.
RATES_STUDY = """
name = "rates"
question = "Which rate learns anything [bold]in one epoch[/bold] :fire:?"
builds_on = "tiny"
sampler = "grid"
pruner = "none"

[data]
train_images = 600
validation = 1000

[budget]
epochs = 1

[space.common]
batch_size = 50
optimizer.learning_rate = [1e-6, 1e-5, 1e-2]

[space.mlp]
depth = 1
width = { low = 20, high = 24 }

[finalists]
recipes = 0

[execution]
workers = 1
threads = 1
precision = "float32"
"""
TRIAL_COUNT = 15


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """Return a folder with a grid search that has tried every recipe."""
    folder = tmp_path_factory.mktemp("inspected")
    (folder / "rates.toml").write_text(RATES_STUDY)
    outcome = run_command(folder, "search", "rates.toml")
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)


@pytest.fixture(scope="module")
def trials(finished: FinishedStudy) -> list[dict[str, Any]]:
    """Return all trials, the best first."""
    rows: list[dict[str, Any]] = finished.run("leaderboard", "--top", TRIAL_COUNT, "--json").json
    assert len(rows) == TRIAL_COUNT
    return rows


def assert_single_error(outcome: CommandResult, *expected: str, code: int = 2) -> None:
    assert outcome.exit_code == code, outcome
    assert len(outcome.errors) == 1, outcome.stderr
    assert not outcome.stdout
    for text in expected:
        assert text in outcome.errors[0]


def parse_table(text: str) -> list[list[str]]:
    """Return the cells of a table; two spaces or more separate them."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines() if line.strip()]


# -------------------------------------------------------------------------------------------- status


def test_status_shows_the_question_the_trials_and_the_best(
    finished: FinishedStudy, trials: list[dict[str, Any]]
) -> None:
    question, counts, best, *_ = finished.run("status").stdout.splitlines()
    assert question == "rates: Which rate learns anything [bold]in one epoch[/bold] :fire:?"
    assert counts == "trials: 15 completed; its space is exhausted"
    first = trials[0]
    width = first["recipe"]["model.width"]
    assert best == f"best: trial {first['number']} (mlp {width}) at {first['value']:.2%}"


def test_status_shows_domains_at_whose_boundary_the_best_trials_are(finished: FinishedStudy) -> None:
    # At a rate of one in a million the network learns nothing, whatever its width.
    line = "optimizer.learning_rate: the best 5 all take its largest value, 0.01; offer larger ones"
    assert f"at a boundary: {line}" in finished.run("status", "rates").stdout.splitlines()
    assert f"rates: {line}" in finished.result.stderr.splitlines()


def test_status_as_json(finished: FinishedStudy, trials: list[dict[str, Any]]) -> None:
    found = finished.run("status", "rates", "--json").json
    assert (found["study"], found["completed"], found["pruned"], found["failed"]) == ("rates", TRIAL_COUNT, 0, 0)
    assert found["ended_by"] == "exhausted"
    assert found["best"] == trials[0]
    assert found["champion"] is None
    assert [line.partition(":")[0] for line in found["edges"]] == ["optimizer.learning_rate"]
    assert MlflowClient(finished.tracking_uri).get_run(found["run_id"]).info.run_name == "rates"


# ---------------------------------------------------------------------------------------------- show


@pytest.mark.slow
def test_a_process_writes_all_its_output_before_it_ends(finished: FinishedStudy) -> None:
    command = ["-m", "fmnist_search", "leaderboard", "--top", str(TRIAL_COUNT), "--json"]
    with start_python(finished.folder, *command) as process:
        stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    assert stdout == finished.run(*command[2:]).stdout
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, *command], cwd=finished.folder, stdout=full, check=False).returncode != 0


def test_show_shows_the_best_trial_by_default(finished: FinishedStudy, trials: list[dict[str, Any]]) -> None:
    best = trials[0]["number"]
    assert finished.run("show").stdout == finished.run("show", "best").stdout == finished.run("show", best).stdout


@pytest.mark.parametrize("rank", [0, 7, TRIAL_COUNT - 1])
def test_show_shows_the_result_the_curve_the_values_and_the_page(
    finished: FinishedStudy, trials: list[dict[str, Any]], rank: int
) -> None:
    row = trials[rank]
    text = finished.run("show", row["number"]).stdout
    width, rate = row["recipe"]["model.width"], row["recipe"]["optimizer.learning_rate"]
    lines = text.splitlines()
    assert lines[0] == f"trial {row['number']}: mlp {width}, completed, {row['value']:.2%}"
    assert f"{row['curve'][0]:.2%}; " in lines[1]
    values = dict(cells for cells in parse_table(text) if len(cells) == 2 and "." in cells[0])
    assert values == {"model.width": str(width), "optimizer.learning_rate": str(rate)}
    assert f"/runs/{row['run_id']}?workflowType=machine_learning " in text
    assert f"fmnist-search train --from-run {row['run_id']}" in text


def test_show_as_json_adds_study_and_page_to_the_row_of_the_leaderboard(
    finished: FinishedStudy, trials: list[dict[str, Any]]
) -> None:
    row = trials[3]
    found = finished.run("show", row["number"], "--study", "rates", "--json").json
    page = found.pop("page")
    assert found == {"study": "rates", **row}
    experiment = MlflowClient(finished.tracking_uri).get_run(row["run_id"]).info.experiment_id
    assert (
        page == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{row['run_id']}?workflowType=machine_learning"
    )


@pytest.mark.parametrize("rank", [0, 9])
def test_show_prints_the_recipe_of_a_trial(finished: FinishedStudy, trials: list[dict[str, Any]], rank: int) -> None:
    row = trials[rank]
    outcome = finished.run("show", "best" if rank == 0 else row["number"], "--recipe")
    assert recipe_from_toml(outcome.stdout) == Recipe().replace(row["recipe"])
    assert outcome.stdout.endswith("\n")
    assert not outcome.stdout.endswith("\n\n")


def test_a_printed_recipe_can_be_trained_and_gives_the_same_curve(
    finished: FinishedStudy, trials: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "best.toml"
    path.write_text(finished.run("show", "best", "--recipe").stdout)
    again = finished.run("train", path, "--threads", 1, "--json").json
    assert [epoch["val_accuracy"] for epoch in again["epochs"]] == trials[0]["curve"]


def test_a_missing_trial_or_study_is_named(finished: FinishedStudy) -> None:
    assert_single_error(finished.run("show", 99), "show '99'", "'rates'", "from 0 to 14", "`best`")
    assert_single_error(finished.run("show", "worst"), "show 'worst'", "`best`")
    assert_single_error(finished.run("show", "best", "--study", "ratse"), "ratse", "did you mean 'rates'")


# ---------------------------------------------------------------------------------------- importance


def test_importance_lists_the_most_important_first(finished: FinishedStudy) -> None:
    outcome = finished.run("importance", "rates")
    head, *rows = outcome.stdout.splitlines()
    assert head == "rates: PED-ANOVA over 15 completed trials, without pruned ones"
    cells = parse_table("\n".join(rows))
    assert cells[0] == ["hyperparameter", "share"]
    assert [row[0] for row in cells[1:]] == ["optimizer.learning_rate", "model.width"]
    shares = [float(row[1].rstrip("%")) for row in cells[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert not outcome.stderr


def test_importance_as_json(finished: FinishedStudy) -> None:
    found = finished.run("importance", "--json").json
    assert (found["study"], found["trials"]) == ("rates", TRIAL_COUNT)
    assert list(found["importances"]) == ["optimizer.learning_rate", "model.width"]
    assert sum(found["importances"].values()) == pytest.approx(1)


# --------------------------------------------------------------------------------------------- space

TWO_FAMILY_STUDY = """
name = "both"
[budget]
trials = 5
[space.common]
family = ["cnn", "mlp"]
batch_size = [64, 128]
optimizer.learning_rate = { low = 1e-3, high = 1e-1, log = true }
[space.cnn]
depth = [1, 2, 3]
width_2 = { low = 16, high = 64, step = 16 }
[space.mlp]
depth = 1
width = [64, 128]
"""


@pytest.fixture
def both(tmp_path: Path) -> Path:
    path = tmp_path / "both.toml"
    path.write_text(TWO_FAMILY_STUDY)
    return path


def test_space_shows_domains_sizes_and_conditions(command: RunCommand, both: Path) -> None:
    outcome = command("space", "both.toml")
    *rows, total = parse_table(outcome.stdout)
    assert rows == [
        ["family", "hyperparameter", "domain", "values", "only if"],
        ["cnn", "model.depth", "1, 2, 3", "3"],
        ["cnn", "model.width_2", "16 to 64, step 16", "4", "model.depth = 2, 3"],
        ["all", "optimizer.learning_rate", "0.001 to 0.1, log", "endless"],
        ["all", "batch_size", "64, 128", "2"],
        ["mlp", "model.width", "64, 128", "2"],
    ]
    # 2 batch sizes x (1 network of one block + 2 x 4 deeper ones + 2 of the other family)
    assert total == [f"{2 * (1 + 2 * 4 + 2)} recipes times endless values of optimizer.learning_rate"]
    assert (outcome.exit_code, outcome.stderr) == (0, "")


def test_space_as_json(command: RunCommand, both: Path) -> None:
    found = command("space", "both.toml", "--json").json
    assert (found["study"], found["recipes"], found["endless"]) == ("both", 22, ["optimizer.learning_rate"])
    rows = {row["hyperparameter"]: row for row in found["space"]}
    assert rows["model.width_2"] == {
        "family": "cnn",
        "hyperparameter": "model.width_2",
        "domain": "16 to 64, step 16",
        "values": 4,
        "where": {"model.depth": [2, 3]},
    }
    assert rows["optimizer.learning_rate"]["values"] is None
    assert rows["model.width"]["family"] == "mlp"


def test_space_applies_overrides(command: RunCommand, both: Path) -> None:
    found = command(
        "space", "both.toml", "--set", "model.family=cnn", "--set", "model.depth=2", "--set",
        "optimizer.learning_rate=0.01", "--json",
    ).json  # fmt: skip
    assert (found["recipes"], found["endless"]) == (2 * 4, [])
    assert {row["hyperparameter"]: row["where"] for row in found["space"]} == {"model.width_2": {}, "batch_size": {}}


def test_space_shows_what_a_sampler_samples_at_random(command: RunCommand, both: Path) -> None:
    left = ["cnn.depth", "cnn.width_2", "mlp.width"]
    assert command("space", "both.toml", "--sampler", "gp", "--json").json["drawn_at_random"] == left
    last = command("space", "both.toml", "--sampler", "gp").stdout.splitlines()[-1]
    assert last == "gp samples independently: cnn.depth, cnn.width_2, mlp.width"
    assert "independently" not in command("space", "both.toml").stdout


def test_space_refuses_what_search_refuses(command: RunCommand, both: Path) -> None:
    assert command("space", "both.toml", "--pruner", "one-epoch").exit_code == 0
    assert_single_error(
        command("space", "both.toml", "--sampler", "grid"), "optimizer.learning_rate", "which a grid cannot be"
    )
    assert_single_error(command("space", "both.toml", "--set", "model.dpeth=2"), "did you mean 'model.depth'")
    assert_single_error(command("space", "bth.toml"), "bth.toml: no such file", "both.toml")


def test_commands_about_files_write_nothing(command: RunCommand, both: Path) -> None:
    for arguments in (["space", "both.toml"], ["studies", "check", "both.toml"], ["studies", "list", "."]):
        assert command(*arguments).exit_code == 0
    assert [path.name for path in both.parent.iterdir()] == ["both.toml"]


# ------------------------------------------------------------------------------------------- studies


@pytest.fixture
def further_files(finished: FinishedStudy) -> Iterator[Path]:
    """Add a study file that was not searched and an invalid one."""
    (finished.folder / "both.toml").write_text(TWO_FAMILY_STUDY)
    (finished.folder / "invalid.toml").write_text(TWO_FAMILY_STUDY.replace("depth = [1, 2, 3]", "dpeth = [1, 2, 3]"))
    yield finished.folder
    (finished.folder / "both.toml").unlink()
    (finished.folder / "invalid.toml").unlink()


def test_studies_list_shows_files_with_their_results(
    finished: FinishedStudy, trials: list[dict[str, Any]], further_files: Path
) -> None:
    outcome = finished.run("studies", "list", ".")
    question = "Which rate learns anything [bold]in one epoch[/bold] :fire:?"
    best = f"{trials[0]['value']:.2%}"
    assert parse_table(outcome.stdout) == [
        ["study", "builds on", "trials", "best", "file", "question"],
        ["both", "-", "-", "-", "both.toml"],
        ["rates", "tiny", "15", best, "rates.toml", question],
    ]
    assert outcome.exit_code == 0
    messages = outcome.stderr.splitlines()
    assert messages[0] == "invalid.toml: is not a valid study; see `fmnist-search studies check invalid.toml`"
    assert "space.cnn.dpeth" in messages[1]


def test_studies_list_as_json(finished: FinishedStudy, trials: list[dict[str, Any]], further_files: Path) -> None:
    both, rates = finished.run("studies", "list", ".", "--json").json
    assert both == {
        "study": "both",
        "builds_on": None,
        "trials": None,
        "best": None,
        "file": "both.toml",
        "question": "",
    }
    assert rates == {
        "study": "rates",
        "builds_on": "tiny",
        "trials": TRIAL_COUNT,
        "best": trials[0]["value"],
        "file": "rates.toml",
        "question": "Which rate learns anything [bold]in one epoch[/bold] :fire:?",
    }


def test_studies_list_shows_studies_without_a_file(finished: FinishedStudy, tmp_path: Path) -> None:
    (row,) = finished.run("studies", "list", tmp_path, "--json").json
    assert (row["study"], row["trials"], row["file"]) == ("rates", TRIAL_COUNT, None)


def test_studies_list_is_empty_in_an_empty_folder(command: RunCommand, tmp_path: Path) -> None:
    assert command("studies", "list", "--json").json == []
    outcome = command("studies", "list")
    assert (outcome.exit_code, outcome.stderr, len(parse_table(outcome.stdout))) == (0, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_studies_check_shows_the_size_of_the_space(command: RunCommand, both: Path) -> None:
    outcome = command("studies", "check", "both.toml")
    valid = "both.toml: valid; both, 22 recipes times endless values of optimizer.learning_rate\n"
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, valid, "")
    (tiny,) = command("studies", "check", "both.toml", "--json").json["checked"]
    assert tiny == {"file": "both.toml", "study": "both", "recipes": 22, "endless": ["optimizer.learning_rate"]}


def test_studies_check_prints_a_line_for_every_error_in_any_file(command: RunCommand, both: Path) -> None:
    (both.parent / "one.toml").write_text(TWO_FAMILY_STUDY.replace("trials = 5", "trails = 5"))
    (both.parent / "two.toml").write_text(TWO_FAMILY_STUDY.replace("[64, 128]", "[]"))
    files = ["one.toml", "both.toml", "two.toml", "three.toml"]
    outcome = command("studies", "check", *files)
    assert outcome.exit_code == 2
    assert outcome.stdout.startswith("both.toml: valid; ")
    expected = [
        ["one.toml: budget.trails", "did you mean 'trials'"],
        ["two.toml: space.common.batch_size", "empty list"],
        ["two.toml: space.mlp.width", "empty list"],
        ["three.toml: no such file", "both.toml"],
    ]
    assert len(outcome.errors) == len(expected)
    for line, texts in zip(outcome.errors, expected, strict=True):
        assert all(text in line for text in texts)

    as_json = command("studies", "check", *files, "--json")
    assert as_json.exit_code == 2
    assert [f"error: {problem}" for problem in as_json.json["problems"]] == outcome.errors
    assert [checked["file"] for checked in as_json.json["checked"]] == ["both.toml"]


def test_studies_schema_and_keys_equal_the_files_of_the_repository(command: RunCommand) -> None:
    root = Path(__file__).parents[3]
    assert command("studies", "schema").stdout == (root / "studies" / "schema.json").read_text()
    assert command("studies", "keys").stdout == (root / "docs" / "study-keys.md").read_text()


# ------------------------------------------------------------------------------ incomplete studies


@pytest.fixture(scope="module")
def pruned_study(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """Return a folder with a study of one pruned trial."""
    folder = tmp_path_factory.mktemp("pruned")
    (folder / "rates.toml").write_text(RATES_STUDY)
    pruned = ["--set", "budget.epochs=2", "--set", "budget.trial_minutes=1e-9", "--set", "budget.trials=1"]
    return FinishedStudy(folder, run_command(folder, "search", "rates.toml", *pruned))


def test_a_study_without_a_completed_trial_has_no_best(pruned_study: FinishedStudy) -> None:
    assert pruned_study.result.exit_code == 3
    found = pruned_study.run("status", "--json").json
    assert (found["pruned"], found["best"], found["edges"]) == (1, None, [])
    trials, overhead = pruned_study.run("status").stdout.splitlines()[1:]
    assert trials == "trials: 1 pruned; its budget of trials is spent"
    assert overhead.startswith("overhead of a trial beside its training: ")
    assert_single_error(pruned_study.run("show"), "no trial has completed", "number", code=3)
    assert pruned_study.run("show", 0).stdout.startswith("trial 0: mlp ")
    assert pruned_study.run("show", 0, "--json").json["state"] == "pruned"


def test_importance_needs_enough_trials(pruned_study: FinishedStudy) -> None:
    outcome = pruned_study.run("importance")
    assert_single_error(outcome, "'rates'", "0 completed trials in its space are too few", "need 4", code=3)


def test_importance_of_few_trials_is_shown_with_a_warning(command: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text(RATES_STUDY)
    searched = command("search", "rates.toml", "--set", "budget.trials=4", "--no-tracking")
    assert searched.exit_code == 0, searched.stderr
    outcome = command("importance", "--json")
    assert (outcome.exit_code, outcome.json["trials"]) == (0, 4)
    assert outcome.json["importances"]
    assert "4 completed trials are few: below 8, importances are mostly chance" in outcome.stderr


def test_commands_in_an_empty_folder_say_how_to_start(command: RunCommand, tmp_path: Path) -> None:
    for arguments in (["status"], ["show"], ["importance"], ["leaderboard"]):
        assert_single_error(command(*arguments), "no study yet", "fmnist-search search")
    assert list(tmp_path.iterdir()) == []
