"""What a command does for the run that `mlflow run` has created for it.

`mlflow run` fetches a project that comes from git into a temporary folder and starts the command there.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

RUN_ID_VARIABLE = "MLFLOW_RUN_ID"
"""Environment variable by which `mlflow run` names that run; `tracking.store`, which has it, is slow to import."""


def find_file(path: Path) -> Path:
    """Return a file as it is named; below `mlflow run`, that of the folder of its caller if it does not exist here.

    The folder is that of the first process above this one that has another working folder.
    """
    if RUN_ID_VARIABLE not in os.environ or path.is_absolute() or path.exists():
        return path
    import psutil

    here = Path.cwd()
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error, OSError):
            folder = Path(process.cwd())
            if folder != here:
                return folder / path if (folder / path).exists() else path
    return path


def explain_failure(message: str) -> None:
    """Let that run say why the command has failed; do nothing without one, or if it says so already."""
    run_id = os.environ.get(RUN_ID_VARIABLE)
    if not run_id:
        return
    with contextlib.suppress(Exception):  # the error itself is printed, whatever MLflow says to this
        from fmnist_search.tracking.study_runs import explain_failed_run
        from fmnist_search.workspace import resolve_tracking_uri

        explain_failed_run(resolve_tracking_uri(None), run_id, message)
