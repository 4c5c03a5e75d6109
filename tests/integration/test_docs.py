"""The examples of the docs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

API_PAGE = Path(__file__).parents[2] / "docs" / "python-api.md"


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", API_PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    assert len(blocks[0].strip().splitlines()) <= 22
    for block in blocks:
        exec(block, names)
    assert "cnn" in capsys.readouterr().out
    assert (tmp_path / "mlflow.db").exists()
