"""The images and the execution settings with which benchmarks run the training engine."""

from __future__ import annotations

from pathlib import Path

from fmnist_search.data.files import DataSource
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.training.autotune import autotune
from fmnist_search.training.devices import resolve_execution
from fmnist_search.workspace import image_cache_folder


def tuned_settings(device: str = "auto", threads: int = 0) -> tuple[Execution, str]:
    """Return the execution and the precision with which a study would train here; 0 threads means all cores."""
    return autotune(resolve_execution(device, threads))


def data_source(folder: Path | None) -> DataSource:
    """Return the source of the images: this folder, or the user's cache.

    Raises:
        UserError: if no folder is given, and the package that finds the user's cache is not installed.
    """
    if folder:
        return DataSource(cache=folder, folder=folder)
    try:
        return DataSource(image_cache_folder())
    except ModuleNotFoundError as error:
        raise UserError(f"--data-dir: is required because {error.name} is not installed; give a folder") from error
