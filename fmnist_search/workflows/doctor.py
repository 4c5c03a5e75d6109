"""What `doctor` looks at: everything a search needs, each with a finding in a line."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from fmnist_search.data.loading import Source, verify
from fmnist_search.errors import UserError
from fmnist_search.execution.pool import fitting
from fmnist_search.recipe.datasets import DEFAULT_DATASET
from fmnist_search.search.storage import open_storage
from fmnist_search.tracking.store import connect
from fmnist_search.training.autotune import resolve_execution, tune
from fmnist_search.workspace import Home, image_cache


@dataclass(frozen=True)
class Check:
    """One finding."""

    subject: str
    ok: bool
    finding: str


def checkup(tracking_uri: str | None = None, workdir: str | None = None) -> list[Check]:
    """All findings; what a check finds wrong is a finding, never an error."""
    home = Home.find(tracking_uri, workdir)
    return [
        _check("python", platform.python_version),
        *(_check(name, partial(metadata.version, name)) for name in ("torch", "torchvision", "mlflow", "optuna")),
        _check("device", _device),
        _check("images", _images),
        _check("MLflow store", lambda: (connect(home.tracking_uri), home.tracking_uri)[1]),
        _check("our own files", lambda: (open_storage(home.storage_url), str(home.folder))[1]),
    ]


def _check(subject: str, look: Callable[[], str]) -> Check:
    try:
        return Check(subject, True, look())
    except (UserError, metadata.PackageNotFoundError) as error:
        return Check(subject, False, str(error))


def _device() -> str:
    execution, precision = tune(resolve_execution(threads=1))
    workers, _ = fitting("auto", execution)
    how = f"{precision}, {execution.memory_format}, {execution.allocator} allocator"
    return f"{execution.device}, {workers} trials at a time, fastest with {how}"


def _images() -> str:
    source = Source(image_cache())
    return f"{sum(verify(DEFAULT_DATASET, source).values()):,} bytes, verified, in {source.cache}"
