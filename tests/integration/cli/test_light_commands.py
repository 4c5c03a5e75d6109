"""Commands that only read run where torch and MLflow cannot be imported, and print the same there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.project import unpack
from tests.integration.conftest import CommandResult, clean_environment, run_command

TRAINING_LIBRARIES = ["torch", "torchvision", "mlflow", "matplotlib", "plotly", "sklearn"]
STORAGE_LIBRARIES = ["optuna", "sqlalchemy", "alembic", "numpy"]

FROM_FILES = [
    ["space", "golden.toml"],
    ["studies", "check", "golden.toml"],
    ["studies", "list", "."],
    ["studies", "copy"],
    ["models"],
]
FROM_STORES = [
    ["status"],
    ["status", "--all"],
    ["leaderboard"],
    ["leaderboard", "--all"],
    ["show"],
    ["show", "0"],
    ["importance", "rates"],
    ["watch", "rates"],
    ["compare", "3", "7", "--all"],
    ["compare", "rates", "golden"],
    ["compare", "bc3446261e114ecbaa958a9bffc0f78e"],
]

# None in sys.modules makes an import fail.
SCRIPT = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from fmnist_search.cli import main
printed = []
for arguments in json.loads(sys.argv[2]):
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main([*arguments])
        except SystemExit as ended:
            code = ended.code or 0
    printed.append((code, stdout.getvalue(), stderr.getvalue()))
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two studies, their runs in a local MLflow store, and study files."""
    return unpack(tmp_path_factory.mktemp("light")) / "project"


@pytest.mark.parametrize(
    ("commands", "blocked"),
    [
        pytest.param(FROM_FILES, [*TRAINING_LIBRARIES, *STORAGE_LIBRARIES], id="files"),
        pytest.param(FROM_STORES, TRAINING_LIBRARIES, id="stores", marks=pytest.mark.slow),
    ],
)
def test_commands_that_read_need_no_training_libraries(
    project: Path, commands: list[list[str]], blocked: list[str]
) -> None:
    both_forms = [[*command, *options] for command in commands for options in ([], ["--json"])]
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(blocked), json.dumps(both_forms)],
        cwd=project,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    for command, printed in zip(both_forms, json.loads(process.stdout), strict=True):
        assert CommandResult(*printed) == run_command(project, *command), command
        assert printed[0] == 0, printed
        assert printed[1], command
