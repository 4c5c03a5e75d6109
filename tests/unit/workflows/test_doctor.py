"""Tests of `workflows.doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmnist_search.execution.capacity import worker_count
from fmnist_search.training.devices import resolve_execution
from fmnist_search.workflows.doctor import run_checks


def test_device_check_names_the_number_of_concurrent_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (device,) = (check for check in run_checks() if check.subject == "device")
    assert device.ok
    count, _ = worker_count("auto", resolve_execution(threads=1))
    assert f"{count} trials at a time" in device.finding
