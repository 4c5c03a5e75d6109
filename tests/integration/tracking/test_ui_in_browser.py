"""A small study in MLflow's UI, displayed by a real browser.

The last page of each test is saved as `page.png` in the temporary folder of the test.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from playwright.sync_api import Browser, expect

from tests.integration.conftest import TINY_STUDY, FinishedStudy, run_command
from tests.integration.mlflow_ui import CHROMIUM, TIMEOUT_MS, MlflowUi, epoch_steps, launch_browser
from tests.integration.servers import running_ui

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="`chromium` is not installed; on Debian it is the package chromium"),
]

STUDY_NAME = "tiny"
SETTINGS = [
    "budget.trials=8",
    "budget.epochs=3",
    "sampler.startup_trials=8",
    "pruner.startup_trials=2",
    "optimizer.learning_rate={ low = 1e-4, high = 3e-2, log = true }",  # some are too small, so that trials are pruned
    "finalists.seeds=1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A study with pruned and completed trials, figures and a champion."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.toml").write_text(TINY_STUDY)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    outcome = run_command(folder, "search", "tiny.toml", *settings, plots=True)
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)


@pytest.fixture(scope="module")
def runs(finished: FinishedStudy) -> list[Run]:
    """All runs of the study, ordered by name: trials, finalist, study."""
    found = MlflowClient(finished.tracking_uri).search_runs(["1"], order_by=["attributes.run_name"])
    assert {trial.data.tags["state"] for trial in runs_with_tags(found, kind="trial")} == {"completed", "pruned"}
    return list(found)


@pytest.fixture(scope="module")
def browser_instance() -> Iterator[Browser]:
    with launch_browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def ui_url(finished: FinishedStudy) -> Iterator[str]:
    with running_ui(finished.folder) as ui_url:
        yield ui_url


@pytest.fixture
def ui(browser_instance: Browser, ui_url: str, tmp_path: Path) -> Iterator[MlflowUi]:
    with browser_instance.new_context(viewport={"width": 1600, "height": 1000}) as context:
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        yield MlflowUi(page, ui_url)
        page.screenshot(path=tmp_path / "page.png")
        print(f"the last page: {tmp_path / 'page.png'}")


def runs_with_tags(runs: list[Run], **tags: str) -> list[Run]:
    """Return the runs with these tags."""
    return [run for run in runs if tags.items() <= run.data.tags.items()]


def run_names(runs: list[Run]) -> list[str]:
    return [run.info.run_name for run in runs]


def study_run_id(runs: list[Run]) -> str:
    (study,) = runs_with_tags(runs, kind="study")
    return str(study.info.run_id)


# ---------------------------------------------------------------------------------------- many runs


def test_the_study_expands_into_its_trials_with_states_accuracies_and_hyperparameters(
    ui: MlflowUi, runs: list[Run]
) -> None:
    ui.open_runs()
    ui.wait_for_names([STUDY_NAME])
    ui.expand(STUDY_NAME)
    ui.wait_for_names([STUDY_NAME, *reversed(run_names(runs)[:-1])])  # the newest first
    shown = {row["Run Name"]: row for row in ui.rows()}
    for trial in runs_with_tags(runs, kind="trial"):
        row = shown[trial.info.run_name]
        assert row["state"] == trial.data.tags["state"]
        assert float(row["best/val_accuracy"]) == pytest.approx(trial.data.metrics["best/val_accuracy"], abs=1e-4)
        assert row["model.depth"] == trial.data.params["model.depth"]


def test_a_check_is_green_and_a_cross_is_red(ui: MlflowUi, runs: list[Run]) -> None:
    ui.open_runs()
    ui.expand(STUDY_NAME)
    for state, strongest in (("completed", 1), ("pruned", 0)):
        trial = runs_with_tags(runs, kind="trial", state=state)[0]
        red, green, blue = ui.status_color(trial.info.run_name)
        assert max(red, green, blue) == (red, green, blue)[strongest]


def test_the_assistant_can_be_closed(browser_instance: Browser, ui_url: str) -> None:
    with browser_instance.new_context(viewport={"width": 1600, "height": 1000}) as context:
        page = context.new_page()
        page.goto(ui_url)
        question = page.get_by_placeholder("Ask a question")
        question.wait_for(timeout=TIMEOUT_MS)
        page.get_by_role("button", name="Close", exact=True).click()
        expect(question).not_to_be_in_viewport()


@pytest.mark.parametrize("column", ["Run Name", "Created"])
def test_trials_can_be_sorted_by_name_and_by_time(ui: MlflowUi, runs: list[Run], column: str) -> None:
    *trainings, study = run_names(runs)
    assert [name[:4] for name in trainings] == [*(f"{number:03} " for number in range(8)), "fina"]
    ui.open_runs()
    ui.expand(STUDY_NAME)
    ui.sort_by(column)
    ui.wait_for_names([*trainings, study] if column == "Run Name" else [study, *trainings])


def test_a_search_shows_the_matching_trials_below_their_study(ui: MlflowUi, runs: list[Run]) -> None:
    shallow = [run for run in runs if run.data.params.get("model.depth") == "1"]
    middle = statistics.median(run.data.metrics["best/val_accuracy"] for run in shallow)
    good = [run for run in shallow if run.data.metrics["best/val_accuracy"] > middle]
    pruned = runs_with_tags(runs, state="pruned")
    assert good
    ui.open_runs()
    ui.expand(STUDY_NAME)
    ui.search("tags.state = 'pruned'")
    ui.wait_for_names([STUDY_NAME, *reversed(run_names(pruned))])
    ui.search(f'params."model.depth" = \'1\' and metrics."best/val_accuracy" > {middle}')
    ui.wait_for_names([STUDY_NAME, *reversed(run_names(good))])


def test_compared_trials_have_a_value_on_every_axis_of_the_parallel_coordinates(ui: MlflowUi, runs: list[Run]) -> None:
    trials = runs_with_tags(runs, kind="trial")
    shallow = [run for run in trials if run.data.params["model.depth"] == "1"]
    deep = [run for run in trials if run.data.params["model.depth"] == "2"]
    three = [*shallow[:2], deep[0]]
    ui.open_runs()
    ui.expand(STUDY_NAME)
    ui.compare_runs(run_names(three))
    ui.add_axis("Parameters", "model.width_2")
    ui.add_axis("Parameters", "optimizer.learning_rate")
    ui.add_axis("Metrics", "best/val_accuracy")
    expect(ui.page.locator(".js-plotly-plot").get_by_text("best/val_accuracy")).to_be_visible()
    (trace,) = ui.chart_traces()
    axes = {axis["label"]: axis["values"] for axis in trace["dimensions"]}
    assert {"model.depth", "model.width_2", "optimizer.learning_rate", "best/val_accuracy"} <= set(axes)
    for name, values in axes.items():
        kind = "metrics" if name in deep[0].data.metrics else "params"
        assert sorted(values) == sorted(float(getattr(run.data, kind)[name]) for run in three), name
    assert 0 in axes["model.width_2"]  # of a network without a second block


def test_one_chart_shows_the_curves_of_all_trials(ui: MlflowUi, runs: list[Run]) -> None:
    ui.open_runs(charts=True)
    ui.expand(STUDY_NAME)
    ui.wait_for_curves(epoch_steps(runs))  # the first chart of the view
    ui.find_chart("val/accuracy")
    ui.wait_for_curves(epoch_steps(runs))


# ------------------------------------------------------------------------------------------ one run


def test_the_note_of_the_study_is_a_page_with_tables(ui: MlflowUi, runs: list[Run]) -> None:
    ui.open_run(study_run_id(runs))
    for heading in (STUDY_NAME, "Leaderboard", "Search space", "Next commands"):
        expect(ui.page.get_by_role("heading", name=heading, exact=True).last).to_be_visible()
    # The front of accuracy and seconds, further down, has such a column too.
    leaderboard = ui.page.get_by_role("table").filter(has=ui.page.get_by_role("columnheader", name="network"))
    completed = runs_with_tags(runs, kind="trial", state="completed")
    expect(leaderboard.first.get_by_role("row")).to_have_count(len(completed) + 1)
    expect(ui.page.get_by_text("|", exact=False)).to_have_count(0)  # no table is left as Markdown
    expect(ui.page.get_by_role("cell", name="space.common.optimizer.learning_rate")).to_be_visible()


def test_the_leaderboard_is_shown_as_a_table(ui: MlflowUi, runs: list[Run]) -> None:
    ui.open_artifact(study_run_id(runs), "leaderboard.json")
    expect(ui.page.get_by_role("columnheader", name="val_accuracy")).to_be_visible()
    expect(ui.page.get_by_role("row")).to_have_count(8 + 1)
    best = max(run.data.metrics["best/val_accuracy"] for run in runs_with_tags(runs, kind="trial"))
    first = ui.page.get_by_role("row").nth(1).get_by_role("cell")
    expect(first.nth(0)).to_have_text("1")
    assert float(first.nth(3).inner_text()) == pytest.approx(best)


def test_plots_and_the_interactive_page_are_shown(ui: MlflowUi, runs: list[Run]) -> None:
    ui.open_artifact(study_run_id(runs), "plots/history.png")
    assert min(ui.image_size()) > 300
    ui.open_artifact(study_run_id(runs), "plots/study.html")
    expect(ui.wait_for_plotly_page().get_by_role("heading", name=STUDY_NAME)).to_be_visible()


def test_a_trial_shows_its_confusion_matrix(ui: MlflowUi, runs: list[Run]) -> None:
    trial = runs_with_tags(runs, kind="trial", state="completed")[0]
    ui.open_artifact(trial.info.run_id, "confusion_matrix.png")
    assert min(ui.image_size()) > 300


def test_a_finalist_shows_the_pairs_of_classes_that_it_confuses(ui: MlflowUi, runs: list[Run]) -> None:
    finalist = runs_with_tags(runs, kind="finalist")[0]
    ui.open_artifact(finalist.info.run_id, "val/confusion.html")
    page = ui.page.frame_locator("iframe").first
    opened = page.locator("details[open] img")
    expect(opened.first).to_be_visible()
    assert opened.first.evaluate("image => image.naturalWidth") == 28


# ------------------------------------------------------------------------------------------ champion


def test_the_registered_model_shows_its_champion(ui: MlflowUi) -> None:
    ui.open_model("fmnist-search")
    version = ui.page.get_by_role("row").filter(has=ui.page.get_by_role("link", name="Version 1", exact=True))
    expect(version.get_by_text("@ champion")).to_be_visible()
    ui.open_model("fmnist-search", 1)
    expect(ui.page.get_by_text("@ champion")).to_be_visible()
    expect(ui.page.get_by_role("link", name=re.compile("^finalist "))).to_be_visible()
