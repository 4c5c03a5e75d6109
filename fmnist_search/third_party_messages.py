"""Messages of libraries to developers: warnings and logs, which mean nothing to the users of a command."""

from __future__ import annotations

import logging
import os
import sys
import warnings

LOGGERS_WITH_HANDLERS = ("alembic", "mlflow", "optuna")
"""Libraries that print their logs themselves; Python prints those of all others."""


def silence_libraries() -> None:
    """Hide all Python warnings in this process, and the logs of libraries below errors.

    From Python 3.12 on, Optuna's warnings name the line of its caller, so that they cannot be told from ours by their
    module: what a user should read is printed or logged, not warned of. A user who asks Python for warnings gets them.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in LOGGERS_WITH_HANDLERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # MLflow sets the level of its logger when it is imported
    if logging.lastResort:  # the handler of loggers that have none
        logging.lastResort.setLevel(logging.ERROR)
        own = logging.getLogger("fmnist_search")
        own.addHandler(logging.StreamHandler())
        own.propagate = False  # importing mlflow.pytorch gives the root logger a handler, which would print them again
