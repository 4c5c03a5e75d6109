"""MLflow's UI in a real browser: opens its pages, waits until they show something, reads what they show.

What is looked for are words and roles that a person sees; where a grid has neither, the attributes that AG Grid
documents (`row-index`, `col-id`); in charts what Plotly keeps of them in the page.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlflow.entities import Run
from playwright.sync_api import Browser, FrameLocator, Locator, Page, TimeoutError, sync_playwright

CHROMIUM = shutil.which("chromium")
TIMEOUT_MS = 60_000
"""Milliseconds, for machines that do something else as well."""

ASSISTANT_SEEN_KEY = "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"
"""What a browser keeps that has seen the assistant, which otherwise opens over a third of the page."""

ROWS_SCRIPT = """() => {
    const rows = {};
    for (const cell of document.querySelectorAll("[role=row][row-index] [role=gridcell][col-id]")) {
        const row = rows[cell.closest("[row-index]").getAttribute("row-index")] ??= {};
        const link = cell.querySelector("a");
        row[cell.getAttribute("col-id").replace(/^.*`(.*)`$/, "$1")] = (link ?? cell).innerText.trim();
    }
    return Object.keys(rows).sort((a, b) => a - b).map(number => rows[number]);
}"""


CURVES_SCRIPT = """steps => {
    const curves = document.querySelector(".js-plotly-plot")?.data ?? [];
    const drawn = Object.fromEntries(curves.map(curve => [curve.name, [...curve.x]]));
    const names = Object.keys(steps);
    return names.length === Object.keys(drawn).length
        && names.every(name => JSON.stringify(drawn[name]) === JSON.stringify(steps[name]));
}"""


@contextlib.contextmanager
def launch_browser() -> Iterator[Browser]:
    """Chromium without a window."""
    assert CHROMIUM
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has none
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox) as launched,
    ):
        yield launched


def epoch_steps(runs: Iterable[Run]) -> dict[str, list[int]]:
    """The epochs of each training among these runs, by its name."""
    trained = {run.info.run_name: run.data.tags["epochs"] for run in runs if "epochs" in run.data.tags}
    return {str(name): list(range(1, int(epochs) + 1)) for name, epochs in trained.items()}


class MlflowUi:
    """The UI, as somebody uses it who was told the address of the runs by `fmnist-search ui`."""

    def __init__(self, page: Page, url: str):
        self.page = page
        self._url = url
        self._server, _, runs = url.partition("#/")
        self._experiment = runs.partition("/runs")[0]
        page.set_default_timeout(TIMEOUT_MS)
        page.add_init_script(f"localStorage.setItem('{ASSISTANT_SEEN_KEY}', 'true')")

    # ------------------------------------------------------------------------------------- many runs

    def open_runs(self, *, charts: bool = False) -> None:
        """The list of runs, or the charts beside it."""
        self._open(self._url + ("&compareRunsMode=CHART" if charts else ""))
        self.page.get_by_role("gridcell").get_by_role("link").first.wait_for()

    def expand(self, study: str) -> None:
        """Show the runs below a study's."""
        before = len(self.rows())
        self._row(study).get_by_role("button").first.click()
        self.page.wait_for_function(f"({ROWS_SCRIPT})().length > {before}")

    def sort_by(self, column: str) -> None:
        """Sort by a column, ascending."""
        header = self.page.get_by_role("columnheader", name=column, exact=True).last
        self._wait_for_search(header.click)
        if "orderByAsc=true" not in self.page.url:
            self._wait_for_search(header.click)

    def search(self, text: str) -> None:
        """Type into the search box, and wait for the answer."""
        box = self.page.get_by_test_id("search-box")
        box.fill(text)
        box.press("Enter")
        if not self._has_search_filter(text):  # a list of suggestions was open, and has taken the key
            box.press("Enter")
            assert self._has_search_filter(text)

    def _has_search_filter(self, text: str) -> bool:
        asked = "new URLSearchParams(location.hash.split('?')[1]).get('searchFilter')"
        with contextlib.suppress(TimeoutError):
            self.page.wait_for_function(f"text => {asked} === text", arg=text, timeout=2_000)
            return True
        return False

    def rows(self) -> list[Mapping[str, str]]:
        """The rows of the list, from top to bottom, each by the names of its columns."""
        return list(self.page.evaluate(ROWS_SCRIPT))

    def status_color(self, name: str) -> tuple[int, int, int]:
        """Red, green and blue of the icon that shows the status of a run."""
        index = self._row(name).get_attribute("row-index")
        icon = self.page.locator(
            f"[row-index='{index}'] [col-id*='Created'] svg, [row-index='{index}'] .anticon svg"
        ).last
        red, green, blue = re.findall(r"\d+", icon.evaluate("icon => getComputedStyle(icon).color"))[:3]
        return int(red), int(green), int(blue)

    def wait_for_names(self, names: Sequence[str]) -> None:
        """Wait until the list shows these runs, in this order, and no others."""
        shown = f"({ROWS_SCRIPT})().map(row => row['Run Name'])"
        self.page.wait_for_function(f"names => JSON.stringify({shown}) === JSON.stringify(names)", arg=list(names))

    def find_chart(self, metric: str) -> None:
        """Bring the chart of a metric to the top."""
        self.page.get_by_placeholder("Search metric charts").fill(metric)
        first = self.page.get_by_test_id("experiment-view-compare-runs-card").first
        first.get_by_role("heading", name=metric, exact=True).wait_for()

    def wait_for_curves(self, steps: Mapping[str, Sequence[int]]) -> None:
        """Wait until the first chart has a curve with these steps for each of these runs, and no others."""
        self.page.wait_for_function(CURVES_SCRIPT, arg={name: list(at) for name, at in steps.items()})

    def compare_runs(self, names: Sequence[str]) -> None:
        """Tick runs of the list and open the page that compares them."""
        for name in names:
            self._row(name).get_by_role("checkbox").first.check()
        self.page.get_by_role("button", name="Compare").click()
        self.page.get_by_role("tab", name="Parallel Coordinates Plot").wait_for()
        self.chart_traces()

    def add_axis(self, kind: str, name: str) -> None:
        """Add one of the Parameters or of the Metrics to the parallel coordinates."""
        place = ("Parameters", "Metrics").index(kind)
        self.page.get_by_role("tabpanel").get_by_role("combobox").nth(place).click()
        listed = self.page.locator(".rc-virtual-list:visible")
        listed.hover()
        option = listed.get_by_title(name, exact=True)
        for _ in range(20):  # only what can be seen of the list is in the page
            if option.count():
                break
            self.page.mouse.wheel(0, 100)
            listed.get_by_title("/").or_(listed.get_by_title(".")).first.wait_for()
        option.click()
        self.page.keyboard.press("Escape")
        listed.wait_for(state="hidden")

    def chart_traces(self) -> list[dict[str, Any]]:
        """What the first chart of the page has drawn, as Plotly keeps it."""
        drawn = self.page.locator(".js-plotly-plot").first
        drawn.wait_for()
        return list(drawn.evaluate("chart => JSON.parse(JSON.stringify(chart.data))"))

    def _wait_for_search(self, action: Callable[[], None]) -> None:
        """Do what makes the UI search for runs, and wait for the answer."""
        with self.page.expect_response(lambda answer: "runs/search" in answer.url):
            action()

    def _row(self, name: str) -> Locator:
        """The part of a run's row that stays in place: its box, its expander, its name."""
        return self.page.get_by_role("row").filter(has=self.page.get_by_role("link", name=name, exact=True)).first

    # --------------------------------------------------------------------------------------- one run

    def open_run(self, run_id: str) -> None:
        """The overview of a run, with all of its note."""
        self._open(f"{self._server}#/{self._experiment}/runs/{run_id}?workflowType=machine_learning")
        self.page.get_by_text("About this run").wait_for()
        more = self.page.get_by_text("Show more")
        if self.page.get_by_text("No description").count() == 0:
            more.click()

    def open_artifact(self, run_id: str, path: str) -> None:
        """An artifact of a run."""
        self._open(f"{self._server}#/{self._experiment}/runs/{run_id}/artifacts/{path}?workflowType=machine_learning")
        self.page.get_by_text(f"/artifacts/{path}").wait_for()

    def image_size(self) -> tuple[int, int]:
        """Width and height of the artifact that is shown, once it is there as a picture."""
        shown = "document.querySelector('main .image-outer-container img, main img')"
        self.page.wait_for_function(f"{shown}?.naturalWidth > 0")
        width, height = self.page.evaluate(f"[{shown}.naturalWidth, {shown}.naturalHeight]")
        return int(width), int(height)

    def wait_for_plotly_page(self) -> FrameLocator:
        """The artifact that is shown, once it is there as a page with a chart of Plotly."""
        inner = self.page.frame_locator("iframe")
        inner.locator(".js-plotly-plot .main-svg").first.wait_for()
        return inner

    # ---------------------------------------------------------------------------------------- models

    def open_model(self, name: str, version: int | None = None) -> None:
        """A registered model, or one version of it."""
        part = f"/versions/{version}" if version else ""
        self._open(f"{self._server}#/models/{name}{part}?workflowType=machine_learning")
        self.page.get_by_role("heading", name=f"Version {version}" if version else name).wait_for()

    def stable_screenshot(self) -> bytes:
        """The page as a PNG, once it looks the same for a second."""
        picture, same = self.page.screenshot(), 0
        while same < 4:
            self.page.wait_for_timeout(250)
            before, picture = picture, self.page.screenshot()
            same = same + 1 if picture == before else 0
        return picture

    def _open(self, url: str) -> None:
        self.page.goto("about:blank")  # of two pages that differ behind the # alone, Chromium would load one
        self.page.goto(url)
