"""The notebook runs from the first cell to the last, and shows plots."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.conftest import clean_environment
from tests.support.pages import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
SMALL_BUDGET = "TRIALS, EPOCHS, TRAIN_IMAGES = 4, 1, 1_000"


def read_notebook() -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_the_notebook_is_stored_without_outputs() -> None:
    for cell in read_notebook().cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_the_notebook_runs_and_shows_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = read_notebook()
    (budget,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    budget.source = SMALL_BUDGET
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = "".join(output.get("text", "") for output in outputs)
    assert "4 trials; the best is trial" in texts
    assert "version 1 is champion" in texts
    plots = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(plots) >= 6
    assert "Traceback" not in texts
    assert (tmp_path / "mlflow.db").exists()
