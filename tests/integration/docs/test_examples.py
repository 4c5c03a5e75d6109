"""The examples of the docs run as they stand."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.workflows.settings import RunOptions, TrackingOptions
from tests.integration.conftest import FinishedStudy

DOCS = Path(__file__).parents[3] / "docs"


def code_blocks(page: str, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


# Figures and worker processes take most of the time of the examples, and other tests have them.
CHEAPER = {
    '{"train_images": 2000, "validation": 2000}': '{"train_images": 500, "validation": 500}',
    "run_study(config": "run_study(config, tracking=TrackingOptions(plot_interval=None)",
    "train(recipe)": "train(recipe, run_options=RunOptions(plots=False))",
    '"finalists": {': '"execution": {"workers": 1}, "finalists": {',
}


@pytest.mark.parametrize(
    "changes", [CHEAPER, pytest.param({}, marks=pytest.mark.slow)], ids=["one thread, no figures", "as they stand"]
)
def test_the_python_examples_run(
    changes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"TrackingOptions": TrackingOptions, "RunOptions": RunOptions}
    blocks = code_blocks("python-api.md", "python")
    assert len(blocks) == 3
    assert len(blocks[0].strip().splitlines()) <= 22
    for before in changes:
        assert any(before in block for block in blocks)
    for block in blocks:
        for before, after in changes.items():
            block = block.replace(before, after)
        exec(block, names)
    assert "cnn" in capsys.readouterr().out
    assert (tmp_path / "mlflow.db").exists()


def test_the_champion_loads_as_the_page_on_mlflow_says(
    finished: FinishedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(finished.tracking_uri)
    (block,) = code_blocks("mlflow.md", "python")
    exec(block, {})
    assert len(json.loads((tmp_path / "pixels.json").read_text())["inputs"]) == 2


def test_mlflow_understands_the_searches_of_the_page(finished: FinishedStudy) -> None:
    client = MlflowClient(finished.tracking_uri)
    (block,) = code_blocks("mlflow.md", "text")
    searches = block.strip().splitlines()
    found = {search: client.search_runs(["1"], search) for search in searches}
    assert len(found["tags.study = 'quick' and tags.kind = 'trial'"]) == 0
    assert len(client.search_runs(["1"], searches[0].replace("quick", "tiny"))) == 4
    assert len(found["tags.kind = 'finalist' and metrics.\"test/accuracy\" > 0"]) == 1


@pytest.mark.parametrize("page", ["../README.md", "studies.md"])
def test_the_study_files_of_the_pages_are_valid(page: str) -> None:
    (tables,) = (tables for block in code_blocks(page, "toml") if "space" in (tables := tomllib.loads(block)))
    assert StudyConfig.from_dict(tables).budget.trials == 30
