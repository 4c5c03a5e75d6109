"""How benchmarks reach the engine: where its images come from, and how it is set up on a machine."""

from __future__ import annotations

from pathlib import Path

from fmnist_search.data.files import DataSource
from fmnist_search.errors import UserError
from fmnist_search.recipe.execution import Execution
from fmnist_search.training.autotune import autotune
from fmnist_search.training.devices import resolve_execution


def tuned_settings(device: str = "auto", threads: int = 0) -> tuple[Execution, str]:
    """The execution and the precision with which a study would train here; no threads are all cores."""
    return autotune(resolve_execution(device, threads))


def data_source(folder: Path | None) -> DataSource:
    """The images of this folder, else of the user's cache.

    Raises:
        UserError: no folder is named, and the package that knows where caches live is not there.
    """
    if folder:
        return DataSource(cache=folder, folder=folder)
    try:
        from fmnist_search.workspace import image_cache_folder
    except ModuleNotFoundError as error:
        raise UserError(f"--data-dir: is needed where {error.name} is not installed; name a folder") from error
    return DataSource(image_cache_folder())
