"""The origin of a result: code, command, machine and versions."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from fmnist_search.recipe.execution import Execution
from fmnist_search.text import redacted_command
from fmnist_search.tracking import tag_names
from fmnist_search.user_account import user_name
from fmnist_search.version import VERSION

COMMAND_LIMIT = 7_500
"""Characters of the tag. MLflow cuts tags at 8,000 without a warning."""


def environment(execution: Execution) -> dict[str, Any]:
    """Return what affects the numbers of a training besides its recipe: execution, machine and versions."""
    libraries = ("torch", "torchvision", "optuna", "mlflow", "numpy")
    versions = {"fmnist-search": VERSION} | {name: metadata.version(name) for name in libraries}
    machine = {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}
    return {**vars(execution), **machine, "python": platform.python_version(), "versions": versions}


def command_line() -> str:
    """Return the command of this process without passwords, with the program as a name without a folder."""
    return redacted_command([Path(sys.argv[0]).name, *sys.argv[1:]])


def source_tags() -> dict[str, str]:
    """Return MLflow's own tags about the program that writes a run, and about its user."""
    tags = {tag_names.SOURCE_NAME: "fmnist-search", tag_names.SOURCE_TYPE: "LOCAL", tag_names.USER: user_name()}
    commit = _run_git("rev-parse", "HEAD")
    return {**tags, tag_names.GIT_COMMIT: commit} if commit else tags


def provenance_tags() -> dict[str, str]:
    """Return tags that say who ran which command with which code, under MLflow's own names if it has any."""
    tags = {
        **source_tags(),
        tag_names.COMMAND: command_line()[:COMMAND_LIMIT],
        tag_names.CODE_VERSION: VERSION,
    }
    if commit := tags.get(tag_names.GIT_COMMIT):
        tags[tag_names.CODE_VERSION] += f"+{commit[:12]}" + (
            ".dirty" if _run_git("status", "--porcelain", "-uno") else ""
        )
    return tags


@functools.cache  # every run asks, and this process keeps the code with which it started
def _run_git(*arguments: str) -> str:
    """Return the output of git in the folder of the package; empty if that is not a checkout of the package."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
