"""Tests of `fmnist_search.third_party_messages`, in processes of their own: what it changes is global."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import logging, warnings
from fmnist_search.third_party_messages import silence_libraries
silence_libraries()
warnings.warn("a warning")
exec("warnings.warn('named as ours')", {"__name__": "fmnist_search.search", "warnings": warnings})
logging.getLogger("matplotlib.font_manager").warning("a log")
logging.getLogger("alembic.runtime").warning("a log of a library with a handler")
logging.getLogger("fmnist_search.data").warning("ours")
logging.getLogger("matplotlib").error("an error")
logging.basicConfig(level=logging.ERROR)  # as importing mlflow.pytorch does
logging.getLogger("fmnist_search.data").warning("ours, once")
"""

SHOWN_WARNINGS = ["<string>:5: UserWarning: a warning", "<string>:1: UserWarning: named as ours"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["ours", "an error", "ours, once"]),
        (["-W", "default"], [*SHOWN_WARNINGS, "ours", "an error", "ours, once"]),
    ],
    ids=["as users run it", "with -W"],
)
def test_messages_of_libraries_are_hidden_and_ours_are_shown(options: list[str], expected: list[str]) -> None:
    process = subprocess.run([sys.executable, *options, "-c", SCRIPT], capture_output=True, text=True, check=True)
    without_code = [line for line in process.stderr.splitlines() if not line.startswith("  ")]  # Python 3.13 shows it
    assert without_code == expected
