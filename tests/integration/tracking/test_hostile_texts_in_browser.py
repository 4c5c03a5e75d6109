"""Names and questions with HTML and Markdown in them are shown as text: in MLflow's UI and on the interactive page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page, expect

from tests.integration.conftest import TINY_STUDY, FinishedStudy, run_command
from tests.integration.mlflow_ui import CHROMIUM, TIMEOUT_MS, MlflowUi, launch_browser
from tests.integration.servers import running_ui

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="`chromium` is not installed; on Debian it is the package chromium"),
]

NAME = "__init__ www.evil.example a@evil.example"
QUESTION = (
    "# <script>window.hacked = 1</script> <img src=https://evil.example/a.png onerror=alert(1)> "
    "[click](javascript:alert(2)) ![](https://evil.example/b.png) **bold** _a_ `code` a | b ~~x~~ $x$ "
    "&lt;b&gt; \\* :smile: <!-- c --> https://evil.example/x_y_z ftp://evil.example 1 < 2 & 3 > 2"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """A study with this name and this question, with figures and a champion."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.toml").write_text(TINY_STUDY)
    small = ["budget.epochs=1", "finalists.seeds=1", "finalists.epochs=1"]
    settings = [word for setting in (f"question={json.dumps(QUESTION)}", *small) for word in ("--set", setting)]
    outcome = run_command(folder, "search", "tiny.toml", "--name", NAME, "--trials", 2, *settings, plots=True)
    assert outcome.exit_code == 0, outcome.stderr
    return FinishedStudy(folder, outcome)


@pytest.fixture(scope="module")
def ui(finished: FinishedStudy) -> Iterator[MlflowUi]:
    """The UI in a browser that notes every window that opens and every address on another machine."""
    with running_ui(finished.folder) as url, launch_browser() as browser:
        page = browser.new_page(viewport={"width": 1600, "height": 1400})
        page.set_default_timeout(TIMEOUT_MS)
        noticed: list[str] = []
        page.on("dialog", lambda dialog: (noticed.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: noticed.append(request.url) if "evil" in request.url else None)
        yield MlflowUi(page, url)
        assert noticed == []


def study_run_id(finished: FinishedStudy) -> str:
    (run,) = MlflowClient(finished.tracking_uri).search_runs(["1"], "tags.kind = 'study'")
    return str(run.info.run_id)


def assert_is_text(page: Page, *texts: str) -> None:
    """Check that the page shows the texts as they are, and that nothing on it comes from them."""
    for text in texts:
        expect(page.get_by_text(text, exact=False).first).to_be_visible()
    assert page.locator("a[href^=javascript], img[src*=evil], [onerror]").count() == 0
    for link in page.locator("a[href*=evil]").all():  # GitHub's Markdown shows an address as a link to itself
        assert str(link.get_attribute("href")).endswith(link.inner_text())
    assert page.evaluate("window.hacked === undefined")


def test_the_note_of_a_study_shows_them_as_text(finished: FinishedStudy, ui: MlflowUi) -> None:
    ui.open_run(study_run_id(finished))
    assert_is_text(ui.page, NAME, QUESTION)
    expect(ui.page.get_by_role("heading", name=NAME, exact=True).last).to_be_visible()


def test_the_card_of_a_model_shows_them_as_text(ui: MlflowUi) -> None:
    ui.open_model("fmnist-search", 1)
    assert_is_text(ui.page, f"of the study '{NAME}'. The finalists")


def test_the_report_shows_them_as_text(finished: FinishedStudy, ui: MlflowUi) -> None:
    ui.open_artifact(study_run_id(finished), "report.md")
    assert_is_text(ui.page, NAME, QUESTION)


def test_the_interactive_page_shows_them_as_text(finished: FinishedStudy, ui: MlflowUi, tmp_path: Path) -> None:
    client = MlflowClient(finished.tracking_uri)
    path = client.download_artifacts(study_run_id(finished), "plots/study.html", str(tmp_path))
    ui.page.goto(f"file://{path}")
    ui.page.locator(".js-plotly-plot .main-svg").first.wait_for()
    assert ui.page.title() == NAME
    assert_is_text(ui.page, NAME, QUESTION)
