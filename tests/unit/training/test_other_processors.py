"""Processors without instructions for bfloat16, as oneDNN and torch take this one for if they are told so."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json
from fmnist_search.recipe.execution import Execution
from fmnist_search.training.autotune import Probe, autotune
from fmnist_search.workflows.tuning import precision_warning

cpu = Execution(device="cpu", threads=1)
probe = Probe(batch_size=2, rounds=2)
chosen = [autotune(cpu, precision, probe)[1] for precision in ("auto", "bfloat16")]
print(json.dumps([chosen, [precision_warning(cpu, precision) for precision in ("float32", "bfloat16")]]))
"""


@pytest.mark.slow
def test_a_processor_without_bfloat16_trains_in_float32_unless_told_otherwise() -> None:
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    (by_itself, on_request), (without, warning) = json.loads(output)
    assert (by_itself, on_request) == ("float32", "bfloat16")
    assert without == ""
    assert "emulates bfloat16" in warning
    assert "use float32" in warning
