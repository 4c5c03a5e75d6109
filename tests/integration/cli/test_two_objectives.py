"""A study that minimizes a cost: the front in commands and in MLflow, and the promotion of one of its points."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow import MlflowClient

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe.execution import Execution
from fmnist_search.reporting.model_summary import summarize
from fmnist_search.results.objectives import TrialCost
from fmnist_search.results.training import EpochReport, TrialResult, TrialState
from fmnist_search.search.study_attributes import StudyRuntime
from fmnist_search.search.study_store import StudyStore
from fmnist_search.workflows.rebuilding import finished_run
from fmnist_search.workspace import Workspace
from tests.integration.cli.test_errors import assert_error
from tests.integration.conftest import CommandResult, FinishedStudy, read_artifact, run_command

STUDY = """
name = "front"
question = "How accurate is a network of a given size?"
sampler = "grid"

[objective]
metrics = ["val_accuracy", "mult_adds"]

[data]
train_images = 600
validation = 1000

[budget]
epochs = 1

[space.common]
batch_size = 50
optimizer.learning_rate = [1e-6, 1e-2]

[space.mlp]
depth = 1
width = [4, 16, 64]

[finalists]
recipes = 1
seeds = 1
epochs = 1
images = "slice"
refit = "none"

[execution]
workers = 1
threads = 1
precision = "float32"
"""
VALUES = [(0.80, 10_000), (0.70, 20_000), (0.90, 30_000), (None, 0), (0.85, 30_000)]
"""Accuracy and multiply-adds of the trials of `stored`; the fourth failed. The parameters are a tenth of these."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A folder with a study whose trials were not trained."""
    folder = tmp_path_factory.mktemp("stored")
    (folder / "front.toml").write_text(STUDY)
    url = Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}").storage_url
    store = StudyStore.open(url, StudyConfig.load(folder / "front.toml"))
    store.runtime = StudyRuntime(Execution(threads=1), "float32")
    for accuracy, cost in VALUES:
        trial = store.ask()
        if accuracy is None:
            store.tell(trial, TrialResult(TrialState.FAILED, (), 1.0, reason="out of memory"), "")
            continue
        report = EpochReport(1, 1.0, 0.5, 1.0, accuracy, 0.1, 0.25)
        store.decide(trial, report)
        measured = TrialCost("mult_adds", cost)
        store.tell(
            trial, TrialResult(TrialState.COMPLETED, (report,), 1.0, cost // 10, mult_adds=cost, cost=measured), ""
        )
    return FinishedStudy(folder, CommandResult(0, "", ""))


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# --------------------------------------------------------------------------------------- the front


def test_the_leaderboard_shows_the_cost_and_marks_the_front(stored: FinishedStudy) -> None:
    head, *rows = cells(stored.run("leaderboard").stdout)
    assert head[:4] == ["trial", "val_accuracy", "mult_adds", "front"]
    assert [row[:3] for row in rows] == [
        ["2", "90.00%", "30,000"],
        ["4", "85.00%", "30,000"],
        ["0", "80.00%", "10,000"],
        ["1", "70.00%", "20,000"],
    ]
    assert [row[3] == "*" for row in rows] == [True, False, True, False]


def test_the_front_alone_is_listed_by_cost(stored: FinishedStudy) -> None:
    _, *rows = cells(stored.run("leaderboard", "--pareto", "mult_adds", "--top", 1).stdout)
    assert [row[:4] for row in rows] == [["0", "80.00%", "10,000", "*"], ["2", "90.00%", "30,000", "*"]]
    found = stored.run("leaderboard", "--pareto", "mult_adds", "--json").json
    assert [(trial["number"], trial["cost"], trial["pareto_front"]) for trial in found] == [
        (0, {"metric": "mult_adds", "value": 10_000}, True),
        (2, {"metric": "mult_adds", "value": 30_000}, True),
    ]


def test_status_and_show_name_the_front_and_the_cost(stored: FinishedStudy) -> None:
    assert "best: trial 2 (mlp " in stored.run("status").stdout
    assert "Pareto front by mult_adds: trials 0, 2\n" in stored.run("status").stdout
    assert stored.run("status", "--json").json["pareto_front"] == [0, 2]
    assert stored.run("show", 4).stdout.splitlines()[0].endswith(", completed, 85.00%, 30,000 multiply-adds")
    assert "90.00%" in stored.run("studies", "list").stdout


def test_a_run_that_is_written_anew_from_the_storage_has_the_cost(stored: FinishedStudy) -> None:
    store = StudyStore.load(Workspace.resolve(f"sqlite:///{stored.folder / 'mlflow.db'}").storage_url)
    record = store.trial_records()[2]
    metrics = {key: (value, step) for key, value, _, step in finished_run(store.config, record, [], "parent").metrics}
    assert metrics["model/mult_adds"] == (30_000, 1)


# -------------------------------------------------------------------------------- in any study


COSTS = [(0.80, 10_000, 2.0), (0.70, 10_000, 1.0), (0.90, 30_000, 4.0), (0.60, 0, 3.0)]
"""Accuracy, multiply-adds and seconds an epoch of the trials of `ordinary`; the last was stored without the second."""


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A folder with a study of one metric whose trials were not trained."""
    folder = tmp_path_factory.mktemp("ordinary")
    text = STUDY.replace('metrics = ["val_accuracy", "mult_adds"]', "").replace('"front"', '"alone"')
    (folder / "alone.toml").write_text(text)
    url = Workspace.resolve(f"sqlite:///{folder / 'mlflow.db'}").storage_url
    store = StudyStore.open(url, StudyConfig.load(folder / "alone.toml"))
    store.runtime = StudyRuntime(Execution(threads=1), "float32")
    for accuracy, mult_adds, seconds in COSTS:
        trial, report = store.ask(), EpochReport(1, 1.0, 0.5, 1.0, accuracy, 0.1, seconds)
        store.decide(trial, report)
        store.tell(trial, TrialResult(TrialState.COMPLETED, (report,), 1.0, mult_adds // 10, mult_adds=mult_adds), "")
    return FinishedStudy(folder, CommandResult(0, "", ""))


@pytest.mark.parametrize(
    ("metric", "order", "costs"),
    [
        ("accuracy", [2, 0, 1, 3], []),
        ("seconds", [1, 0, 3, 2], ["1.00", "2.00", "3.00", "4.00"]),
        ("parameters", [0, 1, 2, 3], ["1,000", "1,000", "3,000", "-"]),
        ("mult_adds", [0, 1, 2, 3], ["10,000", "10,000", "30,000", "-"]),
    ],
)
def test_the_leaderboard_is_ordered_by_a_cost(
    ordinary: FinishedStudy, metric: str, order: list[int], costs: list[str]
) -> None:
    head, *rows = cells(ordinary.run("leaderboard", "--by", metric).stdout)
    assert [int(row[0]) for row in rows] == order
    assert [row[2] for row in rows] == (costs or ["mlp"] * 4)
    assert "mult_adds" in head
    found = ordinary.run("leaderboard", "--by", metric, "--json").json
    assert [trial["number"] for trial in found] == order
    assert [trial["number"] for trial in ordinary.run("leaderboard", "--all", "--by", metric, "--json").json] == order
    assert {trial["number"]: (trial["mult_adds"], trial["seconds_per_epoch"]) for trial in found} == {
        number: (mult_adds or None, seconds) for number, (_, mult_adds, seconds) in enumerate(COSTS)
    }


@pytest.mark.parametrize(("metric", "front"), [("seconds", [1, 0, 2]), ("mult_adds", [0, 2])])
def test_any_study_has_the_front_of_accuracy_and_a_cost(ordinary: FinishedStudy, metric: str, front: list[int]) -> None:
    printed = ordinary.run("leaderboard", "--pareto", metric)
    _, *rows = cells(printed.stdout)
    assert [(int(row[0]), row[3]) for row in rows] == [(number, "*") for number in front]
    left_out = "alone: left out 1 of 4 trials, recorded without mult_adds\n"
    assert printed.stderr == (left_out if metric == "mult_adds" else "")
    found = ordinary.run("leaderboard", "--pareto", metric, "--json").json
    assert [(trial["number"], trial["pareto_front"]) for trial in found] == [(number, True) for number in front]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--all", "--pareto", "seconds"], "--pareto: shows the front of one study; leave out --all"),
        (["--by", "seconds", "--pareto", "seconds"], "--by seconds: a front is in ascending order of its cost"),
        (["--by", "speed"], "--by 'speed': is no metric; choose accuracy, seconds, mult_adds or parameters"),
        (["--pareto", "accuracy"], "--pareto 'accuracy': is no metric; choose seconds, mult_adds or parameters"),
    ],
)
def test_an_order_that_there_is_not_is_one_line(ordinary: FinishedStudy, options: list[str], line: str) -> None:
    assert_error(ordinary.run("leaderboard", *options), line)


@pytest.mark.slow
def test_a_study_is_not_continued_with_other_metrics(stored: FinishedStudy) -> None:
    changed = stored.run("search", "front.toml", "--set", 'objective.metrics=["val_accuracy","parameters"]')
    assert_error(changed, "objective.metrics: is val_accuracy, parameters now and was val_accuracy, mult_adds when")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--trial", 9], "--trial 9: study 'front' has no such trial that ended; give a number from 0 to 4"),
        (["--trial", 3], "--trial 3: has failed in study 'front'; give a completed one"),
        (["--max-parameters", 999], "has so few parameters; the smallest has 1,000"),
        (["--max-parameters", 999, "--trial", 1], "--max-parameters 999: --trial 1 names the trial"),
        (["--recipes", 2, "--trial", 1], "--recipes 2: --trial 1 names the recipe"),
    ],
)
def test_a_promotion_that_no_trial_fits_is_one_line(stored: FinishedStudy, arguments: list[Any], line: str) -> None:
    assert_error(stored.run("promote", "front", *arguments), line)


# ---------------------------------------------------------------------------------- from end to end


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A folder in which the study has run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "front.toml").write_text(STUDY)
    outcome = run_command(folder, "search", "front.toml", plots=True)
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)


@pytest.mark.slow
def test_a_search_stores_the_cost_of_each_trial_in_its_run_and_the_front_in_that_of_the_study(
    finished: FinishedStudy,
) -> None:
    trials = finished.run("leaderboard", "--json").json
    client = MlflowClient(finished.tracking_uri)
    assert len(trials) == 6
    config = StudyConfig.load(finished.folder / "front.toml")
    store = StudyStore.load(Workspace.resolve(finished.tracking_uri).storage_url)
    assert store.config == config
    for record in store.trial_records():
        assert record.cost == TrialCost("mult_adds", summarize(record.recipe.model).mult_adds)
    for trial in trials:
        assert client.get_run(trial["run_id"]).data.metrics["model/mult_adds"] == trial["cost"]["value"]
    front = [trial["number"] for trial in finished.run("leaderboard", "--pareto", "mult_adds", "--json").json]
    line = f"front: Pareto front by mult_adds: {'trial' if len(front) == 1 else 'trials'} {', '.join(map(str, front))};"
    assert any(printed.startswith(line) for printed in finished.result.stderr.splitlines())

    study_run = finished.run("status", "--json").json["run_id"]
    note = client.get_run(study_run).data.tags["mlflow.note.content"]
    assert "## Pareto front" in note
    assert f"| {front[-1]}&emsp; |" in note.partition("## Pareto front")[2]
    assert "plots/pareto_front.png" in {item.path for item in client.list_artifacts(study_run, "plots")}
    assert "Accuracy against multiply-adds" in read_artifact(client, study_run, "plots/study.html")
    table = json.loads(read_artifact(client, study_run, "leaderboard.json"))
    assert {"mult_adds", "pareto_front"} <= set(table["columns"])


@pytest.mark.slow
def test_a_chosen_point_of_the_front_is_promoted(finished: FinishedStudy) -> None:
    trials = finished.run("leaderboard", "--json").json
    smallest = min(trial["parameters"] for trial in trials)
    fitting = next(trial for trial in trials if trial["parameters"] == smallest)
    small = finished.run("promote", "front", "--max-parameters", smallest, "--model-name", "small", "--json")
    assert small.exit_code == 0, small.stderr
    assert small.json["confirmed"]["trial"] == fitting["number"]
    assert small.json["model"] == "small"
    worst = trials[-1]["number"]
    chosen = finished.run("promote", "front", "--trial", worst, "--model-name", "chosen", "--json")
    assert chosen.exit_code == 0, chosen.stderr
    assert chosen.json["confirmed"]["trial"] == worst
