"""Where a result comes from: the code, the command, the machine and the versions."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, MLFLOW_USER

from fmnist_search.recipe.execution import Execution
from fmnist_search.version import VERSION

COMMAND_LIMIT = 7_500
"""MLflow cuts a tag at 8,000 characters without a word."""


def environment(execution: Execution) -> dict[str, Any]:
    """What shaped the numbers, apart from the recipe: machine, device, threads and versions."""
    libraries = ("torch", "torchvision", "optuna", "mlflow", "numpy")
    versions = {"fmnist-search": VERSION} | {name: metadata.version(name) for name in libraries}
    machine = {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}
    return {**vars(execution), **machine, "python": platform.python_version(), "versions": versions}


def command_line() -> str:
    """The command that was given, with the program's bare name."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def provenance_tags() -> dict[str, str]:
    """Who ran what, of which code; under MLflow's own names where it has any."""
    tags = {
        MLFLOW_SOURCE_NAME: "fmnist-search",
        MLFLOW_SOURCE_TYPE: "LOCAL",
        MLFLOW_USER: getpass.getuser(),
        "command": command_line()[:COMMAND_LIMIT],
        "code_version": VERSION,
    }
    commit = _run_git("rev-parse", "HEAD")
    if commit:
        tags[MLFLOW_GIT_COMMIT] = commit
        tags["code_version"] += f"+{commit[:12]}" + (".dirty" if _run_git("status", "--porcelain", "-uno") else "")
    return tags


def _run_git(*arguments: str) -> str:
    """What git says of the folder that this package stands in; nothing where it is no checkout of ours."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
