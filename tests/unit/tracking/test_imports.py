"""Commands that only read import neither torch nor MLflow: modules of tracking that they use must not either."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT_MODULES = [
    *("events", "local_store", "metric_names", "outbox", "provenance", "renderers", "run_logger", "run_ref", "sender"),
    *("stored_runs", "tag_names", "ui"),
]


@pytest.mark.parametrize("forbidden", ["torch", "mlflow"])
def test_modules_that_reading_commands_use_import_neither_torch_nor_mlflow(forbidden: str) -> None:
    modules = ", ".join(f"fmnist_search.tracking.{name}" for name in LIGHT_MODULES)
    program = f"import sys; sys.modules[{forbidden!r}] = None; import {modules}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
