"""The checks of `doctor`: everything that a search needs, each with a result of one line."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from fmnist_search.config.study_config import StudyConfig
from fmnist_search.data.files import DataSource, verify_files
from fmnist_search.errors import UserError
from fmnist_search.execution.capacity import worker_count
from fmnist_search.execution.ray_cluster import describe_nodes, inspect
from fmnist_search.recipe.datasets import DEFAULT_DATASET
from fmnist_search.search.storage import open_storage
from fmnist_search.search.study_store import StudyStore
from fmnist_search.text import redact
from fmnist_search.tracking.artifact_locations import check_artifacts_exist
from fmnist_search.tracking.connection import connect
from fmnist_search.training.devices import resolve_execution
from fmnist_search.workflows.lookup import outbox_status
from fmnist_search.workflows.study.workers import ray_settings
from fmnist_search.workflows.tuning import tuned
from fmnist_search.workspace import Workspace


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    subject: str
    ok: bool
    finding: str


def run_checks(workspace: Workspace | None = None) -> list[CheckResult]:
    """Run all checks and return their results; a failed check raises nothing."""
    workspace = workspace or Workspace.resolve()
    return [
        _run_check("python", platform.python_version),
        *(_run_check(name, partial(metadata.version, name)) for name in ("torch", "torchvision", "mlflow", "optuna")),
        _run_check("device", _describe_device),
        _run_check("images", partial(_describe_images, DataSource.from_workspace(workspace))),
        _run_check("MLflow store", partial(_describe_store, workspace.tracking_uri)),
        _run_check("our own files", partial(_check_files, workspace)),
        *(_run_check("Ray", partial(_describe_cluster, config)) for config in _studies_on_ray(workspace)[-1:]),
    ]


def _run_check(subject: str, check: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(subject, True, check())
    except (UserError, metadata.PackageNotFoundError) as error:
        return CheckResult(subject, False, str(error))


def _describe_device() -> str:
    execution, precision = tuned(resolve_execution(threads=1))
    workers, _ = worker_count("auto", execution)
    how = f"{precision}, {execution.memory_format}, {execution.allocator} allocator"
    return f"{execution.device}, {workers} trials at a time, fastest with {how}"


def _studies_on_ray(workspace: Workspace) -> list[StudyConfig]:
    """Return the configs of the studies that a Ray cluster runs, oldest first; none if they cannot be read."""
    try:
        names = StudyStore.study_names(workspace.storage_url)
        configs = [StudyStore.load(workspace.storage_url, name).config for name in names]
    except UserError:  # another check says so
        return []
    return [config for config in configs if config.execution.backend == "ray"]


def _describe_cluster(config: StudyConfig) -> str:
    cluster = inspect(ray_settings(config))
    return f"{metadata.version('ray')}, {cluster.address}, {describe_nodes(cluster.nodes)}"


def _check_files(workspace: Workspace) -> str:
    workspace.check_writable()
    open_storage(workspace.storage_url)
    outbox_status(workspace=workspace)
    return (
        f"{workspace.folder}, with studies in {redact(workspace.storage)}"
        if workspace.storage
        else str(workspace.folder)
    )


def _describe_store(uri: str) -> str:
    connect(uri)
    shown = redact(uri)
    outside = check_artifacts_exist(uri)
    return f"{shown}, with artifacts outside of it in {', '.join(map(str, outside))}" if outside else shown


def _describe_images(source: DataSource) -> str:
    size = sum(verify_files(DEFAULT_DATASET, source).values())
    note = "" if os.access(source.cache, os.W_OK) else ", which cannot be written, so every command verifies them again"
    return f"{size:,} bytes, verified, in {source.cache}{note}"
